"""Find modules by name and replace linears and embedding tables in place."""

import re
from collections.abc import Iterator, Sequence
from fnmatch import fnmatchcase

from torch import nn

from lit_compress.errors import UserError
from lit_compress.nn.compressible import CompressibleLinear
from lit_compress.nn.embedding import CompressibleEmbedding

__all__ = [
    "compressible_layers",
    "compressible_tables",
    "make_compressible",
    "make_tables_compressible",
    "match_modules",
    "matches",
]


def match_modules(
    model: nn.Module,
    targets: Sequence[str],
    ignore: Sequence[str] = (),
    kind: type[nn.Module] = nn.Linear,
    key: str = "targets",
) -> dict[str, nn.Module]:
    """Modules of one kind whose dotted name matches a target and no ignore pattern, in model order.

    Args:
        model: names are relative to it.
        targets: glob patterns (``*.attention.*``) or, after ``re:``, regular expressions matched from the start.
        ignore: patterns of the same kind; modules that match one are left out.
        kind: class the modules must be of.
        key: config key named in the error.

    Raises:
        UserError: a pattern matches no module: a setting without effect is a mistake.

    """
    candidates = {name: module for name, module in model.named_modules() if isinstance(module, kind)}
    for pattern in [*targets, *ignore]:
        if not any(matches(name, pattern, key) for name in candidates):
            setting = key if pattern in targets else key.replace("targets", "ignore")
            raise UserError(
                f"{setting}: {pattern!r} matches no {kind.__name__}; the names are like "
                f"{', '.join(repr(name) for name in list(candidates)[:3]) or '(there is none)'}; "
                "write a glob such as '*.attention.*' or a regular expression after 're:'"
            )
    found = {
        name: module
        for name, module in candidates.items()
        if any(matches(name, target, key) for target in targets)
        and not any(matches(name, skip, key) for skip in ignore)
    }
    if not found:
        raise UserError(f"{key}: {list(targets)} without ignore={list(ignore)} leaves no {kind.__name__}; ignore less")
    return found


def make_compressible(model: nn.Module, names: Sequence[str]) -> dict[str, CompressibleLinear]:
    """Replace the named linears by :class:`CompressibleLinear`, in place; those that are already are returned as is.

    Raises:
        UserError: a weight is shared with another module (a decoder tied to the embeddings): masking it would
            silently change both.

    """
    owners = _owners(model)
    layers = {}
    linears = {name: model.get_submodule(name) for name in names}
    for name, linear in linears.items():
        if shared := [other for other in owners[id(linear.weight)] if other != name]:
            raise UserError(f"targets: {name!r} shares its weight with {shared[0]!r}; add it to ignore")
    for name, linear in linears.items():
        assert isinstance(linear, nn.Linear)
        if not isinstance(linear, CompressibleLinear):
            linear = CompressibleLinear.from_linear(linear)
            model.set_submodule(name, linear)
        layers[name] = linear
    return layers


def make_tables_compressible(model: nn.Module, names: Sequence[str], key: str) -> dict[str, CompressibleEmbedding]:
    """Replace the named embedding tables by :class:`CompressibleEmbedding`, in place.

    Raises:
        UserError: a table is shared with another module: after folding, the other would hold rounded values although
            it never computed with them; or it is a subclass with a lookup of its own.

    """
    owners = _owners(model)
    tables = {}
    for name in names:
        table = model.get_submodule(name)
        if shared := [other for other in owners[id(table.weight)] if other != name]:
            raise UserError(
                f"{key}: {name!r} shares its weight with {shared[0]!r}, which would be rounded with it; leave it out"
            )
        if not isinstance(table, CompressibleEmbedding):
            if type(table) is not nn.Embedding:
                raise UserError(f"{key}: {name!r} is a {type(table).__name__} and no plain nn.Embedding; leave it out")
            table = CompressibleEmbedding.from_embedding(table)
            model.set_submodule(name, table)
        tables[name] = table
    return tables


def compressible_layers(model: nn.Module) -> Iterator[tuple[str, CompressibleLinear]]:
    """Names and layers of every :class:`CompressibleLinear`, in model order."""
    return ((name, module) for name, module in model.named_modules() if isinstance(module, CompressibleLinear))


def compressible_tables(model: nn.Module) -> Iterator[tuple[str, CompressibleEmbedding]]:
    """Names and tables of every :class:`CompressibleEmbedding`, in model order."""
    return ((name, module) for name, module in model.named_modules() if isinstance(module, CompressibleEmbedding))


def matches(name: str, pattern: str, key: str) -> bool:
    """Whether a module name matches a glob or, after ``re:``, a regular expression."""
    if pattern.startswith("re:"):
        try:
            return re.match(pattern[3:], name) is not None
        except re.error as error:
            raise UserError(f"{key}: {pattern!r} is not a regular expression: {error}") from error
    return fnmatchcase(name, pattern)


def _owners(model: nn.Module) -> dict[int, list[str]]:
    """Names of the modules that hold each parameter, by the parameter's id."""
    owners: dict[int, list[str]] = {}
    for owner_name, owner in model.named_modules(remove_duplicate=False):
        for parameter in owner.parameters(recurse=False):
            owners.setdefault(id(parameter), []).append(owner_name)
    return owners
