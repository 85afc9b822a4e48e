"""Files of examples on the disk: their formats, and what is wrong with one as far as its beginning says.

The standard library, pandas and pyarrow alone: a fit looks at its files before it imports what trains.
"""

import csv
import gzip
import json
import re
import zlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TextIO, cast

import pandas
from pyarrow import parquet

from lit_compress.errors import UserError, first_line
from lit_compress.sources import resolve_source

__all__ = [
    "BUILDERS",
    "TYPED",
    "check_fields",
    "check_json",
    "check_text",
    "check_there",
    "column_names",
    "csv_options",
    "delimiter_hint",
    "file_suffix",
    "header_hint",
    "is_delimited",
    "open_text",
    "read_failure",
    "read_json",
    "require_columns",
    "saved_splits",
]

# Reader of `datasets` for an ending.
BUILDERS = {".tsv": "csv", ".txt": "csv", ".csv": "csv", ".jsonl": "json", ".json": "json", ".parquet": "parquet"}
TYPED = (".jsonl", ".json", ".parquet")  # whose values have types, lists among them
_SEPARATORS = {".tsv": "\t", ".csv": ",", ".txt": "\t"}
_BEGINNING = 2**22  # characters
_SPACE = re.compile(r"[ \t\r\n\ufeff]*")
_FAILURES = (OSError, ValueError, LookupError, EOFError, zlib.error)


def file_suffix(path: Path) -> str:
    """The ending that says the format of a file: the one before ``.gz``."""
    return path.with_suffix("").suffix if path.suffix == ".gz" else path.suffix


def is_delimited(source: str) -> bool:
    """Whether a file is a table with something between its fields."""
    return BUILDERS.get(file_suffix(Path(source))) == "csv"


def check_fields(
    delimiter: str | None, columns: Sequence[str] | None, files: Mapping[str, str | None], hub: str | None = None
) -> None:
    """Refuse a delimiter, or names of columns, that cannot be, or that no source is read with.

    Args:
        delimiter: between fields; None is not given.
        columns: names of a file without a header; None is not given.
        files: by split. One to predict is not looked at: a run has these options of its training file.
        hub: a data set of the hub.

    Raises:
        UserError: it cannot be.

    """
    if delimiter is not None and len(delimiter) != 1:
        raise UserError(f"data.delimiter: {delimiter!r} must be one character")
    sources = [source for source in (*(files[split] for split in files if split != "predict"), hub) if source]
    for key, value in (("delimiter", delimiter), ("columns", columns)):
        if value is not None and sources and not any(map(is_delimited, sources)):
            raise UserError(f"data.{key}: {value!r} has no effect on {sources[0]!r}; leave it out")


def open_text(path: str, encoding: str, errors: str) -> TextIO:
    """A text file for reading, compressed or not."""
    opener = gzip.open if path.endswith(".gz") else open
    return cast("TextIO", opener(path, "rt", encoding=encoding, errors=errors))


def read_failure(error: BaseException) -> str:
    """Why a source could not be read, in one line, and what to do about it where that is known."""
    cause = error.__cause__ or error
    if isinstance(cause, UnicodeError):
        return f"{first_line(cause)}; set data.encoding, for example to latin-1, or data.encoding_errors to replace"
    return first_line(cause)


def saved_splits(source: str, key: str) -> list[str] | None:
    """Names of the splits in a folder of ``DatasetDict.save_to_disk``.

    Returns:
        None where it is not a folder of ``save_to_disk``, an empty list where it is that of one ``Dataset``.

    Raises:
        UserError: the file that names the splits cannot be read.

    """
    path = Path(resolve_source(source, key))
    if (path / "dataset_dict.json").is_file():
        try:
            return json.loads((path / "dataset_dict.json").read_text())["splits"]
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise UserError(
                f"{key}: dataset_dict.json in {source!r} does not say its splits: {first_line(error)}; save it again"
            ) from error
    return [] if (path / "state.json").is_file() and (path / "dataset_info.json").is_file() else None


def check_there(source: str, key: str, wanted: str) -> Path:
    """The path of a file that is there and not empty.

    Raises:
        UserError: it is not; ``wanted`` says what to give.

    """
    path = Path(resolve_source(source, key))
    if not path.is_file():
        raise UserError(f"{key}: {source!r} does not exist; give {wanted}")
    if path.stat().st_size == 0:
        raise UserError(f"{key}: {source!r} is empty")
    return path


def check_text(source: str, key: str, wanted: str, encoding: str, encoding_errors: str) -> Path:
    """:func:`check_there` for a file of text, whose beginning must be text in this encoding.

    Raises:
        UserError: it is not.

    """
    path = check_there(source, key, wanted)
    with _one_line(f"{key}: {source!r} cannot be read"):
        _beginning(path, encoding, encoding_errors)
    return path


def column_names(
    source: str,
    key: str,
    columns: Sequence[str] | None = None,
    encoding: str = "utf-8-sig",
    encoding_errors: str = "strict",
    delimiter: str | None = None,
) -> list[str] | None:
    """The columns of a table, from its beginning.

    Args:
        source: as of :func:`lit_compress.data.tables.load_table`, like all others.
        key: config key named in errors.
        columns: names of a file without a header.
        encoding: of text.
        encoding_errors: ``strict`` or ``replace``.
        delimiter: between fields.

    Returns:
        None where the beginning does not say them, of a folder for example.

    Raises:
        UserError: missing, empty, of an unknown kind, or unreadable in its beginning.

    """
    path = Path(resolve_source(source, key))
    if path.is_dir():
        return None
    suffix = file_suffix(path)
    if path.exists() and suffix not in BUILDERS:
        raise UserError(f"{key}: {source!r} has an unknown format {suffix!r}; known are {', '.join(BUILDERS)}")
    check_there(source, key, "a file (.tsv .csv .jsonl .parquet) or a folder per class")
    with _one_line(f"{key}: {source!r} cannot be read as {suffix[1:]}"):
        if BUILDERS[suffix] == "parquet":
            return None if path.suffix == ".gz" else parquet.read_schema(path).names
        text = _beginning(path, encoding, encoding_errors)
        if BUILDERS[suffix] == "json":
            return _json_names(text)
        options: dict[str, Any] = csv_options(suffix, columns, delimiter)
        options |= {"encoding": encoding, "encoding_errors": encoding_errors}
        raw: dict[str, Any] = options | {"header": None}
        # pandas numbers the second of two columns of one name.
        names = [*pandas.read_csv(path, nrows=1, dtype=str, **raw).iloc[0]]
        head = pandas.read_csv(path, nrows=1, dtype=str, **options)
    if not columns and (twice := next((name for name in names if names.count(name) > 1), None)):
        raise UserError(f"{key}: {source!r} has two columns {twice!r}; rename one")
    if not isinstance(head.index, pandas.RangeIndex):
        raise UserError(
            f"{key}: {source!r} has more fields in its first row than names {list(head.columns)}"
            f"{delimiter_hint(head.columns)}"
        )
    if head.empty:
        raise UserError(f"{key}: {source!r} has a header and no rows")
    return list(head.columns)


def csv_options(suffix: str, columns: Sequence[str] | None, delimiter: str | None) -> dict[str, Any]:
    """How pandas reads a table with something between its fields."""
    options: dict[str, Any] = {"sep": delimiter or _SEPARATORS[suffix], "keep_default_na": False}
    if suffix != ".csv":
        options["quoting"] = csv.QUOTE_NONE
    return options | ({"names": list(columns), "header": None} if columns else {})


def require_columns(names: Sequence[str], source: str | None, columns: Mapping[str, str], hint: str = "") -> None:
    """Every column, by the key that names it, must be there.

    Args:
        names: of the columns that there are.
        source: of them.
        columns: which are needed.
        hint: end of the error.

    Raises:
        UserError: one is not there.

    """
    for key, column in columns.items():
        if column not in names:
            raise UserError(f"data.{key}: {column!r} is not a column of {source!r}; it has {list(names)}{hint}")


def header_hint(names: Sequence[str]) -> str:
    """The end of an error about a column that a table of texts and labels does not have."""
    return delimiter_hint(names) or "; for a file without a header give data.columns"


def delimiter_hint(columns: Sequence[str]) -> str:
    """The end of an error about columns: what seems to be between the fields of a file that was read as one column."""
    header = columns[0] if len(columns) == 1 else ""
    found = next((sign for sign in ";\t|," if sign in header), None)
    if found is None or any(len(name.split()) > 4 for name in header.split(found)):  # a sentence, no names of columns
        return ""
    return f"; its fields seem to be separated by {found!r}, so set data.delimiter"


def check_json(source: str, key: str, encoding: str, encoding_errors: str) -> None:
    """:func:`check_text` for a file that is one JSON value.

    Raises:
        UserError: it is not.

    """
    path = check_text(source, key, "a file", encoding, encoding_errors)
    with _one_line(f"{key}: {source!r} cannot be read"):
        read_json(str(path), encoding, encoding_errors)


def read_json(path: str, encoding: str, errors: str) -> Any:
    """Content of a file of JSON.

    Raises:
        ValueError: it is not JSON.

    """
    with open_text(path, encoding, errors) as file:
        try:
            return json.load(file)
        except json.JSONDecodeError as error:
            raise ValueError(f"it is not JSON: {error}") from None


def _beginning(path: Path, encoding: str, errors: str) -> str:
    """The first characters of a file, one more than are looked at where there are more."""
    with path.open("rb") as file:  # `datasets` goes by these bytes, too, and not by the name
        compressed = path.suffix == ".gz" or file.read(2) == b"\x1f\x8b"
    with (gzip.open if compressed else open)(path, "rt", encoding=encoding, errors=errors) as text:
        return cast("str", text.read(_BEGINNING + 1))


def _json_names(text: str) -> list[str] | None:
    """Keys of all rows, in the order in which they occur: of lines, of JSON in a row, or of one list.

    Raises:
        ValueError: it is not JSON; what is longer than the beginning is not looked at.

    """
    decoder, rows, end = json.JSONDecoder(strict=False), [], 0
    if len(text) > _BEGINNING:
        return None
    while (begin := cast("re.Match[str]", _SPACE.match(text, end)).end()) < len(text):
        row, end = decoder.raw_decode(text, begin)
        rows.append(row)
    rows = rows[0] if len(rows) == 1 and isinstance(rows[0], list) else rows
    if not rows or not all(isinstance(row, dict) for row in rows):
        return None
    return [*dict.fromkeys(name for row in rows for name in row)]


@contextmanager
def _one_line(prefix: str) -> Iterator[None]:
    try:
        yield
    except _FAILURES as error:
        raise UserError(f"{prefix}: {read_failure(error)}") from error
