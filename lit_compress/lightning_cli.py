"""`lit_compress fit`, `validate`, `test` and `predict --config`: LightningCLI with what every run needs."""

import json
import shlex
import sys
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, NoReturn

import yaml
from jsonargparse import ActionConfigFile, ArgumentParser, Namespace  # type: ignore[attr-defined]  (lazily exported)
from lightning.pytorch import Callback, LightningDataModule, LightningModule, Trainer
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI
from lightning.pytorch.utilities import rank_zero_only

import lit_compress.data
import lit_compress.modules
import lit_compress.strategies  # these three make short names work as `class_path`
from lit_compress.console import say
from lit_compress.data.text_data import TextData
from lit_compress.errors import UserError
from lit_compress.export.run_folder import use_labels
from lit_compress.log_filters import quieten
from lit_compress.models.load import load_config
from lit_compress.models.positions import check_length
from lit_compress.old_names import read_old_names
from lit_compress.serve.callback import WritePredictions
from lit_compress.serve.prediction_file import check_predictions
from lit_compress.shipped_configs import config_path
from lit_compress.sources import resolve_source
from lit_compress.strategies.strategy import Strategy
from lit_compress.training.fit import FittedRun, checkpoint_of, start, train
from lit_compress.training.run_record import is_written
from lit_compress.training.signals import Stopped
from lit_compress.training.trainer import DEFAULTS, make_trainer
from lit_compress.training.trainer_options import check_seed, refused
from lit_compress.usage_errors import is_configured, option_names, refuse, split, user_error

__all__ = ["LitCompressCLI", "make", "run", "sources_of"]

read_old_names()


class AppendingConfigFile(ActionConfigFile):
    """`--config`: later files override earlier ones, except that each adds its entries to `compression`.

    A name that begins with ``@`` is a file of the package.
    """

    @staticmethod
    def apply_config(parser: ArgumentParser, cfg: Namespace, dest: str, value: str) -> None:
        value = config_path(str(value), "--config")
        earlier = cfg.get("compression") or []
        if "compression" in cfg:
            cfg["compression"] = []
        ActionConfigFile.apply_config(parser, cfg, dest, value)
        if "compression" in cfg:
            cfg["compression"] = [*earlier, *(cfg["compression"] or [])]
        path = Path(value)
        if path.name == "config.yaml" and (path.parent / "checkpoints").is_dir() and "run" in cfg and is_written(path):
            cfg["run"] = str(path.parent)  # a run's own: it may have been moved since


class Parser(LightningArgumentParser):
    """Explains a wrong option in one line."""

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        # What is wrong in a file is found by the parser above the subcommands, which has none of their options.
        parsers = [self, *(self._subcommands_action.choices.values() if self._subcommands_action else [])]
        options = [option for parser in parsers for action in parser._actions for option in action.option_strings]
        names = option_names([lit_compress.data, lit_compress.modules, lit_compress.strategies], options)
        refuse(message, ex, names)


class LitCompressCLI(LightningCLI):
    """LightningCLI with a run folder, a `compression` list, and what every run needs switched on."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        with ExitStack() as self._held:  # what a run has for itself until it ends
            super().__init__(*args, **kwargs)

    def init_parser(self, **kwargs: Any) -> LightningArgumentParser:
        parser = super().init_parser(**kwargs)
        for action in parser._actions:
            if type(action) is ActionConfigFile:
                action.__class__ = AppendingConfigFile
        return parser

    def _prepare_subcommand_parser(self, klass: type, subcommand: str, **kwargs: Any) -> LightningArgumentParser:
        parser = super()._prepare_subcommand_parser(klass, subcommand, **kwargs)
        if subcommand == "predict":
            parser.add_argument("--output", type=str, help="write predictions to a .csv, .jsonl or .parquet")
        return parser

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        parser.add_argument("--run", type=str, help="folder of this run: config, checkpoints, TensorBoard, final model")
        parser.add_argument(
            "--compression", type=list[Strategy], default=[], help="strategies; each --config file adds its own"
        )
        parser.add_argument(
            "--checkpoint_every", type=int, default=500, help="optimizer steps between checkpoints (last.ckpt)"
        )
        parser.link_arguments("data", "model.init_args.task", self._task_of, apply_on="instantiate")
        parser.link_arguments("data.labels", "model.init_args.labels", apply_on="instantiate")
        parser.link_arguments("data.tokenizer_name", "model.init_args.tokenizer", apply_on="instantiate")

    def parse_arguments(self, parser: LightningArgumentParser, args: Any) -> None:
        super().parse_arguments(parser, args)
        check_seed(self.config[self.config.subcommand].seed_everything)

    def instantiate_classes(self) -> None:
        try:
            super().instantiate_classes()
        except (ValueError, TypeError) as error:
            wrong = str(user_error(error, UserError) or "")
            if self._own_tokenizer and wrong.startswith("data.tokenizer: "):
                wrong = wrong.removeprefix("data.tokenizer: ")
                raise UserError(f"model.pretrained, whose tokenizer data.tokenizer is by default: {wrong}") from error
            if (told := refused(error)) is None:
                raise
            raise told from error

    def before_instantiate_classes(self) -> None:
        config = self.config[str(self.subcommand)]
        if not config.get("run"):
            raise UserError("run: missing; give the folder of this run, for example --run runs/my_run")
        self.run_folder = Path(config.run)
        if config.get("output"):
            check_predictions(config.output, inputs=[config.data.init_args.get("predict_file") or ""])
        checkpoint = self._find_checkpoint(config)
        _check_lengths(config, on_disk=True)
        # The tokenizer is the model's unless somebody says otherwise; a link could not be overridden.
        self._own_tokenizer = "tokenizer" in config.data.init_args and config.data.init_args.tokenizer is None
        if self._own_tokenizer:
            config.data.init_args.tokenizer = config.model.init_args.get("pretrained")
        config.weights_only = True  # a checkpoint is data; nothing in it is ever executed
        if config.get("output"):
            config.return_predictions = False  # a large file's would not fit into memory
        if self.subcommand == "fit":
            settings = yaml.safe_load(self._parser("fit").dump(config, skip_unset=False, skip_validation=True))
            self._started = self._held.enter_context(start(self.run_folder, settings, config.ckpt_path, checkpoint))

    def _task_of(self, data: LightningDataModule) -> Any:
        """The task of the data, once all that can be found wrong without the hub has been."""
        if self.subcommand == "fit" and isinstance(data, TextData):
            data.check_sources()
        config = self.config[str(self.subcommand)]
        _check_lengths(config, on_disk=False)
        if self.subcommand != "fit" and isinstance(data, TextData) and data.source("train") is None:
            # A trained model knows its labels, which are those of the training file otherwise.
            use_labels(data, load_config(config.model.init_args.pretrained, "model.pretrained"))
        return data.task  # type: ignore[attr-defined]  (a data module that has none is not for this command)

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        config = self.config_init[str(self.subcommand)]
        callbacks: list[Callback] = []
        claim = None
        if self.subcommand == "fit":
            callbacks, claim = [*self._started.callbacks], self._started.claim
        if config.get("output"):
            options = self.config[str(self.subcommand)].data.init_args.as_dict()
            callbacks.append(WritePredictions(config.output, self._predicting_model(), options))
        return make_trainer(
            self.run_folder,
            config.compression,
            {**config.trainer, **kwargs},
            config.checkpoint_every,
            config.get("ckpt_path"),
            callbacks,
            claim,
        )

    def _predicting_model(self) -> str:
        """The checkpoint, or the model that there is without one."""
        config = self.config[str(self.subcommand)]
        return str(config.get("ckpt_path") or config.model.init_args.get("pretrained"))

    def _parse_ckpt_path(self) -> None:
        """Lightning's would overwrite the configuration with the checkpoint's; here the YAML next to it is complete."""

    def _find_checkpoint(self, config: Namespace) -> dict[str, Any] | None:
        """Content of the checkpoint that is asked for, whose path is then in the configuration."""
        given = config.get("ckpt_path")
        if given == "best":
            raise UserError(
                "ckpt_path: 'best' is known to the process that trained alone; give 'last', or the path of a "
                f"checkpoint in {str(self.run_folder / 'checkpoints')!r}"
            )
        if given is None and self.subcommand != "fit":
            return None
        config.ckpt_path, checkpoint = checkpoint_of(self.run_folder, given)
        if checkpoint:
            _keep_names(config, checkpoint)
        return checkpoint

    def fit(self, model: LightningModule, datamodule: LightningDataModule, ckpt_path: Any, **kwargs: Any) -> None:
        """What :func:`lit_compress.fit` does, of what the configuration says."""
        fitted = train(self._started, self.trainer, model, datamodule, ckpt_path)
        if self.trainer.is_global_zero and fitted.model.is_dir():
            for line in _result(fitted):
                say(line)


def make(kind: type[LitCompressCLI], words: list[str]) -> None:
    """Run one of Lightning's subcommands with a command line of this package.

    Args:
        kind: class of the command line.
        words: of the command line, after `lit_compress`.

    """
    kind(
        LightningModule,
        LightningDataModule,
        subclass_mode_model=True,
        subclass_mode_data=True,
        save_config_callback=None,
        parser_class=Parser,
        parser_kwargs={"prog": "lit_compress"},
        trainer_defaults=DEFAULTS,
        seed_everything_default=42,
        auto_configure_optimizers=False,
        args=_with_data(words),
    )


def run(words: list[str]) -> None:
    """Run one of Lightning's subcommands.

    Args:
        words: of the command line, after `lit_compress`.

    """
    quieten()
    try:
        make(LitCompressCLI, words)
    except Stopped as stopped:
        if rank_zero_only.rank == 0:
            sys.stderr.write(f"lit_compress: {_stopped(stopped, words)}\n")
        raise


def _with_data(words: list[str]) -> list[str]:
    """The words with `TextClassification` as the data where neither they nor a configuration say which.

    As a default of the parser it would leave its own defaults to the classes that others name.
    """
    says = is_configured(words) or any(word.partition("=")[0] in ("--data", "--data.class_path") for word in words)
    if words[:1] == ["fit"] and not says:
        return ["fit", "--data=TextClassification", *words[1:]]
    return words


def _result(fitted: FittedRun) -> list[str]:
    """Result of a finished `fit`: its model, its score, and the usual next commands."""
    scores = (f"{name} {value:.4f}" for name, value in fitted.metrics.items() if name.startswith("val/"))
    score = next((score for score in scores if not score.startswith("val/loss")), None)
    if score and fitted.validated != fitted.step:
        score = f"{score} at step {fitted.validated}, where it was last validated, of {fitted.step}"
    run, output = str(fitted.folder), str(fitted.folder / "onnx-int8")
    report = shlex.join(["lit_compress", "report", "--run", run])
    export = shlex.join(["lit_compress", "export", "--run", run, "--to", "onnx-int8", "--output", output])
    return [
        f"The model is in {fitted.model}" + (f"; {score}" if score else "") + ". Next:",
        f"  {report}   # accuracy, size and latency, compared with the dense model",
        f"  {export}",
    ]


def _stopped(stopped: Stopped, words: Sequence[str]) -> str:
    """What a stopped `fit` leaves, and the command that resumes from there."""
    if not stopped.path.is_file():
        return f"stopped by {stopped.name} before there was a checkpoint; the same command starts over"
    own, other = split(list(words), ("--ckpt_path",))
    command = shlex.join(["lit_compress", *own[:1], *other, "--ckpt_path", "last"])
    saved = f" at step {stopped.step}, which is saved" if stopped.step is not None else ""
    return f"stopped by {stopped.name}{saved}; continue with\n  {command}"


def sources_of(config: Namespace) -> dict[str, str]:
    """Where the models of a configuration come from, by its keys."""
    arguments = config.model.init_args
    sources = {f"model.{name}": arguments.get(name) for name in ("pretrained", "teacher")}
    sources |= {f"model.teachers.{name}": source for name, source in dict(arguments.get("teachers") or {}).items()}
    return {key: source for key, source in sources.items() if isinstance(source, str)}


def _check_lengths(config: Namespace, on_disk: bool) -> None:
    """Every model on the disk, or on the hub, has positions for the longest input of the data."""
    length = config.data.init_args.get("max_length")
    for key, source in sources_of(config).items() if isinstance(length, int) else ():
        if Path(resolve_source(source, key)).exists() == on_disk:
            check_length(load_config(source, key), length, f"{key} {source!r}")


def _keep_names(config: Namespace, checkpoint: dict[str, Any]) -> None:
    """Let a run continue that began with a model of other class names than the data's, before these were compared."""
    arguments = config.model.init_args
    if arguments.get("label_map") or not isinstance(arguments.get("pretrained"), str):
        return
    began = load_config(arguments.pretrained, "model.pretrained").id2label or {}
    names = json.loads(checkpoint["lit_compress"]["config"]).get("id2label") or {}
    foreign = {*began.values()} - {*names.values(), *(f"LABEL_{index}" for index in began)}
    if foreign and len(began) == len(names):
        arguments.label_map = {name: names[str(index)] for index, name in began.items()}
