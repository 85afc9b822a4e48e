"""Texts of which each becomes a vector: pairs with a score, texts that belong together, texts alone."""

import hashlib
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from datasets import Dataset, load_dataset
from datasets.exceptions import DatasetGenerationError
from torch import Tensor

from lit_compress.data.tables import cached_map
from lit_compress.data.text_data import TextData
from lit_compress.errors import UserError
from lit_compress.sources import resolve_source
from lit_compress.tasks import Batch, EmbeddingTask, Task
from lit_compress.text_files import BUILDERS, check_fields, check_there, file_suffix, header_hint, read_failure

__all__ = ["SentencePairs", "SentenceTexts"]

_SIDES = ("query", "document")  # prompts that `encode_query` and `encode_document` of sentence-transformers look for


class SentencePairs(TextData):
    """Texts for sentence embeddings: two and how similar they are, or a query, its document and hard negatives.

    Each text is read by itself; those of an example are neighbours in a batch, see
    :class:`~lit_compress.tasks.EmbeddingTask`. ``predict`` reads the first column alone.

    Args:
        train_file: ``.tsv``, ``.csv``, ``.jsonl`` or ``.parquet`` (also ``.gz``).
        val_file: validation examples; default: ``val_fraction`` of the training examples is held out.
        text_columns: two columns with a score, or without one two or more: a text, one that belongs to it, and texts
            that do not.
        label_column: score of the two texts; None ranks instead, where all other texts of a batch are negatives.
        score_range: lowest and highest score, which become 0 and 1; None takes scores from -1 to 1 as cosines.
        pooling: how the vectors of tokens become the vector of a text, for models that do not say (those of
            sentence-transformers do, and keep theirs).
        normalize: whether vectors have length 1, for models that do not say; None is true.
        scale: what cosines are multiplied by where texts are ranked.
        prompts: text before each text of a column, in the order of ``text_columns``.
        columns: column names of files without a header.
        delimiter: one character between the fields of ``.csv``, ``.tsv`` and ``.txt``; None is a comma in ``.csv``, and
            a tab in the others.
        options: see :class:`TextOptions`.

    """

    def __init__(
        self,
        train_file: str | None = None,
        val_file: str | None = None,
        *,
        text_columns: Sequence[str] = ("anchor", "positive"),
        label_column: str | None = None,
        score_range: tuple[float, float] | None = None,
        pooling: Literal["mean", "cls", "max"] | None = None,
        normalize: bool | None = None,
        scale: float = 20.0,
        prompts: Sequence[str] | None = None,
        columns: Sequence[str] | None = None,
        delimiter: str | None = None,
        **options: Any,
    ) -> None:
        self.text_columns = [text_columns] if isinstance(text_columns, str) else list(text_columns)
        self.label_column, self.score_range, self.scale = label_column, score_range, scale
        self.pooling: Literal["mean", "cls", "max"] | None = pooling
        self.normalize = normalize
        self.columns, self.delimiter = columns, delimiter
        self.prompts = dict(zip(self.text_columns, prompts or [""] * len(self.text_columns), strict=False))
        self.prompts_given = prompts is not None
        self._check_columns(prompts)
        super().__init__(train_file=train_file, val_file=val_file, **options)
        check_fields(delimiter, columns, self.files, self.options.hub)
        self.task  # noqa: B018  (says at once what is wrong with the options)
        if self.loss == "ranking" and len(self.text_columns) == 2 and self.batch_size == 1:
            raise UserError(
                "data.batch_size: 1 leaves no negatives, which are the other texts of a batch; give 2 or more, or a "
                "column of negatives in data.text_columns"
            )

    def _column_option(self, split: str) -> str:
        """The option that names the columns of a split."""
        return "text_columns"

    def _check_columns(self, prompts: Sequence[str] | None) -> None:
        count, label = len(self.text_columns), self.label_column
        if count < 2 or (label is not None and count > 2):
            needed = "two columns, whose texts a score compares" if label else "two columns or more"
            raise UserError(f"data.text_columns: {self.text_columns} must be {needed}")
        if len(set(self.text_columns)) < count or label in self.text_columns:
            raise UserError(f"data.text_columns: {self.text_columns} and the label {label!r} must be different columns")
        if prompts is not None and len(prompts) != count:
            raise UserError(f"data.prompts: {list(prompts)} must be {count}, one for each of {self.text_columns}")
        if self.score_range is not None:
            low, high = self.score_range
            if label is None:
                raise UserError("data.score_range: has no effect without data.label_column; leave it out")
            if not (math.isfinite(low) and math.isfinite(high) and low < high):
                raise UserError(f"data.score_range: {[low, high]} must be the lowest and the highest score")

    @property
    def task(self) -> Task:
        prompts, default = self.named_prompts()
        return EmbeddingTask(self.pooling, self.normalize, self.loss, self.scale, self.max_length, prompts, default)

    def named_prompts(self) -> tuple[dict[str, str] | None, str | None]:
        """Prompts by the names that a model is saved with, and the name of one that is before every text."""
        if not self.prompts_given:
            return None, None
        texts = list(self.prompts.values())
        if len({*texts}) == 1:
            return _before_all(texts[0])
        return dict(zip(_SIDES if self.loss == "ranking" else self.text_columns, texts, strict=False)), None

    @property
    def loss(self) -> Literal["cosine", "ranking"] | None:
        """What there is to learn from, see :class:`~lit_compress.tasks.EmbeddingTask`."""
        return "cosine" if self.label_column is not None else "ranking"

    @classmethod
    def predicted_columns(cls, options: Mapping[str, Any]) -> list[str]:
        return super().predicted_columns({"text_columns": ["anchor"]} | dict(options))[:1]

    def columns_of(self, split: str) -> list[str]:
        """The columns of a split whose texts are read."""
        return self.text_columns[:1] if split == "predict" else self.text_columns

    def scored(self, split: str) -> str | None:
        """The column with the scores of a split; None where there are none."""
        return None if split == "predict" else self.label_column

    def load(self, source: str, key: str) -> Dataset:
        return self.read_table(source, key, self.columns, self.delimiter)

    def check(self, table: Dataset, split: str) -> None:
        header = header_hint(table.column_names)
        for column in self.columns_of(split):
            self.require_columns(table, split, {self._column_option(split): column}, header)
        if (label := self.scored(split)) is not None:
            self.require_columns(table, split, {"label_column": label}, header)
            for row, value in enumerate(table[label]):
                self._check_score(value, row, split)
            if split != "train" and len({float(value) for value in table[label]}) < 2:
                raise UserError(
                    f"data.label_column: all scores of {self.source(split)!r} are {table[label][0]}, and equal scores "
                    "measure nothing; give other examples"
                )
        if split == "predict":  # every row gets a vector
            return
        for column in self.columns_of(split):
            batches: Any = table.select_columns(column).iter(1000)
            texts = (text for batch in batches for text in batch[column])
            empty = next((row for row, text in enumerate(texts, 1) if text is None or not str(text).strip()), None)
            if empty is not None:
                raise UserError(
                    f"data.{self._column_option(split)}: {column!r} in row {empty} of {self.source(split)!r} is empty; "
                    "remove the row from the file"
                )

    def _check_score(self, value: Any, row: int, split: str) -> None:
        low, high = self.score_range or (-1.0, 1.0)
        try:
            number = float(value)
        except (TypeError, ValueError):
            number = math.nan
        if not low <= number <= high:
            raise UserError(
                f"data.label_column: {value!r} in row {row + 1} of {self.source(split)!r} is not from {low:g} to "
                f"{high:g}; fix the file, or give the lowest and the highest score as data.score_range"
            )

    def encode(self, table: Dataset, split: str) -> Dataset:
        columns, label = self.columns_of(split), self.scored(split)
        ids = self.ids_of(split)
        low, high = self.score_range or (0.0, 1.0)
        names = self.tokenizer.model_input_names

        def encode(rows: dict[str, list[Any]]) -> dict[str, Any]:
            texts = [[self._text(text, column) for text in rows[column]] for column in columns]
            read: list[Any] = self.tokenized(texts)
            lengths = [[len(ids) for ids in ids_of] for ids_of in zip(*(one["input_ids"] for one in read), strict=True)]
            # The texts of an example one after the other, as its row.
            encoded: dict[str, Any] = {
                name: [
                    [number for text in row for number in text] for row in zip(*(r[name] for r in read), strict=True)
                ]
                for name in names
                if name in read[0]
            }
            encoded |= {"text_lengths": lengths, "length": [max(row) for row in lengths]}
            if label is not None:
                encoded["labels"] = [(float(value) - low) / (high - low) for value in rows[label]]
            return encoded | {name: [*map(_id, texts[place])] for place, name in enumerate(ids)}

        prompts = [self._text("", column) for column in columns]
        settings = [columns, label, ids, self.max_length, self.score_range, prompts, type(self).__name__]
        settings.append("sentences-2")
        return cached_map(table, encode, self.tokenizer, settings, f"Tokenizing {split}")

    def ids_of(self, split: str) -> tuple[str, ...]:
        """Names of targets that tell the texts of the first columns of a split apart."""
        return ("query", "document") if self.loss == "ranking" and split != "predict" else ()

    def tokenized(self, texts: list[list[str]]) -> list[Any]:
        """What the model reads of each example, from the texts of each column: each text by itself."""
        return [self.tokenizer(each, truncation=True, max_length=self.max_length) for each in texts]

    def pad(self, rows: dict[str, list[Any]]) -> dict[str, Tensor]:
        """Inputs ``(texts * examples, tokens)``: the first text of all examples, the second of all, and so on."""
        bounds = np.cumsum(np.pad(np.array(rows["text_lengths"]), ((0, 0), (1, 0))), axis=1)
        places = list(zip(bounds.T[:-1], bounds.T[1:], strict=True))
        texts = {
            name: [row[a:b] for starts, ends in places for row, a, b in zip(values, starts, ends, strict=True)]
            for name, values in self.inputs_of(rows).items()
        }
        return super().pad(texts)

    def collate(self, rows: dict[str, list[Any]]) -> Batch:
        """Inputs as :meth:`pad` has them; of each example ``labels`` in fp32, or ids ``query`` and ``document``."""
        targets = {name: torch.tensor(rows[name]) for name in ("query", "document") if name in rows}
        if "labels" in rows:
            targets["labels"] = torch.tensor(rows["labels"], dtype=torch.float32)
        return self.batch(rows, targets, {"texts": len(rows["text_lengths"][0])})

    def token_examples(self) -> Iterator[tuple[dict[str, Any], dict[str, list[int]]]]:
        table: Any = self.table("val")
        encoded: Any = self._dataset("val")
        for row, seen in zip(table or (), encoded or (), strict=True):
            start = 0
            for column, length in zip(self.columns_of("val"), seen["text_lengths"], strict=True):
                call = {"text": self._text(row[column], column), "truncation": True, "max_length": self.max_length}
                yield call, {name: ids[start : start + length] for name, ids in self.inputs_of(seen).items()}
                start += length

    def _text(self, text: Any, column: str) -> str:
        return self.prompts.get(column, "") + ("" if text is None else str(text))


class SentenceTexts(SentencePairs):
    """Texts without labels for sentence embeddings, about which a teacher says everything; validated on scored pairs.

    Args:
        train_file: a text a line (``.txt`` or any other ending, also ``.gz``; blank lines are left out), or ``.tsv``,
            ``.csv``, ``.jsonl``, ``.parquet`` with a column of texts.
        val_file: two texts and their score in each row: texts alone say nothing about how good a model is.
        text_column: column of the texts to train on and to predict, where there are columns.
        pair_columns: columns of the two texts to validate and test on.
        label_column: column of the score.
        score_range: lowest and highest score, which become 0 and 1; None takes scores from -1 to 1 as cosines.
        pooling: how the vectors of tokens become the vector of a text, for models that do not say.
        normalize: whether vectors have length 1, for models that do not say; None is true.
        prompt: text before each text; None is none, also where a model has one.
        delimiter: one character between the fields of ``.csv``, ``.tsv`` and ``.txt``; None is a comma in ``.csv``, and
            a tab in the others.
        options: see :class:`TextOptions`.

    """

    def __init__(
        self,
        train_file: str | None = None,
        val_file: str | None = None,
        *,
        text_column: str = "text",
        pair_columns: Sequence[str] = ("sentence1", "sentence2"),
        label_column: str = "score",
        score_range: tuple[float, float] | None = None,
        pooling: Literal["mean", "cls", "max"] | None = None,
        normalize: bool | None = None,
        prompt: str | None = None,
        delimiter: str | None = None,
        **options: Any,
    ) -> None:
        self.text_column, self.prompt = text_column, prompt
        super().__init__(
            train_file,
            val_file,
            text_columns=pair_columns,
            label_column=label_column,
            score_range=score_range,
            pooling=pooling,
            normalize=normalize,
            delimiter=delimiter,
            **options,
        )
        if self.prompts_given:
            raise UserError("data.prompts: texts have one prompt, whatever their column; give data.prompt")
        if self.files["train"] and not self.files["val"]:
            raise UserError("data.val_file: missing; texts alone cannot be validated on; give pairs with a score")

    @property
    def loss(self) -> Literal["cosine", "ranking"] | None:
        return None

    def named_prompts(self) -> tuple[dict[str, str] | None, str | None]:
        return (None, None) if self.prompt is None else _before_all(self.prompt)

    @classmethod
    def predicted_columns(cls, options: Mapping[str, Any]) -> list[str]:
        return [options.get("text_column") or "text"]

    def columns_of(self, split: str) -> list[str]:
        return [self.text_column] if split in ("train", "predict") else self.text_columns

    def scored(self, split: str) -> str | None:
        return None if split in ("train", "predict") else self.label_column

    def _column_option(self, split: str) -> str:
        return "text_column" if split in ("train", "predict") else "pair_columns"

    def load(self, source: str, key: str) -> Dataset:
        path = Path(resolve_source(source, key))
        is_table = file_suffix(path) in BUILDERS.keys() - {".txt"}
        if key not in ("data.train_file", "data.predict_file") or path.is_dir() or is_table:
            return super().load(source, key)
        check_there(source, key, "a file")
        options = {name: getattr(self.options, name) for name in ("encoding", "encoding_errors", "cache_dir")}
        try:
            table = load_dataset("text", data_files=[str(path)], split="train", **options)
        except (DatasetGenerationError, OSError, ValueError, LookupError, EOFError) as error:
            raise UserError(f"{key}: {source!r} cannot be read as text: {read_failure(error)}") from error
        assert isinstance(table, Dataset)
        if key == "data.train_file":
            table = table.filter(lambda text: bool(text.strip()), input_columns="text")
            if not len(table):
                raise UserError(f"{key}: {source!r} has no text")
        return table if self.text_column == "text" else table.rename_column("text", self.text_column)

    def _text(self, text: Any, column: str) -> str:
        return (self.prompt or "") + ("" if text is None else str(text))


def _before_all(prompt: str) -> tuple[dict[str, str], str | None]:
    """The names of a prompt that is before every text, and the one that programs put there by themselves."""
    return dict.fromkeys(_SIDES, prompt), _SIDES[0] if prompt else None


def _id(text: str) -> int:
    """A number that equal texts share, int64."""
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big", signed=True)
