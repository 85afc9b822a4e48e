"""One training from its run folder to the folded model in it: what `lit_compress fit` runs, for Python."""

import json
import logging
import os
import signal
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from lightning.pytorch import Callback, LightningDataModule, LightningModule, Trainer, seed_everything
from lightning.pytorch.utilities import rank_zero_only

from lit_compress.console import say
from lit_compress.data.text_data import TextData
from lit_compress.errors import UserError
from lit_compress.export.checkpoint import last_checkpoint, load_checkpoint
from lit_compress.export.command import export
from lit_compress.export.run_folder import absolute_paths, parse_file, task_of
from lit_compress.files import check_file, check_folder, last_of
from lit_compress.init_args import settings_of
from lit_compress.models.manifest_file import MANIFEST_FILE, unfinished_lines
from lit_compress.models.packed import check_trainable
from lit_compress.modules.encoder import LitEncoder
from lit_compress.training.monitor_check import MonitorCheck
from lit_compress.training.resume_checks import check_length, check_resumed
from lit_compress.training.run_lock import Claim, claim, discard
from lit_compress.training.run_record import RunRecord, is_written
from lit_compress.training.signals import StopOnSignal, Stopped, is_requeued
from lit_compress.training.trainer import DEFAULTS, make_trainer
from lit_compress.training.trainer_options import check_callbacks, check_seed, told_in_one_line

__all__ = ["FittedRun", "StartedRun", "checkpoint_of", "fit", "start", "train"]


@dataclass(frozen=True, kw_only=True)
class FittedRun:
    """What a training leaves; every command that takes a run takes its folder.

    Attributes:
        folder: configuration, checkpoints, events, tokenizer.
        model: folder of the folded model, for ``from_pretrained``.
        checkpoint: of the very end, to resume from.
        metrics: last value of everything that was logged.
        step: optimizer steps of the model.
        validated: optimizer steps before the last validation, which an end within an epoch leaves behind; None without.

    """

    folder: Path
    model: Path
    checkpoint: Path
    metrics: dict[str, float]
    step: int
    validated: int | None


@dataclass(frozen=True, kw_only=True)
class StartedRun:
    """A run folder that belongs to this process: what :func:`start` gives and :func:`train` needs.

    Attributes:
        folder: of the run.
        new: whether a run begins in it, whose beginning is removed if nothing comes of it.
        claim: what this process has of it; None on other ranks than the first.
        callbacks: what the trainer must have: the record of the settings, and the end at a signal.

    """

    folder: Path
    new: bool
    claim: Claim | None
    callbacks: tuple[Callback, ...]


def fit(
    *,
    model: LightningModule,
    data: LightningDataModule,
    strategies: Sequence[Callback] = (),
    run: str | Path,
    trainer: Mapping[str, Any] | None = None,
    checkpoint_every: int = 500,
    resume: str | Path | None = None,
    seed: int | None = None,
) -> FittedRun:
    """Train a model in a run folder of its own and fold it: what the command `fit` does.

    Settings are kept in ``config.yaml``, as far as objects say how they were made: those of this package and their
    subclasses do. Ctrl-C saves a checkpoint and raises ``KeyboardInterrupt``; ``resume="last"`` continues.

    Args:
        model: what learns: :class:`~lit_compress.LitTeacher`, :class:`~lit_compress.LitStudent` or another module with
            a ``student``.
        data: a data module whose labels, and order of them, are the model's.
        strategies: what compresses it, in this order.
        run: folder; new, unless ``resume`` is given.
        trainer: options of Lightning's `Trainer`, over those of :data:`lit_compress.training.trainer.DEFAULTS`.
        checkpoint_every: optimizer steps between two checkpoints.
        resume: ``"last"`` for the run's own, or the path of a checkpoint.
        seed: of the order of the data and of dropout; None takes that of an earlier ``seed_everything``, or 42.

    Raises:
        UserError: the folder is taken, a resumed run has other settings, model and data do not belong together.

    """
    folder = Path(run)
    _check_pair(model, data)
    seed = int(os.environ.get("PL_GLOBAL_SEED", 42)) if seed is None else seed
    check_seed(seed)
    seed_everything(seed, workers=True)
    options = DEFAULTS | dict(trainer or {})
    checkpoint, content = checkpoint_of(folder, None if resume is None else str(resume))
    settings = _settings(model, data, strategies) | {
        "seed_everything": seed,
        "trainer": _kept(options, "trainer."),
        "run": str(run),
        "checkpoint_every": settings_of(checkpoint_every),
    }
    try:
        with start(folder, settings, checkpoint, content) as started:
            made = make_trainer(
                folder, strategies, options, checkpoint_every, checkpoint, started.callbacks, started.claim
            )
            return train(started, made, model, data, checkpoint)
    except Stopped as stopped:
        if stopped.code != 128 + signal.SIGINT:
            raise
        saved = "; resume with resume='last'" if stopped.path.is_file() else ""
        raise KeyboardInterrupt(f"stopped by {stopped.name}{saved}") from None


def checkpoint_of(run: Path, given: str | None) -> tuple[str | None, dict[str, Any] | None]:
    """The checkpoint to resume from, or to evaluate, and its content.

    Args:
        run: its folder.
        given: a path, ``"last"``, or None for a new run, which continues all the same when SLURM has requeued it.

    """
    if given is None and is_requeued() and last_of(run).is_file():
        given = "last"
    if given is None:
        return None, None
    if given != "last":
        return given, load_checkpoint(given)
    path, content = last_checkpoint(run)
    return str(path), content


@contextmanager
def start(
    run: Path, settings: dict[str, Any], resumed: str | None, checkpoint: Mapping[str, Any] | None = None
) -> Iterator[StartedRun]:
    """Take a run folder and check what only a training needs, before minutes of work.

    Args:
        run: the folder.
        settings: what the training is made from, as a configuration has it.
        resumed: checkpoint that it resumes from.
        checkpoint: its content.

    Raises:
        UserError: the folder is in use or taken, the run began with other settings, or is longer already.

    """
    # Where it was resumed from is not part of how to repeat it.
    settings = absolute_paths(settings) | {"ckpt_path": None}
    if checkpoint is not None:
        check_length(settings["trainer"], checkpoint)
    last, file = last_of(run), run / "config.yaml"
    own = resumed is not None and Path(resumed).absolute().parent == last.absolute().parent
    if own and file.is_file():
        check_resumed(parse_file(file, yaml.safe_load, ["data", "model"]), settings)
    first = rank_zero_only.rank == 0
    with ExitStack() as held:
        stop = held.enter_context(StopOnSignal(last))
        if first and resumed:  # what it replaces
            check_file(file, is_written, key="--run")
            check_folder(run / "model", overwrite=True, key="--run")
        claimed = held.enter_context(claim(run, new=not resumed)) if first else None
        yield StartedRun(
            folder=run, new=not resumed, claim=claimed, callbacks=(stop, MonitorCheck(), RunRecord(settings))
        )


def train(
    run: StartedRun,
    trainer: Trainer,
    model: LightningModule,
    data: LightningDataModule | None,
    resumed: str | None = None,
) -> FittedRun:
    """Train; leave a checkpoint of the very end and the folded model. What fails before its first step leaves nothing.

    Args:
        run: of :func:`start`.
        trainer: of :func:`lit_compress.training.trainer.make_trainer`.
        model: what learns.
        data: what it learns from.
        resumed: checkpoint that it resumes from.

    """
    last, output = last_of(run.folder), run.folder / "model"
    try:
        check_callbacks(trainer.callbacks)  # type: ignore[attr-defined]
        _check_trainable(model)
        # A checkpoint is data; nothing in it is ever executed.
        with told_in_one_line():
            trainer.fit(model, datamodule=data, ckpt_path=resumed, weights_only=True)
    except BaseException:
        began = trainer.global_step > 0 or last.is_file()
        if run.new and not began and run.claim is not None and run.claim.holds():
            discard(run.folder)
        raise
    metrics = {name: float(value) for name, value in trainer.callback_metrics.items()}
    if not trainer.fast_dev_run:  # type: ignore[attr-defined]
        _count_begun_epoch(trainer)
        trainer.save_checkpoint(last)
        if trainer.is_global_zero:
            export(run=str(run.folder), output=str(output), unfinished=True, overwrite=True)
            for line in unfinished_lines(json.loads((output / MANIFEST_FILE).read_text())):
                say(f"Not finished: {line}")
    validated = next(each.validated for each in run.callbacks if isinstance(each, RunRecord))
    return FittedRun(
        folder=run.folder,
        model=output,
        checkpoint=last,
        metrics=metrics,
        step=trainer.global_step,
        validated=validated,
    )


def _count_begun_epoch(trainer: Trainer) -> None:
    """Count an epoch that the training ended inside of as begun, so that a run that goes on does the rest of it.

    Lightning counts it as complete, whether ``max_steps``, ``max_time`` or a callback ended it.
    """
    loop = trainer.fit_loop
    if loop.epoch_loop.batch_progress.current.ready and not loop.epoch_loop.batch_progress.is_last_batch:
        counted: Any = loop.epoch_progress
        for counts in (counted.total, counted.current):
            counts.processed -= 1
            counts.completed -= 1


def _check_trainable(model: Any) -> None:
    if isinstance(model, LitEncoder):
        check_trainable(model.student, model.read_from["model.pretrained"][0], "model.pretrained")


def _check_pair(model: Any, data: Any) -> None:
    """Refuse what is not a data module, and a model that was made for another task or other classes than the data's."""
    if not isinstance(data, LightningDataModule):
        raise UserError(
            f"data: {type(data).__name__} must be a LightningDataModule; one of your own gives it as train_dataloader()"
        )
    if not isinstance(model, LitEncoder) or not isinstance(data, TextData):
        return
    name = task_of(data).name
    if model.task.name != name:
        raise UserError(
            f"model.task: {model.task.name!r}, but the data's is {name!r}; give labels=data.labels, task=data.task"
        )
    if model.labels != data.labels:
        raise UserError(f"model.labels: {model.labels}, but the data's are {data.labels}; give labels=data.labels")


def _settings(model: LightningModule, data: LightningDataModule, strategies: Sequence[Callback]) -> dict[str, Any]:
    """The sections of a configuration that make these objects again."""
    kept = _kept({"model": model, "data": data, "compression": list(strategies)})
    found: dict[str, Any] = {"model": {}, "data": {}, "compression": []} | kept
    for name in ("task", "labels", "tokenizer") if isinstance(data, TextData) else ():  # they are the data's
        found["model"].get("init_args", {}).pop(name, None)
    return found


def _kept(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Values as a configuration has them; what cannot be said is left out, and that said."""
    found: dict[str, Any] = {}
    for name, value in values.items():
        try:
            found[name] = settings_of(value)
        except TypeError as error:
            logging.getLogger(__name__).warning("%s%s: not kept in config.yaml: %s", prefix, name, error)
    return found
