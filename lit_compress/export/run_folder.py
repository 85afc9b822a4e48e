"""What a run leaves apart from its checkpoint: its configuration, its tokenizer, and its validation data."""

import copy
import inspect
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from pydoc import locate
from typing import Any

import yaml
from lightning.pytorch import LightningDataModule
from transformers import PretrainedConfig

import lit_compress.data
from lit_compress.data.options import TextOptions
from lit_compress.data.tables import load_tokenizer
from lit_compress.data.text_data import TextData
from lit_compress.errors import UserError, first_line
from lit_compress.init_args import instantiated
from lit_compress.models.labels import label_names
from lit_compress.models.positions import check_length, longest_input
from lit_compress.sources import absolute_source
from lit_compress.tasks import EmbeddingTask, Task, make_task, task_class_of
from lit_compress.usage_errors import option_names

__all__ = [
    "TOKENIZER",
    "absolute_paths",
    "longest_text",
    "parse_file",
    "reads_texts",
    "run_config",
    "run_tokenizer",
    "task_of",
    "text_data",
    "text_data_of",
    "use_labels",
    "validation_data",
]

TOKENIZER = "tokenizer"  # folder of a run, from its start on

# Keys of a configuration that hold a path and nothing else, and those that may also hold the name of a model.
_PATHS = (
    *(f"data.init_args.{split}_file" for split in ("train", "val", "test", "predict")),
    "data.init_args.cache_dir",
    "model.init_args.teacher_cache",
    "run",
)
_MODELS = (
    *("data.init_args.tokenizer", "data.init_args.augmentation.init_args.model"),
    *("model.init_args.pretrained", "model.init_args.tokenizer", "model.init_args.teacher"),
)


def parse_file(path: Path, parse: Callable[[str], Any], keys: list[str], key: str = "--run") -> dict[str, Any]:
    """A YAML or JSON file of a run.

    Args:
        path: the file.
        parse: its text to a mapping.
        keys: entries that it must have.
        key: option named in the error.

    Raises:
        UserError: no such file, damaged, or another file.

    """
    if not path.parent.is_dir():
        raise UserError(f"{key}: {str(path.parent)!r} is not a folder; give the run folder of a `fit`")
    if not path.is_file():
        raise UserError(f"{key}: {str(path.parent)!r} has no {path.name}; give the run folder of a finished `fit`")
    try:
        content = parse(path.read_text())
    except (ValueError, yaml.YAMLError) as error:
        raise UserError(f"{key}: {str(path)!r} is damaged: {first_line(error)}") from error
    if not isinstance(content, dict) or any(entry not in content for entry in keys):
        raise UserError(f"{key}: {str(path)!r} lacks {' or '.join(keys)}; it was not written by a `fit`")
    return content


def absolute_paths(settings: Mapping[str, Any]) -> dict[str, Any]:
    """A configuration of `fit` whose paths are absolute: it is read from other working directories, too."""
    made = copy.deepcopy(dict(settings))
    for key in (*_PATHS, *_MODELS):
        section, name = _section(made, key)
        value = section.get(name)
        if isinstance(value, str):
            is_path = key in _PATHS and not value.startswith("package:")
            section[name] = os.path.abspath(value) if is_path else absolute_source(value)
    section, name = _section(made, "model.init_args.teachers")
    if section.get(name):
        section[name] = {teacher: absolute_source(source) for teacher, source in section[name].items()}
    return made


def _section(settings: dict[str, Any], key: str) -> tuple[dict[str, Any], str]:
    """The mapping that a dotted key ends in, an empty one where there is none, and the last part of the key."""
    *path, name = key.split(".")
    for part in path:
        inner = settings.get(part)
        settings = inner if isinstance(inner, dict) else {}
    return settings, name


def run_tokenizer(run: Path) -> str | None:
    """Folder of the tokenizer that a run keeps; None when it is an older one that has not finished."""
    folders = (run / TOKENIZER, run / "model")
    return next((str(folder) for folder in folders if (folder / "tokenizer_config.json").is_file()), None)


def run_config(run: str | Path, data: Mapping[str, Any]) -> dict[str, Any]:
    """The configuration of a run, which reads texts with the tokenizer that the run keeps.

    Args:
        run: run folder of a `fit`.
        data: options of the data module in the place of the run's.

    Raises:
        UserError: it has no configuration, or a damaged one.

    """
    config = parse_file(Path(run) / "config.yaml", yaml.safe_load, ["data", "model"])
    options = config["data"].setdefault("init_args", {})
    if "tokenizer" in options:
        options["tokenizer"] = run_tokenizer(Path(run)) or options["tokenizer"]
    options.update(data)
    return config


def reads_texts(section: Mapping[str, Any]) -> bool:
    """Whether the data module that the ``data`` section of a configuration describes is a :class:`TextData`."""
    module = locate(section.get("class_path", ""))
    return isinstance(module, type) and issubclass(module, TextData)


def validation_data(section: dict[str, Any], model: PretrainedConfig) -> LightningDataModule:
    """The data module that the `data` section of a configuration describes, set up for validation.

    Args:
        section: as in :func:`run_config`.
        model: of the run; its labels are those of the data, so that the training file need not be there.

    Raises:
        UserError: a file that is needed is missing or damaged; it names the option that gives another.

    """
    try:
        data = _data_module(section)
        if isinstance(data, TextData):
            check_length(model, data.max_length, "the run's model")
        use_labels(data, model)
        if not isinstance(data, TextData):
            data.prepare_data()
        data.setup("validate")
    except UserError as error:
        raise UserError(f"--{error}" if str(error).startswith("data.") else str(error)) from error
    return data


def longest_text(section: Mapping[str, Any], data: LightningDataModule) -> int:
    """Tokens of the longest text of a run: ``max_length``, or where its data module has none, of its validation data.

    Args:
        section: `data` of the run's configuration.
        data: of :func:`validation_data`.

    """
    given = section["init_args"].get("max_length")
    return given or max(int(batch.inputs["attention_mask"].sum(1).max()) for batch in data.val_dataloader())


def use_labels(data: LightningDataModule, model: PretrainedConfig) -> None:
    """Give a data module the names of a model's labels, in the model's order."""
    if isinstance(data, TextData):
        data.use_labels(label_names(model))


def text_data_of(config: PretrainedConfig, folder: str, options: dict[str, Any]) -> TextData:
    """The data module for the head of a model, not set up yet.

    Args:
        config: of the model.
        folder: that it is in, for errors.
        options: of the data module, with its ``tokenizer``. Without ``max_length`` it is the default, or the longest
            input of model and tokenizer where that is less.

    Raises:
        UserError: nothing here reads for this head, or an option is wrong.

    """
    task = task_class_of(config)
    if task is None and EmbeddingTask.has_head(config):
        if "pooling" not in options:
            raise UserError(
                f"--model: {folder!r} is a {', '.join(config.architectures or [])} that does not say how it pools the "
                "vectors of tokens; give --data.pooling mean, cls or max, or the --run that it comes from"
            )
        task = EmbeddingTask
    if task is None:
        raise UserError(
            f"--model: {folder!r} is a {', '.join(config.architectures or []) or 'model without a head'}, which no "
            "task of lit_compress reads for; give the --run that it comes from"
        )
    given = {**task.data_options, **task.options_for(config), **options}
    if "max_length" not in given:
        own = inspect.signature(vars(lit_compress.data)[task.data_module.rpartition(".")[2]]).parameters.get(
            "max_length"
        )
        usual = TextOptions.max_length if own is None else own.default
        longest = load_tokenizer(given["tokenizer"], "data.tokenizer").model_max_length
        given["max_length"] = min(usual, longest, longest_input(config) or usual)
    return text_data(task.data_module, given)


def text_data(name: str, options: dict[str, Any]) -> TextData:
    """A data module by its class, not set up yet.

    Raises:
        UserError: an option is wrong, or it is another kind of module.

    """
    module = _data_module({"class_path": name, "init_args": options})
    if not isinstance(module, TextData):
        raise UserError(f"--run: its data is a {name}, which does not say which rows it predicts; write a TextData")
    return module


def _data_module(section: Mapping[str, Any]) -> LightningDataModule:
    names = option_names([lit_compress.data], inspect.signature(TextOptions).parameters)
    return instantiated(section, LightningDataModule, "--data", names)


def task_of(data: LightningDataModule) -> Task:
    """The task of a data module, which may be given by name."""
    # A default would also be the answer to an AttributeError inside a property.
    task = data.task if isinstance(data, TextData) else getattr(data, "task", None)
    return task if isinstance(task, Task) else make_task(task, getattr(data, "labels", None))
