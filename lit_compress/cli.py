"""The command line: `lit_compress` and a command; `lit_compress --help` lists them."""

import json
import logging
import os
import shlex
import sys
import warnings
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, NoReturn

import yaml
from jsonargparse import ActionConfigFile, ArgumentParser, Namespace  # type: ignore[attr-defined]  (lazily exported)
from lightning.fabric.plugins import CheckpointIO
from lightning.pytorch import LightningDataModule, LightningModule, Trainer
from lightning.pytorch.callbacks import LearningRateMonitor, RichProgressBar
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.utilities import rank_zero_only
from rich.console import Console

import lit_compress.data
import lit_compress.modules
import lit_compress.strategies  # these three make short names work as `class_path`
from lit_compress.errors import UserError
from lit_compress.export.checkpoint import LAST, last_checkpoint, load_checkpoint
from lit_compress.export.command import export, pack_command
from lit_compress.export.manifest_file import MANIFEST_FILE, unfinished_lines
from lit_compress.export.run_folder import absolute_paths, parse_file
from lit_compress.export.trim import trim_vocabulary
from lit_compress.files import begins, check_file, check_folder
from lit_compress.fit.checkpoints import LastCheckpoint, WholeCheckpoints
from lit_compress.fit.claim import Claim, claim, discard
from lit_compress.fit.record import RunRecord
from lit_compress.fit.resume import check_resumed
from lit_compress.fit.stopping import StopOnSignal, Stopped, is_requeued
from lit_compress.migrate import migrate
from lit_compress.models.load import load_config, transformers_progress
from lit_compress.models.packed import packed_of
from lit_compress.models.positions import check_length
from lit_compress.old_names import read_old_names
from lit_compress.progress import ProgressLines
from lit_compress.recipe import recipe
from lit_compress.report.benchmark import benchmark
from lit_compress.report.compare import compare_runs
from lit_compress.report.explain import explain
from lit_compress.report.formats import formats
from lit_compress.report.run import report
from lit_compress.serve import predict
from lit_compress.serve.callback import WritePredictions
from lit_compress.serve.prediction_file import check_predictions
from lit_compress.strategies.after_compression import after_compression
from lit_compress.strategies.monitor import CompressionMonitor
from lit_compress.strategies.strategy import Strategy
from lit_compress.usage_errors import one_line, option_names, user_error

__all__ = ["main"]

read_old_names()

# Whether a fit wrote a configuration.
_WRITTEN = begins("# lightning.pytorch")
# Commands without a trainer of their own.
_COMMANDS = {
    "export": export,
    "pack": pack_command,
    "trim-vocabulary": trim_vocabulary,
    "explain": explain,
    "report": report,
    "compare": compare_runs,
    "benchmark": benchmark,
    "formats": formats,
    "recipe": recipe,
    "migrate": migrate,
}
# `predict` is one of them unless a configuration says what to predict with.
_PREDICT = {"predict": predict}
_RECIPE_OPTIONS = ("--run", "--only", "--dry-run", "--unfinished", "-h", "--help")
_DESCRIPTION = """Make BERT-family encoders smaller.

fit, validate, test and predict take YAML files (--config, several compose) and options of the same names; without
--config predict takes a run or a model folder, and a file. export, formats, pack and report take the run folder that
fit leaves; compare takes several runs, explain a packed folder, trim-vocabulary a model folder, benchmark several;
recipe runs several fits in a row; migrate makes a YAML file of another tool's."""


class AppendingConfigFile(ActionConfigFile):
    """`--config`: later files override earlier ones, except that each adds its entries to `compression`."""

    @staticmethod
    def apply_config(parser: ArgumentParser, cfg: Namespace, dest: str, value: str) -> None:
        earlier = cfg.get("compression") or []
        if "compression" in cfg:
            cfg["compression"] = []
        ActionConfigFile.apply_config(parser, cfg, dest, value)
        if "compression" in cfg:
            cfg["compression"] = [*earlier, *(cfg["compression"] or [])]
        path = Path(value)
        if path.name == "config.yaml" and (path.parent / "checkpoints").is_dir() and "run" in cfg and _WRITTEN(path):
            cfg["run"] = str(path.parent)  # a run's own: it may have been moved since


class Parser(LightningArgumentParser):
    """Explains a wrong option in one line."""

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        if (cause := user_error(ex, UserError)) is not None:
            raise cause
        # What is wrong in a file is found by the parser above the subcommands, which has none of their options.
        parsers = [self, *(self._subcommands_action.choices.values() if self._subcommands_action else [])]
        options = [option for parser in parsers for action in parser._actions for option in action.option_strings]
        names = option_names([lit_compress.data, lit_compress.modules, lit_compress.strategies], options)
        sys.stderr.write(f"lit_compress: error: {one_line(message, names)}\n")
        sys.exit(2)


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

    def _add_subcommands(self, parser: LightningArgumentParser, **kwargs: Any) -> None:
        super()._add_subcommands(parser, **kwargs)
        # Only so that --help lists them; `main` runs them without a trainer.
        for name, function in _COMMANDS.items():
            help_line = (function.__doc__ or "").splitlines()[0]
            assert parser._subcommands_action is not None
            parser._subcommands_action.add_subcommand(name, _function_parser(name), help=help_line)

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        parser.add_argument("--run", type=str, help="folder of this run: config, checkpoints, TensorBoard, final model")
        parser.add_argument(
            "--compression", type=list[Strategy], default=[], help="strategies; each --config file adds its own"
        )
        parser.add_argument(
            "--checkpoint_every", type=int, default=500, help="optimizer steps between checkpoints (last.ckpt)"
        )
        parser.link_arguments("data.task", "model.init_args.task", apply_on="instantiate")
        parser.link_arguments("data.labels", "model.init_args.labels", apply_on="instantiate")
        parser.link_arguments("data.tokenizer_name", "model.init_args.tokenizer", apply_on="instantiate")

    def before_instantiate_classes(self) -> None:
        config = self.config[str(self.subcommand)]
        if not config.get("run"):
            raise UserError("run: missing; give the folder of this run, for example --run runs/my_run")
        self.run_folder = Path(config.run)
        if config.get("output"):
            check_predictions(config.output, inputs=[config.data.init_args.get("predict_file") or ""])
        self.last = self.run_folder / "checkpoints" / LAST
        if self.subcommand == "fit" and is_requeued() and self.last.is_file() and not config.get("ckpt_path"):
            config.ckpt_path = "last"
        resuming = bool(config.get("ckpt_path"))
        if config.get("ckpt_path") == "last":
            path, checkpoint = last_checkpoint(self.run_folder)
            config.ckpt_path = str(path)
            _keep_names(config, checkpoint)
        _check_lengths(config)
        # The tokenizer is the model's unless somebody says otherwise; a link could not be overridden.
        if "tokenizer" in config.data.init_args and config.data.init_args.tokenizer is None:
            config.data.init_args.tokenizer = config.model.init_args.get("pretrained")
        config.weights_only = True  # a checkpoint is data; nothing in it is ever executed
        self.save_config_kwargs = {"overwrite": resuming}
        if config.get("output"):
            config.return_predictions = False  # a large file's would not fit into memory
        self.new_run = self.subcommand == "fit" and rank_zero_only.rank == 0 and not resuming
        self.claim: Claim | None = None
        if self.subcommand == "fit":
            self._begin(resuming)

    def _begin(self, resuming: bool) -> None:
        """Check what only a training needs, now rather than after it, and take the run folder."""
        _check_trainable(self.config[str(self.subcommand)])
        if resuming:
            self._check_resumed()
        self.stop = self._held.enter_context(StopOnSignal(self.last))
        if rank_zero_only.rank == 0:
            if resuming:  # what it replaces
                check_file(self.run_folder / "config.yaml", _WRITTEN, key="--run")
                check_folder(self.run_folder / "model", overwrite=True, key="--run")
            self.claim = self._held.enter_context(claim(self.run_folder, self.new_run))

    def _check_resumed(self) -> None:
        """A run goes on from a checkpoint of its own with what it began with."""
        config = self.config[str(self.subcommand)].clone()
        file = self.run_folder / "config.yaml"
        own = Path(config.ckpt_path).absolute().parent == self.last.absolute().parent
        if own and file.is_file():
            absolute_paths(config)
            now = yaml.safe_load(self._parser(self.subcommand).dump(config, skip_unset=False, skip_validation=True))
            check_resumed(parse_file(file, yaml.safe_load, ["data", "model"]), now)

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        run = str(self.run_folder)
        trainer = self._get(self.config_init, "trainer")
        if trainer.get("logger") in (None, True):
            kwargs["logger"] = TensorBoardLogger(run, name="", version="", default_hp_metric=False)
        # Strategies come first, in their order; Lightning itself puts checkpointing last.
        trainer["callbacks"] = [
            *self._get(self.config_init, "compression"),
            *map(after_compression, _as_list(trainer.get("callbacks"))),
            CompressionMonitor(),
        ]
        if trainer.get("logger") is not False:
            trainer["callbacks"].append(LearningRateMonitor("step"))
        if trainer.get("enable_progress_bar") is not False:
            trainer["callbacks"].append(RichProgressBar() if sys.stdout.isatty() else ProgressLines())
        if self.subcommand == "predict" and (output := self._get(self.config_init, "output")):
            trainer["callbacks"].append(WritePredictions(output, self._predicting_model()))
        if trainer.get("enable_checkpointing") is not False:
            trainer["callbacks"].append(LastCheckpoint(self.last, self._get(self.config_init, "checkpoint_every")))
            plugins = _as_list(trainer.get("plugins"))
            if not any(isinstance(plugin, CheckpointIO) for plugin in plugins):
                resumed = self._get(self.config_init, "ckpt_path")
                kwargs["plugins"] = [*plugins, WholeCheckpoints(self.last, resumed, self.claim)]
            if self.subcommand == "fit" and not trainer.get("fast_dev_run"):
                trainer["callbacks"].append(self.stop)
        return super().instantiate_trainer(default_root_dir=run, **kwargs)

    def _predicting_model(self) -> str:
        """The checkpoint, or the model that there is without one."""
        config = self.config[str(self.subcommand)]
        return str(config.get("ckpt_path") or config.model.init_args.get("pretrained"))

    def _parse_ckpt_path(self) -> None:
        # Lightning would overwrite the configuration with the checkpoint's; here the YAML beside it says it all.
        path = self.config[self.config.subcommand].get("ckpt_path")
        if path and path not in ("last", "best", "hpc", "registry"):
            _keep_names(self.config[self.config.subcommand], load_checkpoint(path))

    def fit(self, model: LightningModule, **kwargs: Any) -> None:
        """Train; a fit that fails before its first step leaves no run folder behind."""
        try:
            self.trainer.fit(model, **kwargs)
        except BaseException:
            began = self.trainer.global_step > 0 or self.last.is_file()
            if self.new_run and not began and self.claim is not None and self.claim.holds():
                discard(self.run_folder)
            raise

    def after_fit(self) -> None:
        """Leave a checkpoint of the very end and the folded model."""
        if self.config_init[str(self.subcommand)].trainer.fast_dev_run:
            return
        self.trainer.save_checkpoint(self.last)
        if self.trainer.is_global_zero:
            output = self.run_folder / "model"
            export(run=str(self.run_folder), output=str(output), unfinished=True, overwrite=True)
            for line in unfinished_lines(json.loads((output / MANIFEST_FILE).read_text())):
                Console(soft_wrap=True).print(f"Not finished: {line}", markup=False, highlight=False)


def main(args: Sequence[str] | None = None) -> None:
    """Entry point; a :class:`UserError` becomes one line and exit status 1, a wrong option exit status 2."""
    _quieten()
    # Like `python -m`: classes in the user's own files are importable from where the command is run.
    sys.path.insert(0, os.getcwd())
    given = list(sys.argv[1:] if args is None else args)
    try:
        if given and given[0] in _functions(given):
            _run_function(given[0], given[1:])
            return
        LitCompressCLI(
            LightningModule,
            LightningDataModule,
            subclass_mode_model=True,
            subclass_mode_data=True,
            save_config_callback=RunRecord,
            parser_class=Parser,
            parser_kwargs={"prog": "lit_compress", "description": _DESCRIPTION},
            trainer_defaults={
                "max_epochs": 3,
                "gradient_clip_val": 1.0,
                "log_every_n_steps": 10,
                # The data module deals out batches itself, whole and grouped by length.
                "use_distributed_sampler": False,
            },
            seed_everything_default=42,
            auto_configure_optimizers=False,
            args=args,
        )
    except Stopped as stopped:
        if rank_zero_only.rank == 0:
            sys.stderr.write(f"lit_compress: {_stopped(stopped, given)}\n")
        raise
    except (ValueError, TypeError) as error:
        cause = user_error(error, UserError)
        if cause is None:
            raise
        sys.exit(f"lit_compress: error: {cause}")


def _stopped(stopped: Stopped, words: Sequence[str]) -> str:
    """What a stopped `fit` leaves, and the command that goes on from there."""
    if not stopped.path.is_file():
        return f"stopped by {stopped.name} before there was a checkpoint; the same command begins anew"
    own, other = _split(list(words), ("--ckpt_path",))
    command = shlex.join(["lit_compress", *own[:1], *other, "--ckpt_path", "last"])
    saved = f" at step {stopped.step}, which is saved" if stopped.step is not None else ""
    return f"stopped by {stopped.name}{saved}; go on with\n  {command}"


def _run_function(name: str, args: list[str]) -> None:
    # What a recipe does not know itself goes on to the fits of its stages.
    own, overrides = _split(args, _RECIPE_OPTIONS) if name == "recipe" else (args, None)
    options = vars(_function_parser(name).parse_args(own))
    if overrides is not None:
        options["overrides"] = overrides
    (_COMMANDS | _PREDICT)[name](**options)


def _functions(words: Sequence[str]) -> dict[str, Any]:
    """Commands that run without a trainer; `predict` is one unless a configuration says what to predict with."""
    configured = any(word in ("-c", "--config") or word.startswith("--config=") for word in words)
    return _COMMANDS if configured else _COMMANDS | _PREDICT


def _split(args: list[str], known: Sequence[str]) -> tuple[list[str], list[str]]:
    """Leading words and known options with their values, and all others."""
    own: list[str] = []
    rest: list[str] = []
    target = own
    for word in args:
        if word.startswith("-"):
            target = own if word.partition("=")[0] in known else rest
        target.append(word)
    return own, rest


def _function_parser(name: str) -> Parser:
    function = (_COMMANDS | _PREDICT)[name]
    parser = Parser(prog=f"lit_compress {name}", description=(function.__doc__ or "").splitlines()[0])
    if name == "recipe":
        parser.add_function_arguments(recipe, as_positional=True, skip={"overrides", "dry_run"})
        parser.add_argument("--dry-run", action="store_true", help="print the plan and do nothing")
    elif name == "benchmark":
        parser.add_argument(
            "models", type=str, nargs="*", help="folders of exports or hub names; name=folder names one"
        )
        parser.add_function_arguments(benchmark, skip={"models"})
    elif name == "migrate":
        parser.add_argument("file", type=str, help="SparseML's .yaml or .md; NNCF's or nn_pruning's .json")
        parser.add_function_arguments(migrate, skip={"file"})
    elif name == "compare":
        parser.add_argument("runs", nargs="+", type=str, help="run folders of fits")
        parser.add_function_arguments(compare_runs, skip={"runs"})
    else:
        # `explain packed/`: what it explains needs no name.
        parser.add_function_arguments(function, as_positional=name == "explain")
    return parser


def _quieten() -> None:
    """Leave out what Lightning and Transformers say at every start and a user can do nothing about."""
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    if rank_zero_only.rank:  # what is said is said once
        logging.getLogger("lit_compress").setLevel(logging.ERROR)
    transformers_progress(False)
    for message in (
        ".*`isinstance\\(treespec, LeafSpec\\)` is deprecated.*",
        # Texts are tokenised before training; loading them is no work for another process.
        ".*does not have many workers.*",
        # The frozen teacher is in evaluation mode on purpose.
        "Found .* module\\(s\\) in eval mode at the start of training.*",
        ".*Checkpoint directory .* exists and is not empty.*",
    ):
        warnings.filterwarnings("ignore", message)


def _as_list(callbacks: Any) -> list[Any]:
    return callbacks if isinstance(callbacks, list) else [callbacks] if callbacks else []


def _check_trainable(config: Namespace) -> None:
    source = config.model.init_args.get("pretrained")
    if isinstance(source, str) and packed_of(load_config(source, "model.pretrained")) is not None:
        raise UserError(
            f"model.pretrained: {source!r} is packed, and integers do not learn; give the folder that it was made from"
        )


def _check_lengths(config: Namespace) -> None:
    """Before anything is read: every model has positions for the longest input of the data."""
    length, arguments = config.data.init_args.get("max_length"), config.model.init_args
    sources = {f"model.{name}": arguments.get(name) for name in ("pretrained", "teacher")}
    sources |= {f"model.teachers.{name}": source for name, source in dict(arguments.get("teachers") or {}).items()}
    for key, source in sources.items() if isinstance(length, int) else ():
        if isinstance(source, str):
            check_length(load_config(source, key), length, f"{key} {source!r}")


def _keep_names(config: Namespace, checkpoint: dict[str, Any]) -> None:
    """Let a run go on that began with a model of other class names than the data's, before these were compared."""
    arguments = config.model.init_args
    if arguments.get("label_map") or not isinstance(arguments.get("pretrained"), str):
        return
    began = load_config(arguments.pretrained, "model.pretrained").id2label or {}
    names = json.loads(checkpoint["lit_compress"]["config"]).get("id2label") or {}
    foreign = {*began.values()} - {*names.values(), *(f"LABEL_{index}" for index in began)}
    if foreign and len(began) == len(names):
        arguments.label_map = {name: names[str(index)] for index, name in began.items()}
