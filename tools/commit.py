"""The commit of the code that a row of results was measured with."""

import subprocess
from pathlib import Path

__all__ = ["commit"]

ROOT = Path(__file__).parents[1]
# What a measurement runs. Results, at any depth, change with every run and say nothing about the code.
_CODE = ("lit_compress", "tools", "configs", "pyproject.toml", "constraints.txt", ":!tools/*.csv")


def commit(root: Path = ROOT) -> str:
    """Of the code, with ``+dirty`` when files were changed since; ``unknown`` without a history.

    Args:
        root: of the repository, or of a copy without its history, whose file ``COMMIT`` says it.

    """

    def git(*arguments: str) -> str:
        return subprocess.run(["git", *arguments], cwd=root, capture_output=True, text=True, check=False).stdout.strip()

    if (root / "COMMIT").exists():
        return (root / "COMMIT").read_text().strip()
    changed = git("status", "--porcelain", "--", *_CODE)
    return (git("rev-parse", "--short", "HEAD") or "unknown") + ("+dirty" if changed else "")
