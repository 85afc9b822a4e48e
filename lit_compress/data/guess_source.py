"""What a file of examples is taken for, and with which encoding, delimiter and names of columns it is read."""

import gzip
from collections.abc import Callable
from dataclasses import dataclass, replace
from io import StringIO
from pathlib import Path
from typing import Any

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


def guess_source(
    file: str, task: GuessedTask | None, text_columns: list[str] | None, label_column: str | None
) -> GuessedSource:
    """What a file is taken for."""
    path = Path(resolve_source(file, "file"))
    suffix = file_suffix(path)
    if path.is_dir() and saved_splits(file, "file") is None:
        return _text_folder(path, file, task, text_columns, label_column)
    if path.is_file() and suffix not in TYPED:
        return _text_file(path, file, suffix, task, text_columns, label_column)
    if path.is_file() and suffix == ".json" and '"paragraphs"' in _head(path).decode(errors="replace"):
        _refuse_choices("question-answering", f"{file!r} is SQuAD's", task, text_columns, label_column)
        squad = QuestionAnswering(train_file=file, no_answer=True, tokenizer=_TOKENIZER).rows("train")
        assert squad is not None
        return GuessedSource(reading={}, guess=guess_answers(squad["answers"]))
    columns = _columns(load_table(file, "file"))
    return GuessedSource(reading={}, guess=guess_task(columns, task, text_columns, label_column))


def _text_folder(
    path: Path, file: str, task: GuessedTask | None, text_columns: list[str] | None, label_column: str | None
) -> GuessedSource:
    """A folder of texts, or of class folders with texts."""
    texts = sorted(path.glob("*/*.txt"))
    if not texts and any(path.glob("*.txt")):
        return GuessedSource(reading={}, guess=_text(file, task, text_columns, label_column))
    content = b"".join(map(Path.read_bytes, texts))[:_MOST_BYTES]
    encoding = guess_encoding(content)
    reading = {} if encoding == "utf-8-sig" else {"encoding": encoding}
    table = load_table(file, "file", encoding=encoding)
    return GuessedSource(reading=reading, guess=guess_task(_columns(table), task, text_columns, label_column))


def _text_file(
    path: Path,
    file: str,
    suffix: str,
    task: GuessedTask | None,
    text_columns: list[str] | None,
    label_column: str | None,
) -> GuessedSource:
    """A file of lines: a table, words with tags, or text."""
    content = _head(path, _MOST_BYTES)
    head, encoding = content[:_HEAD], guess_encoding(content)
    reading: dict[str, Any] = {} if encoding == "utf-8-sig" else {"encoding": encoding}
    # Not `splitlines`, which divides a text at more characters than a table has between its rows.
    lines = [*StringIO(head.decode(encoding, errors="replace"), newline="")]
    lines = [line for line in lines if line.strip() or suffix not in (".csv", ".tsv")]
    is_cut = len(head) == _HEAD or len(lines) > _LINES
    lines = (lines[:-1] if len(head) == _HEAD and len(lines) > 1 else lines)[:_LINES]
    if not lines:
        raise UserError(f"file: {file!r} is empty")
    if suffix not in (".csv", ".tsv") and (task == "token-classification" or (not task and is_column_file(lines))):
        why = {"train_file": "a word a line, its tag at the end, blank lines between sentences"}
        return GuessedSource(reading=reading, guess=Guess(task="token-classification", why=why))
    default = "," if suffix == ".csv" else "\t"
    delimiter = guess_delimiter(lines, default, quoting=suffix == ".csv", is_cut=is_cut)
    if suffix not in (".csv", ".tsv") and delimiter != "\t":
        return GuessedSource(reading=reading, guess=_text(file, task, text_columns, label_column))
    if delimiter not in (default, None):
        reading["delimiter"] = delimiter
    rows = [row for row in split_rows(lines, delimiter or default, suffix == ".csv", is_cut) if row]
    names = None if has_header(rows) else [f"column_{number}" for number in range(1, len(rows[0]) + 1)]
    table = load_table(file, "file", names, encoding, delimiter=reading.get("delimiter"))
    guess = guess_task(_columns(table), task, text_columns, label_column)
    if guess.task == "pretraining" and (names or "delimiter" in reading):
        raise UserError(
            f"file: {file!r} has no column that looks like a label, and for pretraining a table needs a header and the "
            "delimiter of its ending; give --label_column, or the text alone as .txt"
        )
    if names:
        reading["columns"] = names
        guess = replace(
            guess, why=guess.why | {"columns": "its first row is not a header: give the columns better names"}
        )
    return GuessedSource(reading=reading, guess=guess)


def _text(file: str, task: GuessedTask | None, text_columns: list[str] | None, label_column: str | None) -> Guess:
    _refuse_choices("pretraining", f"{file!r} is text without columns", task, text_columns, label_column)
    return Guess(task="pretraining", why={"train_file": "text without columns"})


def _refuse_choices(
    only: GuessedTask, what: str, task: GuessedTask | None, text_columns: list[str] | None, label_column: str | None
) -> None:
    """Refuse another task, or columns, for a file that is for one task and has none."""
    texts = "; to learn from texts alone and a teacher, see SentenceTexts in the documentation"
    if task not in (None, only):
        alone = texts if task == "embedding" else ""
        raise UserError(f"--task: {what}, for {only} alone; {task} needs a table with columns{alone}")
    for key, value in (("text_columns", text_columns), ("label_column", label_column)):
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
