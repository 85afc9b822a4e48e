"""Tables in a terminal: narrow enough for 80 columns; what is too long continues in the next line and is never cut."""

from collections.abc import Sequence

from rich import box
from rich.table import Table
from rich.text import Text

__all__ = ["screen_table"]


def screen_table(title: str, header: Sequence[str], rows: Sequence[Sequence[str]], words: Sequence[str]) -> Table:
    """A table without lines between its columns; names in it are not markup.

    Args:
        title: above it, may be empty.
        header: names of the columns.
        rows: a text for each column.
        words: columns of words, which may be broken; others are figures, which may not.

    """
    table = Table(title=Text(title), title_justify="left", box=box.SIMPLE_HEAD, show_edge=False, padding=(0, 1, 0, 0))
    for index, column in enumerate(header):
        if column in words:
            table.add_column(column, overflow="fold")
        else:
            wide = max((len(row[index]) for row in rows), default=0)
            table.add_column(
                column if len(column) <= wide else column.replace(" ", "\n"), justify="right", no_wrap=True
            )
    for row in rows:
        table.add_row(*map(Text, row))
    return table
