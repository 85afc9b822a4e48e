"""What is wrong about a command line, in one line, with the nearest right spelling."""

import inspect
import re
import sys
from collections.abc import Iterable, Sequence
from difflib import get_close_matches
from types import ModuleType
from typing import NoReturn

from lit_compress.errors import UserError
from lit_compress.old_names import OLD_OPTIONS

__all__ = ["is_configured", "one_line", "option_names", "refuse", "split", "user_error"]


# jsonargparse's message about a value that is none of some.
_CHOICE = re.compile(r"(?:Parser key \"[^\"]+\":\s*)?Expected a typing\.Literal\[(.*)\]\. Got value: (\S+)\s*$")
# Its message about a value that is of none of some types, which may hold others' messages of the same form.
_UNION = re.compile(
    r"(?:Parser key \"[^\"]+\":\s*)?Does not validate against any of the Union subtypes\s+Subtypes: \[(.*)\]\n"
    r"(?:.*\n)*\s*Given value type: (.*)\n\s*Given value: (.*)\s*\Z"
)
_TYPES = {
    "<class 'int'>": "a whole number",
    "<class 'float'>": "a number",
    "<class 'str'>": "a text",
    "<class 'bool'>": "true or false",
    "collections.abc.Sequence[int]": "a list of whole numbers",
    "collections.abc.Sequence[str]": "a list of texts",
    "collections.abc.Sequence[int | float]": "a list of numbers",
    "<class 'NoneType'>": "null",
}


def refuse(message: str, error: Exception | None, names: Iterable[str]) -> NoReturn:
    """End the program with what was wrong about its options; what a constructor said about them is raised.

    Args:
        message: jsonargparse's.
        error: what the parser caught.
        names: spellings that exist.

    """
    if (cause := user_error(error, UserError)) is not None:
        raise cause
    sys.stderr.write(f"lit_compress: error: {one_line(message, names)}\n")
    sys.exit(2)


def one_line(message: str, names: Iterable[str]) -> str:
    r"""What was wrong, where, and what was probably meant.

    Args:
        message: jsonargparse's message, often a dozen lines about every type that was tried.
        names: spellings that exist: options, parameters, classes.

    Example:
        >>> one_line('Parser key "compression":\n Option \'sparsty\' is not accepted', ["sparsity", "schedule"])
        "compression: unknown option 'sparsty'; did you mean 'sparsity'?"

    """
    key = re.search(r'Parser key "([^"]+)"', message)
    prefix = f"{key[1]}: " if key else ""
    if unknown := re.search(r"unrecognized arguments: (?:-+)?([\w.+]+)|Option '([^']+)' is not accepted", message):
        return f"{prefix}unknown option {(name := unknown[1] or unknown[2])!r}{_hint(name, names)}"
    if unknown := re.search(r"Key '([^']+)' is not expected|does not accept option '([^']+)'", message):
        return f"{prefix}unknown option {(name := unknown[1] or unknown[2])!r}{_hint(name, names)}"
    if missing := re.search(r"the following arguments are required: (.+)", message):
        return f"{prefix}missing: {missing[1]}; --help says how each is given"
    if choice := _CHOICE.match(message):
        known = re.findall(r"'([^']*)'", choice[1])
        meant = f"; did you mean {near[0]!r}?" if (near := get_close_matches(choice[2], known, n=1)) else ""
        return f"{prefix}{choice[2]!r} must be one of {', '.join(known)}{meant}"
    if wrong := _wrong_type(message):
        return prefix + wrong
    if unknown := re.search(r"Expected a dot import path string: (\S+)", message):
        return f"{prefix}no class is named {unknown[1]!r}{_hint(unknown[1], names)}"
    lines = [re.sub(r'Parser key "[^"]+": ?', "", line).strip(" -") for line in message.splitlines()]
    noise = ("Does not validate", "Subtypes:", "Errors:", "Problem with", "Given value", "Expected a <class 'None")
    telling = [line for line in lines if line and not line.startswith(noise)]
    inner = "".join(
        f"{name}: " for name in re.findall(r'Parser key "([^"]+)"', message)[1:] if name != (key and key[1])
    )
    return prefix + inner + ("; ".join(telling) or " ".join(lines))


def _wrong_type(message: str) -> str | None:
    """What a value should have been, where that is one of a few plain types."""
    union = _UNION.match(message)
    kinds = union[1].split(", ") if union else []
    if union is None or not all(kind in _TYPES for kind in kinds):
        return None
    value = repr(union[3]) if union[2] == "<class 'str'>" else union[3]
    *others, last = (_TYPES[kind] for kind in kinds)
    return f"{value} must be {', '.join(others)} or {last}"


def option_names(modules: Iterable[ModuleType], options: Iterable[str]) -> list[str]:
    """Every spelling a user can mean: command-line options, public classes and their parameters (one level deep)."""
    names = {option.lstrip("-") for option in options}
    for module in modules:
        for name in module.__all__:
            thing = getattr(module, name)
            if inspect.isclass(thing):
                names |= {name, *inspect.signature(thing).parameters}
    return sorted(names | {name.rsplit(".", 1)[-1] for name in names})


def user_error(error: BaseException | None, kind: type[Exception]) -> BaseException | None:
    """The first exception of a kind in the chain of causes: jsonargparse wraps what a constructor raises."""
    while error is not None and not isinstance(error, kind):
        error = error.__cause__ or error.__context__
    return error


def _hint(name: str, names: Iterable[str]) -> str:
    renamed = {old: new for options in OLD_OPTIONS.values() for old, new in options.items()}
    if new := renamed.get(name.rsplit(".", 1)[-1]):
        return f"; it is now called {new!r}"
    pool = [known for known in names if known != name]
    for candidate in (name, name.rsplit(".", 1)[-1]):
        if near := get_close_matches(candidate, pool, n=1, cutoff=0.6):
            return f"; did you mean {near[0]!r}?"
    return "; see --help"


def split(args: list[str], known: Sequence[str]) -> tuple[list[str], list[str]]:
    """Leading words and known options with their values, and all others."""
    own: list[str] = []
    rest: list[str] = []
    target = own
    for word in args:
        if word.startswith("-"):
            target = own if word.partition("=")[0] in known else rest
        target.append(word)
    return own, rest


def is_configured(words: Iterable[str]) -> bool:
    """Whether a command line gives a configuration."""
    return any(word.partition("=")[0] in ("-c", "--config") for word in words)
