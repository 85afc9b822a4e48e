"""What a part of a page, a Markdown file and a model card is made of."""

from dataclasses import dataclass

__all__ = ["Section", "Table"]


@dataclass(frozen=True, kw_only=True)
class Table:
    """Rows of text under a header; with a ``summary`` a page shows them only when asked."""

    header: tuple[str, ...]
    rows: list[tuple[str, ...]]
    summary: str = ""


@dataclass(frozen=True, kw_only=True)
class Section:
    """A part of a report.

    Attributes:
        name: for links.
        title: headline.
        lines: sentences.
        figures: names of the figures that belong here, shown where they exist.
        tables: in order.
        code: title and text of what is shown as it is.

    """

    name: str
    title: str
    lines: tuple[str, ...] = ()
    figures: tuple[str, ...] = ()
    tables: tuple[Table, ...] = ()
    code: tuple[tuple[str, str], ...] = ()
