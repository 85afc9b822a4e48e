"""What a file of examples is for, and how it is best read: task, columns, labels and lengths, with the reasons."""

import math
import statistics
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from datasets import Dataset

from lit_compress.choices import GuessedTask
from lit_compress.data.guess import Guess
from lit_compress.data.guess_file import guess_length, percentile
from lit_compress.data.guess_source import guess_source, some_rows
from lit_compress.data.tables import load_tokenizer
from lit_compress.data.text_data import TextData
from lit_compress.errors import UserError
from lit_compress.export.run_folder import text_data
from lit_compress.models.load import load_config
from lit_compress.models.positions import longest_input
from lit_compress.sentence_settings import settings_of
from lit_compress.sources import resolve_source

__all__ = ["GuessedData", "guess_data", "student_epochs", "teacher_epochs"]

_CASED, _UNCASED = "google-bert/bert-base-cased", "google-bert/bert-base-uncased"
_TEXTS = 1_000  # counted for the lengths
_MOST_TOKENS = 512
_WORD = 1.3  # tokens
_STEPS = 1_000  # optimizer steps that a short training should have
_MODULES: dict[str, str] = {
    "classification": "TextClassification",
    "regression": "TextClassification",
    "multi-label": "MultiLabelClassification",
    "token-classification": "TokenClassification",
    "question-answering": "QuestionAnswering",
    "pretraining": "MaskedLanguageModeling",
    "embedding": "SentencePairs",
    "reranking": "RankedPairs",
}


@dataclass(frozen=True, kw_only=True)
class GuessedData:
    """What a file of examples is for, and how it is best read.

    Args:
        guess: what it was taken for.
        model: encoder, as given or a usual one.
        options: of the data module.
        why: a few words about an option, by its name.
        rows: of the file.
        steps: optimizer steps of an epoch.
        tokens: of a row on average.

    """

    guess: Guess
    model: str
    options: dict[str, Any]
    why: dict[str, str]
    rows: int
    steps: int
    tokens: int

    @property
    def module(self) -> str:
        """Class of the data module, as configurations name it."""
        return _MODULES[self.guess.task]

    @property
    def section(self) -> dict[str, Any]:
        """The `data` section of a configuration."""
        return {"class_path": f"lit_compress.data.{self.module}", "init_args": dict(self.options)}

    @property
    def inputs(self) -> int:
        """What the model reads for a row: each text of an embedding, the query with each document of a reranker."""
        count = len(self.options.get("text_columns", ()))
        return {"embedding": count, "reranking": count - 1}.get(self.guess.task, 1)

    def texts(self, tokenizer: str) -> TextData:
        """The data module, which reads with the tokenizer of a model; not set up yet."""
        return text_data(self.section["class_path"], {"tokenizer": tokenizer, **self.options})

    def to_json(self) -> dict[str, Any]:
        """JSON types, for :meth:`from_json`."""
        return asdict(self)

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> "GuessedData":
        """What :meth:`to_json` described."""
        return cls(**{**content, "guess": Guess(**content["guess"])})


def guess_data(
    file: str,
    val: str | None = None,
    model: str | None = None,
    task: GuessedTask | None = None,
    text_columns: list[str] | None = None,
    label_column: str | None = None,
    given: Mapping[str, Any] | None = None,
) -> GuessedData:
    """What a file of examples is for and how it is best read.

    Args:
        file: training examples.
        val: validation examples; without them a tenth of the rows is held out.
        model: folder or hub name of the encoder, whose tokenizer counts lengths; None is BERT-base.
        task: instead of the one that the columns look like.
        text_columns: instead of those that are guessed.
        label_column: instead of the one that is guessed.
        given: options of the data module that are decided already.

    Raises:
        UserError: the file cannot be read, or has no column for the task.

    """
    given = given or {}
    source = guess_source(file, task, text_columns, label_column, given)
    guess = source.guess
    model = model or (_CASED if guess.task == "token-classification" else _UNCASED)
    options: dict[str, Any] = {"train_file": file}
    options |= ({"val_file": val} if val else {}) | source.reading | guess.options | {**given}
    data = _reader(guess, options, model)
    rows, found, why, lengths = _measured(guess, options, model, data)
    options = {**options, **found, **given}
    why = {"val_file": "as given"} | guess.why | why
    if guess.task == "embedding" and "pooling" not in options and not _says_pooling(model):
        options["pooling"] = "mean"
        why["pooling"] = "of a model that does not say; those of sentence-transformers keep their own"
    held_out = not data.files["val"]  # which a saved split may be, too
    if held_out and "val_fraction" not in given:
        options["val_fraction"] = 0.1
        why["val_fraction"] = "no validation file was given: a tenth of the examples is held out"
    why = {key: reason for key, reason in why.items() if key not in given}
    trained = (1 - options["val_fraction"]) * rows if held_out else rows
    examples = round(min(trained, options.get("limit") or trained))
    steps = max(math.ceil(examples / options["batch_size"]), 1)
    tokens = math.ceil(statistics.mean(min(length, options["max_length"]) for length in lengths or [math.inf]))
    return GuessedData(guess=guess, model=model, options=options, why=why, rows=rows, steps=steps, tokens=tokens)


def teacher_epochs(steps: int) -> int:
    """Epochs of a fine-tuning, 3 to 10, so that small data has about a thousand optimizer steps.

    Args:
        steps: of an epoch.

    Example:
        >>> teacher_epochs(10), teacher_epochs(200), teacher_epochs(5000)
        (10, 5, 3)

    """
    return min(max(-(-_STEPS // steps), 3), 10)


def student_epochs(steps: int) -> int:
    """Epochs of a compression, 3 to 20, so that small data has about two thousand optimizer steps."""
    return min(max(-(-2 * _STEPS // steps), 3), 20)


def _reader(guess: Guess, options: dict[str, Any], model: str) -> TextData:
    """The data module, for the longest texts that the model takes."""
    lengths_of = {"max_length": _longest(model)} | ({"doc_stride": 0} if guess.task == "question-answering" else {})
    return text_data(f"lit_compress.data.{_MODULES[guess.task]}", {"tokenizer": model, **options, **lengths_of})


def _longest(model: str) -> int:
    return _most_tokens(model) if _is_local(model) else _MOST_TOKENS


def _says_pooling(model: str) -> bool:
    if not _is_local(model):
        return False
    try:
        return settings_of(load_config(model, "--model")) is not None
    except UserError as error:
        raise UserError(f"--model: {str(error).removeprefix('--model: ')}") from error


def _is_local(model: str) -> bool:
    return Path(resolve_source(model, "--model")).exists()


def _measured(
    guess: Guess, options: dict[str, Any], model: str, data: TextData
) -> tuple[int, dict[str, int], dict[str, str], list[int]]:
    """Rows, the lengths and batch sizes of a data module that reads them, each with its reason, and tokens of rows.

    Tokens are those of some rows; of none where all rows are filled.
    """
    local, most = _is_local(model), _longest(model)
    table = data.rows("train")
    assert table is not None
    if data.files["val"]:
        data.rows("val")
    _ = data.task  # which looks at the labels
    if guess.task == "pretraining":
        reason = f"sequences are filled up to this; the model takes {most}" if local else "BERT's longest"
        return len(table), {"max_length": most, "batch_size": 32}, {"max_length": reason}, []
    if guess.task == "question-answering":
        length = min(384, most)
        found = {"max_length": length, "doc_stride": length // 3, "batch_size": 16}
        return len(table), found, {"max_length": "windows of a context", "doc_stride": "tokens that windows share"}, []
    chosen = some_rows(table, _TEXTS)
    lengths = [*(_token_counts(data, guess, chosen) if local else _word_counts(guess, chosen))]
    length = options.get("max_length") or guess_length(lengths, most)
    long = sum(each > length for each in lengths)
    unit = "tokens" if local else f"tokens (words x {_WORD})"
    shares = ", ".join(f"{share} %: {percentile(lengths, share)}" for share in (50, 90, 99))
    reason = f"{unit} of the texts, {shares}; {100 * long / len(lengths):.3g} % are longer"
    batch = 32 if length <= 256 else 16
    return len(table), {"max_length": length, "batch_size": batch}, {"max_length": reason}, lengths


def _most_tokens(model: str) -> int:
    """The longest input of a model and its tokenizer, and no more than usual."""
    positions = longest_input(load_config(model, "--model")) or _MOST_TOKENS
    return min(_MOST_TOKENS, positions, load_tokenizer(model, "--model").model_max_length)


def _texts(guess: Guess, table: Dataset) -> Iterator[list[str]]:
    """The words or texts of each row."""
    names = guess.options.get("text_columns") or [guess.options.get("token_column", "tokens")]
    for row in table.to_list():
        yield row[names[0]] if isinstance(row[names[0]], list) else [str(row[name]) for name in names]


def _inputs(guess: Guess, table: Dataset) -> Iterator[list[str]]:
    """The texts of each input: all of a row together, for vectors each alone, for rerankers the query with each."""
    for texts in _texts(guess, table):
        if guess.task == "embedding":
            yield from ([text] for text in texts)
        elif guess.task == "reranking":
            yield from ([texts[0], text] for text in texts[1:])
        else:
            yield texts


def _word_counts(guess: Guess, table: Dataset) -> Iterator[int]:
    for texts in _inputs(guess, table):
        yield round(_WORD * sum(len(text.split()) for text in texts)) + 3


def _token_counts(data: TextData, guess: Guess, table: Dataset) -> Iterator[int]:
    words = guess.task == "token-classification"
    for texts in _inputs(guess, table):
        given: list[Any] = [texts] if words else texts
        yield len(data.tokenizer(*given, is_split_into_words=words, truncation=False)["input_ids"])
