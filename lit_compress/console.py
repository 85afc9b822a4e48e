"""Lines on the console, printed as they are."""

from rich.console import Console

__all__ = ["say"]


def say(line: str) -> None:
    """Print a line; brackets, colons and numbers in it mean nothing, and it is not cut at the width of the terminal."""
    Console(soft_wrap=True, emoji=False).print(line, markup=False, highlight=False)
