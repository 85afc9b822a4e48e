"""The pages, their fenced blocks and the commands in them."""

import re
import shlex
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
PAGES = sorted(
    [
        ROOT / "README.md",
        ROOT / "CONTRIBUTING.md",
        ROOT / "CHANGELOG.md",
        ROOT / "examples/README.md",
        *(ROOT / "docs").rglob("*.md"),
    ]
)

_FENCE = re.compile(r"^```(\w+)(?: title=\"([^\"]+)\")?\n(.*?)^```$", re.MULTILINE | re.DOTALL)


@dataclass(frozen=True)
class Block:
    """A fenced block: where it stands, its language, the file name in its title, and its text."""

    place: str
    language: str
    title: str
    text: str


def blocks(page: Path, language: str | None = None) -> list[Block]:
    """The fenced blocks of a page, those of one language or all."""
    text = page.read_text()
    found = []
    for match in _FENCE.finditer(text):
        line = text.count("\n", 0, match.start()) + 1
        block = Block(f"{page.relative_to(ROOT)}:{line}", match[1], match[2] or "", match[3])
        if language in (None, block.language):
            found.append(block)
    return found


def commands(program: str) -> list[tuple[str, list[str]]]:
    """Place and arguments of every use of a program in the shell blocks, also behind ``srun`` or ``torchrun``."""
    found = []
    for page in PAGES:
        for block in blocks(page, "bash"):
            for line in block.text.replace("\\\n", " ").splitlines():
                words = shlex.split(line, comments=True)
                if program in words:
                    arguments = words[words.index(program) + 1 :]
                    # A redirection and an unset shell variable are not arguments.
                    end = next((i for i, word in enumerate(arguments) if word.startswith((">", "|"))), len(arguments))
                    found.append((block.place, [word for word in arguments[:end] if not word.startswith("$")]))
    return found
