"""Options that were renamed: configurations with the old names are still read, with a message."""

import logging
from functools import cache
from typing import Any

from lit_compress.errors import UserError

__all__ = ["OLD_OPTIONS", "read_old_names", "with_new_names"]

# Class -> old name -> new name.
OLD_OPTIONS = {
    "LayerDropping": {"rows": "examples"},
    "LowRankEmbedding": {"prunings": "pruning_steps"},
    "MagnitudePruning": {"revive": "regrowth"},
    "StructuredPruning": {"prunings": "pruning_steps"},
}


def with_new_names(content: Any) -> Any:
    """A parsed configuration in which every class is given its options by their present names.

    Raises:
        UserError: an option is given under both names.

    Example:
        >>> with_new_names({"class_path": "MagnitudePruning", "init_args": {"revive": True}})
        {'class_path': 'MagnitudePruning', 'init_args': {'regrowth': True}}

    """
    if isinstance(content, list):
        return [with_new_names(entry) for entry in content]
    if not isinstance(content, dict):
        return content
    content = {key: with_new_names(value) for key, value in content.items()}
    package, _, owner = str(content.get("class_path")).rpartition(".")
    options = content.get("init_args")
    # Another package's class of the same name has options of its own.
    if isinstance(options, dict) and package.partition(".")[0] in ("", "lit_compress"):
        content["init_args"] = {_new_name(owner, key, options): value for key, value in options.items()}
    return content


def read_old_names() -> None:
    """Let old names be in whatever YAML jsonargparse reads from now on: a file, or a value of the command line.

    An option that is an argument of its own (``--compression.prunings 2``) has its new name only; the error says it.
    """
    from jsonargparse import get_loader, set_loader
    from yaml import YAMLError

    load = get_loader("yaml")
    set_loader("yaml", lambda text: with_new_names(load(text)), (YAMLError,))


def _new_name(owner: str, key: str, options: dict[str, Any]) -> str:
    new = OLD_OPTIONS.get(owner, {}).get(key)
    if new is None:
        return key
    if new in options:
        raise UserError(f"{owner}.{key}: is the old name of {new}, which is given, too; leave {key} out")
    _tell(owner, key, new)
    return new


@cache
def _tell(owner: str, old: str, new: str) -> None:
    """Once, however often a file is read."""
    logging.getLogger(__name__).warning("%s.%s is now called %s; the old name still works", owner, old, new)
