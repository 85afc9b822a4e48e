"""How a file of text is probably read: its encoding, delimiter and header, and the length of its texts.

Functions of bytes, lines and numbers alone.
"""

import csv
import math
import re
from collections.abc import Sequence
from typing import Any

from lit_compress.functional.entities import is_entity_tag

__all__ = [
    "guess_delimiter",
    "guess_encoding",
    "guess_length",
    "has_header",
    "is_column_file",
    "is_number",
    "percentile",
    "split_rows",
]


def guess_encoding(content: bytes) -> str:
    r"""The encoding of a text.

    Example:
        >>> [guess_encoding(text) for text in ("Käse".encode(), "Käse".encode("latin-1"), b"\x93so\x94")]
        ['utf-8-sig', 'latin-1', 'cp1252']

    """
    if content.startswith((b"\xff\xfe", b"\xfe\xff")):
        return "utf-16"
    try:
        content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        # Cut in the middle of a last character, where only the beginning of a file was read.
        if error.end >= len(content) and error.start >= len(content) - 3:
            return "utf-8-sig"
        # Printable there, and control characters in latin-1.
        return "cp1252" if re.search(rb"[\x80-\x9f]", content) else "latin-1"
    return "utf-8-sig"


def guess_delimiter(lines: Sequence[str], default: str, quoting: bool, is_cut: bool = False) -> str | None:
    r"""What is between the fields of a table's first lines.

    Args:
        lines: complete ones, the header first.
        default: taken when it divides every line into as many fields.
        quoting: whether fields may stand in quotation marks.
        is_cut: whether lines follow, which the last row may go on in.

    Returns:
        None where nothing divides the lines into as many fields.

    Example:
        >>> guess_delimiter(["text;label", "good, really;1"], ",", quoting=True)
        ';'

    """
    for sign in dict.fromkeys((default, "\t", ";", "|", ",")):
        if len({len(row) for row in split_rows(lines, sign, quoting, is_cut)} - {0}) == 1 and sign in lines[0]:
            return sign
    return default if default in lines[0] else None


def split_rows(lines: Sequence[str], delimiter: str, quoting: bool, is_cut: bool = False) -> list[list[str]]:
    """Fields of lines; where lines follow, without the last row, which may go on in them, unless it is the only one."""
    usual = csv.field_size_limit(sum(map(len, lines)) + 1)  # a line of text may be longer than usual
    try:
        rows = list(csv.reader(lines, delimiter=delimiter, quoting=csv.QUOTE_MINIMAL if quoting else csv.QUOTE_NONE))
    finally:
        csv.field_size_limit(usual)
    return rows[:-1] if is_cut and len(rows) > 1 else rows


def has_header(rows: Sequence[Sequence[str]]) -> bool:
    """Whether the first row names the columns: no number, no sentence, and nothing that stands in its column again.

    Columns of numbers alone and those that are nearly all blank need no name.

    Example:
        >>> has_header([["text", "label"], ["a good film", "1"]]), has_header([["1", "a good film"], ["0", "bad"]])
        (True, False)

    """
    first, rest = rows[0], rows[1:]
    below = [[row[place] for row in rest if len(row) > place] for place in range(len(first))]
    return any(name.strip() for name in first) and all(map(_is_name, first, below))


def _is_name(name: str, below: Sequence[str]) -> bool:
    """Whether the first cell of a column is the name of the others."""
    if not name.strip():
        # The index that pandas writes, or what spreadsheets leave at the end of rows, into which some text spills.
        return all(map(is_number, below)) or sum(not cell.strip() for cell in below) >= 0.9 * len(below)
    return name not in below and not is_number(name) and len(name.split()) <= 4


def is_column_file(lines: Sequence[str]) -> bool:
    """Whether lines are words with tags: as many fields in each, a tag of an entity at the end, sentences apart."""
    rows = [line.split() for line in lines if not line.startswith("-DOCSTART-")]
    words = [row for row in rows if row]
    same = len({len(row) for row in words}) == 1
    return same and len(words[0]) > 1 and len(words) < len(rows) and all(is_entity_tag(row[-1]) for row in words)


def guess_length(lengths: Sequence[int], most: int = 512) -> int:
    """A longest input that leaves 99 % of the texts whole: a multiple of 8, at least 16.

    Args:
        lengths: in tokens, special tokens included.
        most: never more than this.

    Example:
        >>> guess_length([10, 20, 61]), guess_length([3]), guess_length([900])
        (64, 16, 512)

    """
    return min(max(16, -(-percentile(lengths, 99) // 8) * 8), most)


def percentile(values: Sequence[int], share: int) -> int:
    """The smallest value that ``share`` % of the values do not exceed."""
    ordered = sorted(values)
    return ordered[max(-(-share * len(ordered) // 100) - 1, 0)]


def is_number(value: Any) -> bool:
    """Whether a value is a finite number, or the text of one; truth values are none."""
    try:
        return not isinstance(value, bool) and math.isfinite(float(value))
    except (TypeError, ValueError):
        return False
