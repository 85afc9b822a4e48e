"""Find modules by name and replace linears in place."""

import re
from collections.abc import Iterator, Sequence
from fnmatch import fnmatchcase

from torch import nn

from lit_compress.errors import UserError
from lit_compress.nn.compressible import CompressibleLinear

__all__ = ["compressible_layers", "make_compressible", "match_modules"]


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
        if not any(_matches(name, pattern, key) for name in candidates):
            setting = key if pattern in targets else key.replace("targets", "ignore")
            raise UserError(
                f"{setting}: {pattern!r} matches no {kind.__name__}; the names are like "
                f"{', '.join(repr(name) for name in list(candidates)[:3]) or '(there is none)'}; "
                "write a glob such as '*.attention.*' or a regular expression after 're:'"
            )
    found = {
        name: module
        for name, module in candidates.items()
        if any(_matches(name, target, key) for target in targets)
        and not any(_matches(name, skip, key) for skip in ignore)
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
    owners: dict[int, list[str]] = {}
    for owner_name, owner in model.named_modules(remove_duplicate=False):
        for parameter in owner.parameters(recurse=False):
            owners.setdefault(id(parameter), []).append(owner_name)
    layers = {}
    for name in names:
        linear = model.get_submodule(name)
        shared = [other for other in owners[id(linear.weight)] if other != name]
        if shared:
            raise UserError(f"targets: {name!r} shares its weight with {shared[0]!r}; add it to ignore")
        assert isinstance(linear, nn.Linear)
        if not isinstance(linear, CompressibleLinear):
            linear = CompressibleLinear.from_linear(linear)
            model.set_submodule(name, linear)
        layers[name] = linear
    return layers


def compressible_layers(model: nn.Module) -> Iterator[tuple[str, CompressibleLinear]]:
    """Names and layers of every :class:`CompressibleLinear`, in model order."""
    return ((name, module) for name, module in model.named_modules() if isinstance(module, CompressibleLinear))


def _matches(name: str, pattern: str, key: str) -> bool:
    if pattern.startswith("re:"):
        try:
            return re.match(pattern[3:], name) is not None
        except re.error as error:
            raise UserError(f"{key}: {pattern!r} is not a regular expression: {error}") from error
    return fnmatchcase(name, pattern)
