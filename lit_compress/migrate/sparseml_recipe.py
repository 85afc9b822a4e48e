"""SparseML's recipes as data: tags, variables, `eval(...)`, stages and Markdown front matter; nothing is executed."""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import yaml

from lit_compress.errors import UserError
from lit_compress.migrate.expressions import calculate, number

__all__ = ["Modifier", "Recipe", "read_recipe"]

_FRONT_MATTER = re.compile(r"^\s*(?:---|\+\+\+)\s*\n(.*?)^(?:---|\+\+\+)\s*$", re.DOTALL | re.MULTILINE)
_EVAL = re.compile(r"^eval\((.*)\)$", re.DOTALL)
# A recipe has some dozen values; aliases of YAML can make a file of a few lines as large as the memory.
_MOST_VALUES = 20_000


@dataclass(frozen=True)
class Modifier:
    """One modifier.

    Args:
        name: class.
        options: constructor arguments, evaluated.
        stage: the stage it belongs to; empty without stages.

    """

    name: str
    options: Mapping[str, Any] = field(default_factory=dict)
    stage: str = ""


@dataclass(frozen=True)
class Recipe:
    """A recipe without variables.

    Args:
        modifiers: in the order of the file.
        others: what else is in it that is not a variable, by key: descriptions of the recipe or of the model.

    """

    modifiers: list[Modifier]
    others: dict[str, Any]


class _Loader(yaml.SafeLoader):
    """Plain YAML, and tags as :class:`Modifier`."""


def _tagged(loader: _Loader, name: str, node: yaml.Node) -> Modifier:
    if isinstance(node, yaml.MappingNode):
        return Modifier(name, loader.construct_mapping(node, deep=True))  # type: ignore[arg-type]
    if isinstance(node, yaml.ScalarNode) and node.value in ("", "null", "~"):
        return Modifier(name)
    raise UserError(f"recipe: !{name} has no options by name; a modifier is written as '- !Name' and its options")


_Loader.add_multi_constructor("!", _tagged)


def read_recipe(text: str, variables: Mapping[str, Any] | None = None) -> Recipe:
    """A recipe with every variable and every ``eval(...)`` replaced by its value.

    Args:
        text: YAML, or Markdown whose front matter is YAML.
        variables: values in the place of those in the file, as SparseML's ``recipe_args``.

    Raises:
        UserError: not YAML, no modifiers, a variable that does not exist, an expression without a value.

    """
    if front := _FRONT_MATTER.match(text):
        text = front[1]
    try:
        content = yaml.load(text, _Loader)  # a SafeLoader: tags become data
    except yaml.YAMLError as error:
        raise UserError(f"recipe: not YAML: {' '.join(str(error).split())}") from error
    except RecursionError as error:
        raise UserError("recipe: not YAML that a person wrote: it is nested too deeply") from error
    if not isinstance(content, dict):
        raise UserError("recipe: it has no modifiers; give a SparseML recipe")
    _check_size(content)
    overrides = dict(variables or {})
    stages = {name: value for name, value in content.items() if _is_stage(value)}
    shared = {name: value for name, value in content.items() if name not in stages}
    scope = _variables(shared, {}, overrides)
    modifiers = list(_modifiers(shared, scope, ""))
    for name, stage in stages.items():
        modifiers += _modifiers(stage, scope | _variables(stage, scope, overrides), str(name))
    if unused := [name for name in overrides if name not in _names(shared, *stages.values())]:
        raise UserError(f"--recipe_args: {unused[0]!r} is not a variable of the recipe; it has {', '.join(scope)}")
    if not modifiers:
        raise UserError("recipe: it has no modifiers; give a SparseML recipe")
    others = {str(name): value for name, value in shared.items() if isinstance(value, dict) and "modifiers" not in name}
    return Recipe(modifiers, others)


def _is_stage(value: Any) -> bool:
    return isinstance(value, dict) and any("modifiers" in str(key) for key in value)


def _names(*containers: Mapping[str, Any]) -> set[str]:
    return {name for container in containers for name in container}


def _check_size(content: Any) -> None:
    waiting, seen = [content], 0
    while waiting:
        value, seen = waiting.pop(), seen + 1
        if seen > _MOST_VALUES:
            raise UserError(f"recipe: it has more than {_MOST_VALUES} values; that is not a recipe")
        if isinstance(value, Modifier):
            value = value.options
        waiting += value.values() if isinstance(value, Mapping) else value if isinstance(value, list) else ()


def _variables(container: Mapping[str, Any], outer: Mapping[str, Any], overrides: Mapping[str, Any]) -> dict[str, Any]:
    """Scalars of a recipe or a stage; one may be made of others, in any order."""
    waiting = {
        name: overrides.get(name, value)
        for name, value in container.items()
        if isinstance(name, str) and "modifiers" not in name and not isinstance(value, dict)
    }
    found: dict[str, Any] = {}
    while waiting:
        ready = {}
        for name, value in waiting.items():
            try:
                ready[name] = _evaluated(value, {**outer, **found})
            except KeyError:
                continue
        if not ready:
            name, value = next(iter(waiting.items()))
            raise UserError(f"recipe: {name}: {value} needs a variable that is not there, or needs itself; fix it")
        found |= ready
        waiting = {name: value for name, value in waiting.items() if name not in ready}
    return found


def _modifiers(container: Mapping[str, Any], scope: Mapping[str, Any], stage: str) -> Iterator[Modifier]:
    for key, value in container.items():
        if "modifiers" not in str(key):
            continue
        # A list of tags, a list of {name: options}, or one {name: options} for all.
        for entry in value if isinstance(value, list) else [value]:
            pairs = [(entry.name, entry.options)] if isinstance(entry, Modifier) else _pairs(entry, str(key))
            for name, options in pairs:
                try:
                    yield Modifier(name, _evaluated(dict(options), scope), stage)
                except KeyError as error:
                    raise UserError(f"recipe: {name} needs the variable {error}, which is not there; add it") from error


def _pairs(entry: Any, key: str) -> list[tuple[str, Mapping[str, Any]]]:
    named = isinstance(entry, dict) and all(isinstance(options, dict | None) for options in entry.values())
    if not named:
        raise UserError(
            f"recipe: {key} holds {str(entry)[:40]!r}, which is not a modifier; write '- !Name' and its options"
        )
    return [(str(name), options or {}) for name, options in entry.items()]


def _evaluated(value: Any, scope: Mapping[str, Any]) -> Any:
    if isinstance(value, dict):
        return {name: _evaluated(inner, scope) for name, inner in value.items()}
    if isinstance(value, list):
        return [_evaluated(inner, scope) for inner in value]
    if not isinstance(value, str) or not (match := _EVAL.match(value.strip())):
        return value
    if match[1].strip() in scope:
        return scope[match[1].strip()]  # text and lists too, which one cannot calculate with
    numbers = {name: found for name, known in scope.items() if (found := number(known)) is not None}
    return calculate(match[1], numbers)
