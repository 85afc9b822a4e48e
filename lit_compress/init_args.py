"""What an object was made with, so that a run can say how to make it again."""

import inspect
from argparse import ArgumentError
from collections.abc import Iterable, Mapping
from contextlib import suppress
from copy import deepcopy
from dataclasses import asdict, is_dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np
from jsonargparse import ArgumentParser

from lit_compress.errors import UserError
from lit_compress.usage_errors import one_line, user_error

__all__ = ["KeepsInitArgs", "instantiated", "made_of", "settings_of"]

# In the place of a name, for what a constructor took as `*args`.
_UNNAMED = "*"


class KeepsInitArgs:
    """Keeps the arguments of the constructor, whatever it is in a subclass, for :func:`settings_of`.

    Example:
        >>> class Fixed(KeepsInitArgs):
        ...     def __init__(self, rate: float, steps: int = 3) -> None: ...
        >>> settings_of(Fixed(0.5))["init_args"]
        {'rate': 0.5, 'steps': 3}

    """

    def __new__(cls, *args: Any, **kwargs: Any) -> Self:
        made = super().__new__(cls)
        signature = inspect.signature(cls.__init__)
        with suppress(TypeError):  # the constructor, which is called next, says it better
            bound = signature.bind_partial(made, *args, **kwargs)
            bound.apply_defaults()
            given = dict(list(bound.arguments.items())[1:])
            for name, parameter in signature.parameters.items():
                if parameter.kind is parameter.VAR_KEYWORD:
                    given |= given.pop(name, {})
                if parameter.kind is parameter.VAR_POSITIONAL and (unnamed := given.pop(name, ())):
                    given[_UNNAMED] = unnamed
            vars(made)["_init_args"] = given  # not setattr, which modules answer only once they are made
        return made


def settings_of(value: Any) -> Any:
    """What a configuration would have for a value: JSON types, import paths of functions, classes with ``init_args``.

    Numbers and texts of other libraries become Python's own.

    Raises:
        TypeError: there is an object in it that does not say how it was made.

    """
    if isinstance(value, KeepsInitArgs):
        arguments: Mapping[str, Any] = vars(value)["_init_args"]
        if _UNNAMED in arguments:  # nothing says which options of a configuration they are
            raise TypeError(f"{type(value).__name__} was given arguments without a name; give them as name=value")
        path = f"{type(value).__module__}.{type(value).__qualname__}"
        return {"class_path": path, "init_args": settings_of(arguments)}
    if is_dataclass(value) and not isinstance(value, type):
        return settings_of(asdict(value))
    if isinstance(value, Mapping):
        return {settings_of(name): settings_of(inner) for name, inner in value.items()}
    if isinstance(value, list | tuple):
        return [settings_of(inner) for inner in value]
    if isinstance(value, Path):
        return str(value)
    if inspect.isroutine(value) and "<" not in value.__qualname__:
        return f"{value.__module__}.{value.__qualname__}"
    return _plain(value)


def made_of(settings: Any, kind: Any, key: str) -> Any:
    """What :func:`settings_of` says the settings of, made again as the command line would.

    Args:
        settings: as of :func:`settings_of`.
        kind: annotation of the option: a class, or a collection of such.
        key: option that an error names.

    Raises:
        UserError: it cannot be made again, because its class is not there or takes other options, for example.

    """
    try:
        return instantiated(settings, kind, key)
    except UserError as error:
        said = str(error).removeprefix(f"{key}: ")
        what = settings.get("class_path", settings) if isinstance(settings, Mapping) else settings
        raise UserError(f"{key}: {what!r} cannot be made again; give {key.rpartition('.')[2]}: {said}") from error


def instantiated(settings: Any, kind: Any, key: str, names: Iterable[str] = ()) -> Any:
    """What a configuration describes, made as the command line would; a constructor's own fault is raised as it is.

    Args:
        settings: as of :func:`settings_of`.
        kind: annotation of the option: a class, or a collection of such.
        key: option that an error names.
        names: spellings that exist, for the hint at an unknown one.

    Raises:
        UserError: they are not the settings of such a class, or what a constructor says is wrong about them.

    """

    def option(value: Any) -> Any:
        return value

    option.__annotations__["value"] = kind
    parser = ArgumentParser(exit_on_error=False)
    parser.add_function_arguments(option, fail_untyped=False)
    try:
        # A copy: the parser changes what it is given.
        return parser.instantiate(parser.parse_object({"value": deepcopy(settings)}))["value"]
    except (ArgumentError, ValueError, TypeError) as error:
        if (cause := user_error(error, UserError)) is not None:
            raise cause from error
        if not isinstance(error, ArgumentError):
            raise
        raise UserError(f"{key}: {one_line(str(error), names).removeprefix('value: ')}") from error


def _plain(value: Any) -> bool | int | float | str | None:
    """A scalar as YAML has it."""
    if isinstance(value, np.generic):  # also float64, which is a float, and no data that torch.load takes
        value = value.item()
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, str):
        return str.__str__(value)  # an enumeration's own says its name
    for kind in (int, float):
        if isinstance(value, kind):
            return kind(value)
    raise TypeError(f"{type(value).__name__} does not say how it was made")
