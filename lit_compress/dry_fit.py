"""A `fit` that ends before its first step, in a temporary folder: what it would refuse, and what it would come to."""

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from torch import nn

from lit_compress.data.text_data import TextData
from lit_compress.errors import UserError
from lit_compress.export.run_folder import reads_texts, text_data
from lit_compress.functional.patterns import Pattern
from lit_compress.lightning_cli import LitCompressCLI, make, sources_of
from lit_compress.nn.replace_layers import compressible_layers, compressible_tables
from lit_compress.report.model_check import Finding, megabytes, model_findings
from lit_compress.report.size import Size, size_of
from lit_compress.strategies.pruning import Pruning
from lit_compress.strategies.strategy import Strategy, student_of
from lit_compress.training.run_lock import check_new
from lit_compress.training_steps import training_steps
from lit_compress.usage_errors import user_error

__all__ = ["fit_findings"]

# What a fit that ends before its first step does without.
_TRAINER = {
    "logger": False,
    "enable_checkpointing": False,
    "enable_progress_bar": False,
    "enable_model_summary": False,
    "devices": 1,
    "num_nodes": 1,
    "strategy": "auto",
}


def fit_findings(files: Sequence[str], overrides: Sequence[str] = ()) -> list[Finding]:
    """What a fit says before its first step; the error that ends it is the last.

    Texts are tokenized into the cache, where the fit will find them. Steps are counted for one device.

    Args:
        files: as of `--config`.
        overrides: further options of `fit`.

    """
    words = ["fit", *(word for file in files for word in ("--config", file)), *overrides]
    found: list[Finding] = []
    with TemporaryDirectory(prefix="lit_compress-check-") as folder, _heard(found):

        class DryFit(LitCompressCLI):
            def before_instantiate_classes(self) -> None:
                config = self.config[str(self.subcommand)]
                if not config.get("run"):
                    found.append(Finding(level="warning", text="run: missing; give the folder of this run with --run"))
                else:
                    with _noted(found):
                        check_new(Path(config.run))
                config.run = str(Path(folder) / "run")
                tokenizer = config.data.init_args.get("tokenizer")
                for key, source in sources_of(config).items():
                    length, student = config.data.init_args.get("max_length"), key == "model.pretrained"
                    of_student = tokenizer if student else None
                    found.extend(model_findings(source, key, length, of_student, strategies=student))
                for option, value in _TRAINER.items():
                    config.trainer[option] = value
                if any(finding.level == "error" for finding in found):
                    with _noted(found):
                        _check_data(config)  # where the fit will not come to it
                super().before_instantiate_classes()

            def fit(self, model: LightningModule, datamodule: Any, ckpt_path: Any, **kwargs: Any) -> None:
                self.trainer.callbacks.append(_BeforeTheFirstStep(found))  # type: ignore[attr-defined]
                with suppress(_ReadyError):
                    self.trainer.fit(model, datamodule=datamodule)

        with _noted(found):
            make(DryFit, words)
    return list({finding.text: finding for finding in found}.values())


def _check_data(config: Any) -> None:
    """Read the files of a configuration, whatever is wrong with its models."""
    options = {**vars(config.data.init_args)}
    options.pop("max_length", None)
    options["tokenizer"] = options.get("tokenizer") or config.model.init_args.get("pretrained")
    if reads_texts(config.data):
        text_data(config.data.class_path, options).check_sources()


class _ReadyError(Exception):
    """All that comes before the first step was done."""


class _BeforeTheFirstStep(Callback):
    """After the strategies have been set up: says what the training comes to, and ends it."""

    def __init__(self, found: list[Finding]) -> None:
        self.found = found

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        self.found.extend(_training(trainer, pl_module))
        raise _ReadyError


def _training(trainer: Trainer, pl_module: LightningModule) -> Iterator[Finding]:
    data = trainer.datamodule  # type: ignore[attr-defined]
    if isinstance(data, TextData):
        for split in ("train", "val", "test"):
            if (table := data.table(split)) is not None:
                source = data.source(split)
                where = f"of {source!r}" if source else f"held out of {data.source('train')!r}"
                yield Finding(level="ok", text=f"data.{split}_file: {len(table):,} examples {where}")
        if data.labels:
            shown = f"{', '.join(data.labels[:10])}{', ...' if len(data.labels) > 10 else ''}"
            yield Finding(level="ok", text=f"data: {len(data.labels)} labels: {shown}")
    total, epoch = training_steps(trainer)
    yield Finding(level="ok", text=f"trainer.max_epochs: {total:,} optimizer steps on a device, {epoch:,} in an epoch")
    strategies = [each for each in trainer.callbacks if isinstance(each, Strategy)]  # type: ignore[attr-defined]
    for strategy in strategies:
        name = type(strategy).__name__
        if end := strategy.end(trainer):
            asked, _ = strategy.amounts(pl_module)
            text = f"compression: {name}: {asked} by step {end:,} of {total:,}"
            late = end > 0.95 * total
            more = "; little training is left to recover in, so end it earlier" if late else ""
            yield Finding(level="warning" if late else "ok", text=text + more)
    size = _expected_size(pl_module, strategies)
    yield Finding(
        level="ok",
        text=f"compression: {size.parameters:,} parameters, about {size.nonzeros:,} of them not 0, will be left: "
        f"{megabytes(size.dense_bytes)} in fp32, values and index {megabytes(size.compressed_bytes)}"
        f"{'' if _is_counted(strategies) else '; without the heads and neurons that go'}",
    )


def _expected_size(pl_module: LightningModule, strategies: Sequence[Strategy]) -> Size:
    """What the strategies will leave, by what they ask for; heads and neurons that go are still counted."""
    student = student_of(pl_module)
    zeros: dict[str, float] = {}
    for strategy in strategies:
        if isinstance(strategy, Pruning) and isinstance(strategy.pattern, Pattern):
            zeros |= dict.fromkeys(strategy.layers(pl_module), strategy.sparsity)
    changed: dict[str, Any] = dict([*compressible_layers(student), *compressible_tables(student)])
    size = Size()
    for name, parameter in student.named_parameters():
        layer, _, kind = name.rpartition(".")
        count, compressed = parameter.numel(), kind == "weight" and layer in changed
        if kind == "mask_scores":  # learned, and no part of the folded model
            continue
        quantizer: nn.Module | None = changed[layer].weight_quantizer if compressed else None
        bits = 32 if quantizer is None else getattr(quantizer, "bits", 8)
        scales = 0 if quantizer is None else parameter.shape[0]
        left = round(count * (1 - zeros.get(layer, 0.0))) if compressed else count
        size += size_of(count, left, bits, scales, pruned=compressed)
    return size


def _is_counted(strategies: Sequence[Strategy]) -> bool:
    return all(not isinstance(each, Pruning) or isinstance(each.pattern, Pattern) for each in strategies)


@contextmanager
def _noted(found: list[Finding]) -> Iterator[None]:
    """A ``UserError`` becomes a finding; the parser wraps those of constructors."""
    try:
        yield
    except (ValueError, TypeError) as error:
        cause = user_error(error, UserError)
        if cause is None:
            raise
        found.append(Finding(level="error", text=str(cause)))


@contextmanager
def _heard(found: list[Finding]) -> Iterator[None]:
    """What the package warns of becomes findings, too."""
    handler = logging.Handler(logging.WARNING)
    handler.emit = lambda record: found.append(Finding(level="warning", text=record.getMessage()))  # type: ignore[method-assign]
    logger = logging.getLogger("lit_compress")
    propagates, logger.propagate = logger.propagate, False
    logger.addHandler(handler)
    try:
        yield
    finally:
        logger.removeHandler(handler)
        logger.propagate = propagates
