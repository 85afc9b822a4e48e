"""What a file of examples is taken for, and with which encoding, delimiter and names of columns it is read."""

import gzip
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from io import StringIO
from pathlib import Path
from typing import Any, NamedTuple

from datasets import ClassLabel, Dataset, List

from lit_compress.choices import GuessedTask
from lit_compress.data.guess import Guess, guess_answers, guess_task
from lit_compress.data.guess_file import guess_delimiter, guess_encoding, has_header, is_column_file, split_rows
from lit_compress.data.question_answering import QuestionAnswering
from lit_compress.data.tables import load_table
from lit_compress.errors import UserError
from lit_compress.sources import resolve_source
from lit_compress.text_files import TYPED, file_suffix, saved_splits

__all__ = ["GuessedSource", "guess_source", "some_rows"]

_ROWS = 20_000  # looked at for the task
_HEAD, _LINES = 2**20, 200  # bytes and lines looked at for delimiter and header
_MOST_BYTES = 2**26  # looked at for the encoding
_READING = ("encoding", "encoding_errors", "delimiter", "columns")
_TOKENIZER = "google-bert/bert-base-uncased"  # named where none is needed


@dataclass(frozen=True, kw_only=True)
class GuessedSource:
    """How a file is read, and what it was taken for.

    Args:
        reading: options of the data module about the file alone.
        guess: about what is in it.

    """

    reading: dict[str, Any]
    guess: Guess


class _Wanted(NamedTuple):
    """What a user says instead of a guess."""

    task: GuessedTask | None
    text_columns: list[str] | None
    label_column: str | None


def guess_source(
    file: str,
    task: GuessedTask | None,
    text_columns: list[str] | None,
    label_column: str | None,
    given: Mapping[str, Any],
) -> GuessedSource:
    """What a file is taken for.

    Args:
        file: as of :func:`lit_compress.guessed_data.guess_data`, like all others.
        task: instead of a guess.
        text_columns: instead of a guess.
        label_column: instead of a guess.
        given: options of the data module; those about the file alone are what it is read with.

    Raises:
        UserError: the file cannot be read, or has no column for the task.

    """
    path, wanted = Path(resolve_source(file, "file")), _Wanted(task, text_columns, label_column)
    suffix, reading = file_suffix(path), _given_reading(given)
    if path.is_dir() and saved_splits(file, "file") is None:
        return _text_folder(path, file, wanted, reading)
    if path.is_file() and suffix not in TYPED:
        return _text_file(path, file, wanted, reading)
    encoding = {name: reading[name] for name in ("encoding", "encoding_errors") if name in reading}
    if path.is_file() and suffix == ".json" and '"paragraphs"' in _decoded(_head(path), reading):
        _refuse_choices("question-answering", f"{file!r} is SQuAD's", wanted)
        squad = QuestionAnswering(train_file=file, no_answer=True, tokenizer=_TOKENIZER, **encoding).rows("train")
        assert squad is not None
        return GuessedSource(reading={}, guess=guess_answers(squad["answers"]))
    return GuessedSource(reading={}, guess=guess_task(_columns(load_table(file, "file", **reading)), *wanted))


def _given_reading(given: Mapping[str, Any]) -> dict[str, Any]:
    """Those options of a data module that say how a file is read, checked."""
    reading = {name: given[name] for name in _READING if given.get(name) is not None}
    try:
        _decoded(b"a", reading)
    except (LookupError, TypeError) as error:
        raise UserError(
            f"data.encoding: {reading['encoding']!r} is no encoding; give one that Python knows, such as latin-1"
        ) from error
    if len(delimiter := str(reading.get("delimiter", ","))) != 1:
        raise UserError(f"data.delimiter: {delimiter!r} must be one character")
    names = reading.get("columns", [])
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise UserError(f"data.columns: {names!r} must be a list of names, such as '[text, label]'")
    return reading


def _text_folder(path: Path, file: str, wanted: _Wanted, reading: dict[str, Any]) -> GuessedSource:
    """A folder of texts, or of class folders with texts."""
    texts = sorted(path.glob("*/*.txt"))
    if not texts and any(path.glob("*.txt")):
        return GuessedSource(reading={}, guess=_text(file, wanted))
    reading = _encoding(b"".join(map(Path.read_bytes, texts))[:_MOST_BYTES]) | reading
    return GuessedSource(reading=reading, guess=guess_task(_columns(load_table(file, "file", **reading)), *wanted))


def _text_file(path: Path, file: str, wanted: _Wanted, reading: dict[str, Any]) -> GuessedSource:
    """A file of lines: a table, words with tags, or text."""
    content, suffix = _head(path, _MOST_BYTES), file_suffix(path)
    head, reading = content[:_HEAD], _encoding(content) | reading
    is_table = suffix in (".csv", ".tsv")
    # Not `splitlines`, which divides a text at more characters than a table has between its rows.
    lines = [*StringIO(_decoded(head, reading), newline="")]
    lines = [line for line in lines if line.strip() or not is_table]
    is_cut = len(head) == _HEAD or len(lines) > _LINES
    lines = (lines[:-1] if len(head) == _HEAD and len(lines) > 1 else lines)[:_LINES]
    if not lines:
        raise UserError(f"file: {file!r} is empty")
    if not is_table and (wanted.task == "token-classification" or (not wanted.task and is_column_file(lines))):
        why = {"train_file": "a word a line, its tag at the end, blank lines between sentences"}
        return GuessedSource(reading=reading, guess=Guess(task="token-classification", why=why))
    default = "," if suffix == ".csv" else "\t"
    delimiter = reading.get("delimiter") or guess_delimiter(lines, default, quoting=suffix == ".csv", is_cut=is_cut)
    if not is_table and delimiter != "\t" and not reading.keys() & {"delimiter", "columns"}:
        return GuessedSource(reading=reading, guess=_text(file, wanted))
    if delimiter not in (default, None):
        reading["delimiter"] = delimiter
    rows = [row for row in split_rows(lines, delimiter or default, suffix == ".csv", is_cut) if row]
    has_names = "columns" in reading or has_header(rows)
    if not has_names:
        reading["columns"] = [f"column_{number}" for number in range(1, len(rows[0]) + 1)]
    guess = guess_task(_columns(load_table(file, "file", **reading)), *wanted)
    if guess.task == "pretraining" and reading.keys() & {"columns", "delimiter"}:
        raise UserError(
            f"file: {file!r} has no column that looks like a label, and for pretraining a table needs a header and the "
            "delimiter of its ending; give --label_column, or the text alone as .txt"
        )
    if not has_names:
        guess = replace(
            guess, why=guess.why | {"columns": "its first row is not a header: give the columns better names"}
        )
    return GuessedSource(reading=reading, guess=guess)


def _decoded(content: bytes, reading: Mapping[str, Any]) -> str:
    return content.decode(reading.get("encoding", "utf-8-sig"), errors="replace")


def _encoding(content: bytes) -> dict[str, str]:
    """The option of a data module for the encoding of a text, where it is not the default."""
    encoding = guess_encoding(content)
    return {} if encoding == "utf-8-sig" else {"encoding": encoding}


def _text(file: str, wanted: _Wanted) -> Guess:
    _refuse_choices("pretraining", f"{file!r} is text without columns", wanted)
    return Guess(task="pretraining", why={"train_file": "text without columns"})


def _refuse_choices(only: GuessedTask, what: str, wanted: _Wanted) -> None:
    """Refuse another task, or columns, for a file that is for one task and has none."""
    texts = "; to learn from texts alone and a teacher, see SentenceTexts in the documentation"
    if wanted.task not in (None, only):
        alone = texts if wanted.task == "embedding" else ""
        raise UserError(f"--task: {what}, for {only} alone; {wanted.task} needs a table with columns{alone}")
    for key, value in (("text_columns", wanted.text_columns), ("label_column", wanted.label_column)):
        if value:
            raise UserError(f"--{key}: {what}, so that {value!r} is no column; leave it out, or give a table")


def _head(path: Path, size: int = _HEAD) -> bytes:
    opener: Callable[..., Any] = gzip.open if path.suffix == ".gz" else open
    try:
        with opener(path, "rb") as opened:
            return opened.read(size)
    except (OSError, EOFError) as error:
        raise UserError(f"file: {str(path)!r} cannot be read: {error}") from error


def _columns(table: Dataset) -> dict[str, list[Any]]:
    """Values of some rows, by column; classes by their names."""
    table = some_rows(table, _ROWS)
    found: dict[str, list[Any]] = {}
    for name, feature in table.features.items():
        inner = feature.feature if isinstance(feature, List) else feature
        values = list(table[name])
        if isinstance(inner, ClassLabel):
            names = dict(enumerate(inner.names))
            values = [[names.get(e, e) for e in v] if isinstance(v, list) else names.get(v, v) for v in values]
        found[name] = values
    return found


def some_rows(table: Dataset, most: int) -> Dataset:
    """Rows at equal distances."""
    return table.select(range(0, len(table), -(-len(table) // most)))
