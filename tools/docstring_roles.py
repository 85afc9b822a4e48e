"""For the API reference: roles of docstrings, such as :func:`fold`, become links where the site has the name.

mkdocs.yml names this file as an extension of griffe, which reads the sources for mkdocstrings.
"""

import re
from typing import Any

import griffe

_ROLE = re.compile(r":(?:meth|class|func|mod|attr|data|obj|exc):`~?([^`]+)`")
_MATH = re.compile(r":math:`([^`]+)`")
_EXAMPLE = re.compile(r"^Example:$", re.MULTILINE)


class DocstringRoles(griffe.Extension):
    """Rewrites the docstring of every object of a package once it is loaded."""

    def on_package(self, *, pkg: griffe.Module, **kwargs: Any) -> None:
        _rewrite(pkg)


def _rewrite(obj: griffe.Object) -> None:
    if obj.docstring:
        text = _MATH.sub(r"`\1`", obj.docstring.value)
        text = _EXAMPLE.sub("Examples:", text)  # the name under which griffe knows doctests
        obj.docstring.value = _ROLE.sub(lambda match: _link(obj, match[1]), text)
    for member in obj.members.values():
        if isinstance(member, griffe.Object):
            _rewrite(member)


def _link(obj: griffe.Object, name: str) -> str:
    """An optional reference: a name that no page shows stays code, and is no warning."""
    target = name
    first, _, rest = name.partition(".")
    try:
        path = obj.resolve(first)
        target = f"{path}.{rest}" if rest else path
        target = obj.modules_collection[target].canonical_path
    except (griffe.NameResolutionError, KeyError, griffe.AliasResolutionError):
        pass
    return f'<autoref optional identifier="{target}"><code>{name}</code></autoref>'
