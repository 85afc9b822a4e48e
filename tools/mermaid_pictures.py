"""A hook of mkdocs.yml: ```` ```mermaid ```` blocks of a page become pictures while the site is built.

GitHub draws the same blocks by itself. The site needs no script and no network for it.
"""

import re
from typing import Any

import mermaidx

_BLOCK = re.compile(r"^```mermaid\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def on_page_markdown(markdown: str, **_: Any) -> str:
    return _BLOCK.sub(lambda match: _picture(match[1]), markdown)


def _picture(source: str) -> str:
    # A blank line would end the HTML block in Markdown.
    svg = re.sub(r"\n\s*\n", "\n", mermaidx.render(source, theme="neutral").svg())
    return f'<div class="diagram">{svg}</div>'
