"""Arguments that are objects, in a checkpoint and back: their settings, and objects made of those."""

from collections.abc import Mapping
from typing import Any

from torch import nn

from lit_compress.init_args import made_of, settings_of

__all__ = ["made_again", "settings_or_names"]


def made_again(value: Any, kind: Any, key: str) -> Any:
    """An argument as it is, or made of the settings that a checkpoint has of it, see :func:`made_of`."""
    # A mapping of modules by name is one that is made.
    of_modules = isinstance(value, Mapping) and any(isinstance(one, nn.Module) for one in value.values())
    return made_of(value, kind, key) if isinstance(value, Mapping | str) and not of_modules else value


def settings_or_names(value: Any) -> Any:
    """What an argument is made again from, where the arguments of its own are plain data; else the names of classes."""
    try:
        return settings_of(value)
    except TypeError:  # whoever loads the checkpoint gives it again; a task's name could be that of another task
        held = value.values() if isinstance(value, Mapping) else [value]
        return ", ".join(f"{type(one).__module__}.{type(one).__qualname__}" for one in held)
