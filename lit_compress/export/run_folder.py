"""What a run leaves beside its checkpoint: how it was configured, its tokenizer, and the data it was validated on."""

import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import yaml
from jsonargparse import ArgumentParser, Namespace
from lightning.pytorch import LightningDataModule
from transformers import PretrainedConfig

from lit_compress.data import TextClassification, TokenClassification
from lit_compress.data.text_data import TextData
from lit_compress.errors import UserError
from lit_compress.files import absolute_source
from lit_compress.models.positions import check_length

__all__ = ["TOKENIZER", "absolute_paths", "parse_file", "run_config", "run_tokenizer", "validation_data"]

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
        raise UserError(f"{key}: {str(path.parent)!r} is no folder; give the run folder of a `fit`")
    if not path.is_file():
        raise UserError(f"{key}: {str(path.parent)!r} has no {path.name}; give the run folder of a finished `fit`")
    try:
        content = parse(path.read_text())
    except (ValueError, yaml.YAMLError) as error:
        raise UserError(f"{key}: {str(path)!r} is damaged: {str(error).splitlines()[0]}") from error
    if not isinstance(content, dict) or any(entry not in content for entry in keys):
        raise UserError(f"{key}: {str(path)!r} lacks {' or '.join(keys)}; it was not written by a `fit`")
    return content


def absolute_paths(config: Namespace) -> None:
    """Make the paths of a configuration of `fit` absolute, in place: it is read from other working directories, too."""
    for key in (*_PATHS, *_MODELS):
        value = config.get(key)
        if isinstance(value, str):
            is_path = key in _PATHS and not value.startswith("package:")
            config[key] = os.path.abspath(value) if is_path else absolute_source(value)
    if teachers := config.get("model.init_args.teachers"):
        config["model.init_args.teachers"] = {name: absolute_source(source) for name, source in dict(teachers).items()}


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
    options = config["data"]["init_args"]
    if "tokenizer" in options:
        options["tokenizer"] = run_tokenizer(Path(run)) or options["tokenizer"]
    options.update(data)
    return config


def validation_data(section: dict[str, Any], model: PretrainedConfig) -> LightningDataModule:
    """The data module that the `data` section of a configuration describes, set up for validation.

    Args:
        section: as in :func:`run_config`.
        model: of the run; its labels are those of the data, so that the training file need not be there.

    Raises:
        UserError: a file that is needed is missing or damaged; it names the option that gives another.

    """
    parser = ArgumentParser(exit_on_error=False)
    parser.add_subclass_arguments(LightningDataModule, "data")
    try:
        data = parser.instantiate(parser.parse_object({"data": section}))["data"]
        if isinstance(data, TextData):
            check_length(model, data.max_length, "the run's model")
        if isinstance(data, TextClassification | TokenClassification):
            names: Any = model.id2label or {}
            data.use_labels([str(names[index]) for index in sorted(names)])
        if not isinstance(data, TextData):
            data.prepare_data()
        data.setup("validate")
    except UserError as error:
        raise UserError(f"--{error}" if str(error).startswith("data.") else str(error)) from error
    return data
