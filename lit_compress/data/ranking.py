"""Queries with documents that are more or less relevant to them, read together."""

import logging
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal

import numpy as np
from datasets import Dataset

from lit_compress.data.sentences import SentencePairs
from lit_compress.errors import UserError
from lit_compress.tasks import RerankingTask, Task

__all__ = ["RankedPairs"]

_log = logging.getLogger(__name__)


class RankedPairs(SentencePairs):
    """Queries and documents for rerankers (cross-encoders): a document and its score, or a relevant one and others.

    Args:
        train_file: ``.tsv``, ``.csv``, ``.jsonl`` or ``.parquet`` (also ``.gz``).
        val_file: validation examples; default: ``val_fraction`` of the training examples is held out, all of a query
            or none.
        text_columns: query and document, with a score; or without one query, relevant document, and one or more that
            are not relevant.
        label_column: score of the document; None learns that the first document is better than the others.
        score_range: lowest and highest score, which become 0 and 1; from the middle on a document counts as relevant.
        columns: column names of files without a header.
        delimiter: as in :class:`TextClassification`.
        options: see :class:`TextOptions`.

    """

    def __init__(
        self,
        train_file: str | None = None,
        val_file: str | None = None,
        *,
        text_columns: Sequence[str] = ("query", "document"),
        label_column: str | None = "label",
        score_range: tuple[float, float] | None = None,
        columns: Sequence[str] | None = None,
        delimiter: str | None = None,
        **options: Any,
    ) -> None:
        if label_column is None and len(text_columns) < 3:
            raise UserError(
                f"data.text_columns: {list(text_columns)} must be query, relevant document and one or more others; for "
                "documents with a score give data.label_column"
            )
        super().__init__(
            train_file,
            val_file,
            text_columns=text_columns,
            label_column=label_column,
            score_range=score_range or (None if label_column is None else (0.0, 1.0)),
            columns=columns,
            delimiter=delimiter,
            pair=True,
            **options,
        )
        given = {"prompts": self.prompts_given, "pooling": self.pooling, "normalize": self.normalize is not None}
        if of_vectors := next((name for name, value in given.items() if value), None):
            raise UserError(f"data.{of_vectors}: has no effect on a reranker; leave it out")

    @property
    def task(self) -> Task:
        kind: Literal["pointwise", "listwise"] = "listwise" if self.label_column is None else "pointwise"
        return RerankingTask(kind)

    @classmethod
    def predicted_columns(cls, options: Mapping[str, Any]) -> list[str]:
        columns: Sequence[str] = options.get("text_columns") or ("query", "document")
        return list(columns)[:2]

    def columns_of(self, split: str) -> list[str]:
        return self.text_columns[:2] if split == "predict" else self.text_columns

    def ids_of(self, split: str) -> tuple[str, ...]:
        return () if split == "predict" else ("query",)

    def held_out(self, table: Dataset, count: int) -> np.ndarray:
        """All documents of queries drawn at random: what is ranked is whole, and was not trained on."""
        if len(set(table[self.text_columns[0]])) == 1:
            _log.warning("data.val_file: missing, and all documents are for one query: it is validated on, too")
            return super().held_out(table, count)
        return self._of_queries(table, count)

    def drawn(self, table: Dataset, split: str, count: int) -> Dataset:
        """About ``count`` rows; to validate and test, all documents of a query or none."""
        return super().drawn(table, split, count) if split == "train" else table.select(self._of_queries(table, count))

    def _of_queries(self, table: Dataset, count: int) -> np.ndarray:
        """Rows, in order, of queries drawn at random, each whole: ``count`` at most, or those of the smallest query.

        Queries without a relevant document are not drawn: they measure nothing.
        """
        rows: dict[str, list[int]] = {}
        for row, query in enumerate(table[self.text_columns[0]]):
            rows.setdefault(query, []).append(row)
        if self.label_column is not None:
            low, high = self.score_range or (0.0, 1.0)
            right = [float(score) >= (low + high) / 2 for score in table[self.label_column]]
            rows = {query: found for query, found in rows.items() if any(right[row] for row in found)} or rows
        queries = list(rows.values())
        taken: list[int] = []
        for place in np.random.default_rng(self.options.split_seed).permutation(len(queries)):
            if len(taken) + len(queries[place]) <= count:
                taken += queries[place]
        return np.sort(taken or min(queries, key=len))

    def tokenized(self, texts: list[list[str]]) -> list[Any]:
        """What the model reads of each example: the query with each document."""
        query, *documents = texts
        return [self.tokenizer(query, each, truncation=True, max_length=self.max_length) for each in documents]

    def token_examples(self) -> Iterator[tuple[dict[str, Any], dict[str, list[int]]]]:
        table: Any = self.table("val")
        encoded: Any = self._dataset("val")
        for row, seen in zip(table or (), encoded or (), strict=True):
            start = 0
            query, *documents = (self._text(row[column], column) for column in self.columns_of("val"))
            for document, length in zip(documents, seen["text_lengths"], strict=True):
                call = {"text": query, "text_pair": document, "truncation": True, "max_length": self.max_length}
                yield call, {name: ids[start : start + length] for name, ids in self.inputs_of(seen).items()}
                start += length
