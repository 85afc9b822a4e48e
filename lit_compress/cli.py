"""The command line: `lit_compress` and a command; `lit_compress --help` lists them.

What is imported here is the standard library: help, a mistyped command and the small commands answer at once.
"""

import os
import sys
from collections.abc import Callable, Sequence
from difflib import get_close_matches
from importlib import import_module
from typing import NoReturn

from lit_compress.errors import UserError
from lit_compress.extras import named_extras
from lit_compress.usage_errors import is_configured, user_error
from lit_compress.version import __version__

__all__ = ["main"]

# Commands without a trainer, and their functions, imported when one is called.
_COMMANDS = {
    "compress": "commands.compress_family",
    "export": "commands.export_model",
    "pack": "commands.pack_model",
    "trim-vocabulary": "commands.trim_vocabulary",
    "explain": "commands.explain",
    "latency": "commands.latency",
    "report": "commands.report",
    "compare": "commands.compare",
    "benchmark": "commands.benchmark",
    "formats": "commands.formats",
    "init": "commands.init_configs",
    "check": "check_command.check",
    "recipe": "recipe.recipe",
    "configs": "shipped_configs.configs",
    "migrate": "migrate.command.migrate",
}
# `predict` is one of them unless a configuration says what to predict with.
_PREDICT = {"predict": "commands.predict"}
_HELP = """usage: lit_compress COMMAND [options]

Make BERT-family encoders smaller.

all in one command:
  compress         make a model N times as fast for your data, and measure it

training, from YAML files (--config, several compose) and options:
  init             inspect your file and write YAML configurations for it
  check            find errors in a model or configuration before training
  fit              train and compress a model; everything goes to a run folder
  recipe           run several fits in a row, each from an earlier one's result
  validate, test   evaluate a run's model on its data
  configs          list the package's configurations (--config @sst2/teacher)
  migrate          turn a SparseML, NNCF or nn_pruning file into a configuration

using the result of a fit:
  export           write the model for a runtime: ONNX, OpenVINO, packed, ...
  predict          predict every row of a file
  pack             same as `export --to packed`
  trim-vocabulary  remove the tokens that a corpus never uses

measuring:
  report           accuracy, size, sparsity and latency, compared with dense
  compare          a table and Pareto fronts of several runs
  formats          every format of a run: accuracy, size, memory and speed
  benchmark        latency, memory and size of models on every runtime
  explain          which kernel runs each layer of a packed model
  latency          how long heads, neurons and layers take on this machine

options:
  -h, --help       show this; after a command, the options of that command
  --version        show the version
"""
_TRAINING_HELP = """usage: lit_compress {command} [--config FILE ...] [options]

{about}

options; each is a key of the YAML, and a later one wins:
  --config FILE              YAML file, or one of the package: @sst2/student;
                             each file adds its entries to `compression`
  --run FOLDER               run folder: settings, checkpoints, logs, the model
  --model CLASS              LitTeacher, LitStudent, LitPrunedStudent or yours
  --model.pretrained NAME    folder or hub name of the pretrained model
  --model.teacher NAME       folder or hub name of the teacher
  --data CLASS               TextClassification, TokenClassification, ...
  --data.train_file FILE     also --data.val_file, --data.test_file
  --data.text_columns NAMES  '[sentence]', or two for pairs
  --compression CLASS        MagnitudePruning, QuantAwareTraining, ...
  --trainer.max_epochs N     and every other option of Lightning's Trainer
  --ckpt_path last           resume from the last checkpoint of the run
  --print_config             print the resulting configuration and exit

examples:
{examples}

`lit_compress {command} --help-all` shows every option, `--model.help CLASS`,
`--data.help CLASS` and `--compression.help CLASS` those of a class.
"""
# What each does, and examples.
_TRAINING = {
    "fit": (
        "Train and compress a model, and save it in the run folder.",
        """  lit_compress fit --config @sst2/teacher --run runs/teacher
  lit_compress fit --config @sst2/student --config @compression/magnitude_80 \\
    --run runs/sparse --data.train_file train.tsv
  lit_compress fit --config runs/sparse/config.yaml --ckpt_path last""",
    ),
    "validate": (
        "Evaluate a model on the validation data of a configuration.",
        "  lit_compress validate --config runs/sparse/config.yaml --ckpt_path last",
    ),
    "test": (
        "Evaluate a model on the test data of a configuration.",
        """  lit_compress test --config runs/sparse/config.yaml --ckpt_path last \\
    --data.test_file test.tsv""",
    ),
    "predict": (
        "Predict the data of a configuration; --output FILE saves the predictions.",
        """  lit_compress predict --config runs/sparse/config.yaml --ckpt_path last \\
    --data.predict_file new.tsv --output predictions.csv""",
    ),
}


def main(args: Sequence[str] | None = None) -> None:
    """Entry point; a :class:`UserError` becomes one line and exit status 1, a wrong option exit status 2."""
    # Like `python -m`: classes in the user's own files are importable from where the command is run.
    sys.path.insert(0, os.getcwd())
    try:
        _run(list(sys.argv[1:] if args is None else args))
        sys.stdout.flush()
    except BrokenPipeError:
        if not _reader_left():
            raise
        sys.exit(1)
    except (ValueError, TypeError) as error:
        cause = user_error(error, UserError)
        if cause is None:
            raise
        sys.exit(f"lit_compress: error: {cause}")


def _reader_left() -> bool:
    """Whether nobody reads the output any more, as after `| head`; what is left of it is written to nobody."""
    try:
        sys.stdout.write("\n")
        sys.stdout.flush()
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return True
    return False


def _run(words: list[str]) -> None:
    command = words[0] if words else ""
    if command in ("-h", "--help"):
        _show(_HELP)
    if command == "--version":
        _show(f"lit_compress {__version__}\n")
    if command in _functions(words):
        with named_extras():  # also what the function imports only now
            from lit_compress import function_cli

            function_cli.run(command, _function(command), words[1:])
        return
    # What comes before the command are options of all of LightningCLI's.
    if command not in _TRAINING and not command.startswith("-"):
        _refuse(command)
    if command in _TRAINING and {"-h", "--help"} & {*words}:
        about, examples = _TRAINING[command]
        _show(_TRAINING_HELP.format(command=command, about=about, examples=examples))
    with named_extras():
        if command == "fit":
            from lit_compress import early_checks

            early_checks.check_files(words[1:])
        from lit_compress import lightning_cli
    lightning_cli.run(["--help" if word == "--help-all" else word for word in words])


def _show(text: str) -> NoReturn:
    sys.stdout.write(text)
    sys.stdout.flush()
    sys.exit()


def _refuse(command: str) -> NoReturn:
    names = [*_TRAINING, *_COMMANDS]
    near = get_close_matches(command, names, n=1)
    what = f"unknown command {command!r}" if command else "the command is missing"
    meant = f"did you mean {near[0]!r}? all: " if near else "choose one of "
    sys.stderr.write(f"lit_compress: error: {what}; {meant}{', '.join(names)}\n")
    sys.exit(2)


def _functions(words: Sequence[str]) -> dict[str, str]:
    """Commands that run without a trainer; `predict` is one unless a configuration says what to predict with."""
    return _COMMANDS if is_configured(words) else _COMMANDS | _PREDICT


def _function(name: str) -> Callable[..., None]:
    module, _, function = (_COMMANDS | _PREDICT)[name].rpartition(".")
    with named_extras():
        return getattr(import_module(f"lit_compress.{module}"), function)
