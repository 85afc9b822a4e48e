"""What a finished run leaves beside its checkpoint: how it was configured, and the data it was validated on."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import yaml
from jsonargparse import ArgumentParser
from lightning.pytorch import LightningDataModule

from lit_compress.errors import UserError

__all__ = ["parse_file", "validation_data"]


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
    if not path.is_file():
        raise UserError(f"{key}: {str(path.parent)!r} has no {path.name}; give the run folder of a finished `fit`")
    try:
        content = parse(path.read_text())
    except (ValueError, yaml.YAMLError) as error:
        raise UserError(f"{key}: {str(path)!r} is damaged: {str(error).splitlines()[0]}") from error
    if not isinstance(content, dict) or any(entry not in content for entry in keys):
        raise UserError(f"{key}: {str(path)!r} lacks {' or '.join(keys)}; it was not written by a `fit`")
    return content


def validation_data(section: dict[str, Any]) -> LightningDataModule:
    """The data module that the `data` section of a configuration describes, set up for validation."""
    parser = ArgumentParser(exit_on_error=False)
    parser.add_subclass_arguments(LightningDataModule, "data")
    data = parser.instantiate(parser.parse_object({"data": section}))["data"]
    data.prepare_data()
    data.setup("validate")
    return data
