"""Packages that only some formats need."""

from importlib import import_module
from typing import Any

from lit_compress.errors import UserError

__all__ = ["optional"]


def optional(module: str, extra: str) -> Any:
    """A module of a package that may be missing.

    Args:
        module: dotted name.
        extra: of this package, that installs it.

    Raises:
        UserError: it is not installed, with the command that does.

    """
    try:
        return import_module(module)
    except ImportError as error:
        raise UserError(
            f"--to: this format needs {module.partition('.')[0]!r}, which is not installed; "
            f"pip install 'lit_compress[{extra}]'"
        ) from error
