"""Packages that not every use needs, and the extra of this package that installs each."""

from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from typing import Any

from lit_compress.errors import UserError

__all__ = ["EXTRAS", "MissingPackage", "named_extras", "optional"]

# What is imported without asking first; tests compare it with pyproject.toml.
EXTRAS = {
    "train": (
        *("datasets", "filelock", "jsonargparse", "lightning", "matplotlib", "pandas"),
        *("pyarrow", "rich", "tensorboard", "tokenizers", "torchmetrics"),
    ),
    "report": ("jinja2", "markupsafe", "scipy"),
}


class MissingPackage(UserError, ImportError):
    """A package is not installed; the message is the command that installs it."""


@contextmanager
def named_extras() -> Iterator[None]:
    """Imports whose failure names the extra that is missing.

    Raises:
        MissingPackage: a package of an extra is not installed.

    """
    try:
        yield
    except ModuleNotFoundError as error:
        package = (error.name or "").partition(".")[0]
        extra = next((extra for extra, packages in EXTRAS.items() if package in packages), None)
        if extra is None:
            raise
        raise _missing(package, extra) from error


def optional(module: str, extra: str, why: str = "this") -> Any:
    """A module of a package that may be missing.

    Args:
        module: dotted name.
        extra: of this package, that installs it.
        why: what needs it.

    Raises:
        MissingPackage: it is not installed, with the command that does.

    """
    try:
        return import_module(module)
    except ImportError as error:
        raise _missing(module.partition(".")[0], extra, why) from error


def _missing(package: str, extra: str, why: str = "this") -> MissingPackage:
    return MissingPackage(f"{why} needs {package!r}, which is not installed; pip install 'lit_compress[{extra}]'")
