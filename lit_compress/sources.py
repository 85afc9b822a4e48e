"""Where a model or a file comes from: a path, a name on the hub, or a path inside an installed package."""

import importlib.util
import json
import os
import shlex
from collections.abc import Sequence
from pathlib import Path

from lit_compress.errors import UserError

__all__ = ["absolute_source", "check_safetensors", "resolve_package", "resolve_source"]

_PACKAGE = "package:"


def resolve_source(source: str, key: str) -> str:
    """Turn ``package:name/inner/path`` into the path of a file or folder that an installed package ships.

    Args:
        source: a path, a hub name (both returned unchanged) or ``package:``, an import name and a path inside it.
        key: config key named in the error.

    Raises:
        UserError: the package is not installed or has no such path; or a path, which no hub name looks like, does
            not exist.

    """
    if not source.startswith(_PACKAGE):
        # A hub name is "name" or "owner/name".
        if not Path(source).exists() and (source.startswith((".", "/", "~")) or source.count("/") > 1):
            first = _model_of_a_run(Path(source))
            raise UserError(f"{key}: {source!r} does not exist; {first}give a path that does, or a hub name")
        return source
    return resolve_package(source, key)


def _model_of_a_run(path: Path) -> str:
    """The beginning of a hint where the path is one that a fit makes at its end."""
    if path.name != "model":
        return ""
    config = path.parent.parent.parent / f"{path.parent.name}.yaml"  # where `init` writes it
    command = f": lit_compress fit --config {shlex.quote(str(config))}" if config.is_file() else ""
    return f"a fit with --run {shlex.quote(str(path.parent))} leaves it, so run that first{command}; or "


def resolve_package(source: str, key: str) -> str:
    """:func:`resolve_source` for where a path need not exist yet and a hub name is nothing to look for.

    Raises:
        UserError: the package is not installed or has no such path.

    """
    if not source.startswith(_PACKAGE):
        return source
    name, _, inner = source.removeprefix(_PACKAGE).partition("/")
    spec = importlib.util.find_spec(name) if name.isidentifier() else None
    if spec is None or not spec.submodule_search_locations:
        raise UserError(
            f"{key}: {source!r} names package {name!r}, which is not installed; pip install it, or give a path"
        )
    path = Path(spec.submodule_search_locations[0]) / inner
    if not path.exists():
        raise UserError(f"{key}: {source!r}: the package {name!r} has no {inner!r}")
    return str(path)


def check_safetensors(source: str, architectures: Sequence[str] | None, key: str) -> None:
    """Refuse a model folder whose weights are pickled only, with the line that converts them.

    Args:
        source: a path, or a hub name, of which nothing is asked.
        architectures: as its configuration names them.
        key: config key named in the error.

    Raises:
        UserError: the folder has a ``pytorch_model.bin`` and no safetensors.

    """
    folder = Path(source)
    if any(folder.glob("*.safetensors")) or not (pickled := sorted(folder.glob("pytorch_model*.bin"))):
        return
    name = architectures[0] if architectures and str(architectures[0]).isidentifier() else "AutoModel"
    code = (
        f"from transformers import {name} as M; p = {json.dumps(source)}; "
        "M.from_pretrained(p, use_safetensors=False).save_pretrained(p)"
    )
    raise UserError(
        f"{key}: {source!r} has no model.safetensors, and {pickled[0].name} is not read, because it is a pickle; "
        f"convert it: python -c {shlex.quote(code)}"
    )


def absolute_source(source: str) -> str:
    """A path that exists as an absolute one, for whoever reads it elsewhere; hub names and ``package:`` as they are."""
    return os.path.abspath(source) if Path(source).exists() else source
