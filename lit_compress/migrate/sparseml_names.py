"""SparseML's ways to name parameters and modules, as patterns of this package."""

import re
from collections.abc import Sequence
from typing import Any

from lit_compress.migrate.draft import Options

__all__ = ["layer_index", "module_patterns", "parameter_patterns"]

_ALL = ("__ALL__", "__ALL_PRUNABLE__")
_WEIGHT = re.compile(r"\\?\.weight\$?$")
_LAYER = re.compile(r"(?:^|\.)layers?\.(\d+)$")


def parameter_patterns(params: Any, options: Options, key: str = "params") -> list[str] | None:
    """Patterns of modules for names of their weights; None when there is none left.

    Names are those of ``named_parameters``; after ``re:`` comes a regular expression matched from the start.

    Args:
        params: one name or several.
        options: what the names belong to, where a name without counterpart is listed.
        key: option of the names.

    Example:
        >>> from lit_compress.migrate.draft import Draft
        >>> parameter_patterns(["re:.*query.weight", "classifier.weight"], Options("GMPruningModifier", {}, Draft()))
        ['re:.*query$', 'classifier']

    """
    patterns = []
    for name in [params] if isinstance(params, str) else params if isinstance(params, Sequence) else []:
        name = str(name)
        if name in _ALL:
            if name == "__ALL__":
                options.change(key, "__ALL__ is every linear here: embeddings, norms and biases are not pruned")
            patterns.append("*")
        elif name.endswith("bias"):
            options.leave_out(key, name, "biases are never pruned here")
        elif name.startswith("re:"):
            # Without `.weight` at its end a pattern matches longer names too, unless it says where it ends.
            patterns.append(_WEIGHT.sub("$", name))
        else:
            patterns.append(name.removesuffix(".weight"))
    if not patterns:
        options.leave_out(key, params, "no layer is named")
    return patterns or None


def module_patterns(names: Sequence[Any]) -> list[str]:
    r"""Patterns of everything at and below some modules.

    Example:
        >>> module_patterns(["bert.encoder", "classifier"])
        ['re:bert\\.encoder(\\.|$)', 're:classifier(\\.|$)']

    """
    return [
        f"re:{str(name)[3:]}" if str(name).startswith("re:") else f"re:{re.escape(str(name))}(\\.|$)" for name in names
    ]


def layer_index(name: str) -> int | None:
    """Which transformer layer a name is; None when it is none.

    Example:
        >>> layer_index("bert.encoder.layer.5"), layer_index("bert.pooler")
        (5, None)

    """
    match = _LAYER.search(name)
    return int(match[1]) if match else None
