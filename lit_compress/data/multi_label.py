"""Sentences or sentence pairs with any number of labels."""

from collections.abc import Callable, Sequence
from typing import Any, Literal

import numpy as np
import torch
from datasets import ClassLabel, Dataset

from lit_compress.data.classification import TextClassification, label_order
from lit_compress.data.missing import missing_row
from lit_compress.errors import UserError
from lit_compress.tasks import Batch, MultiLabelTask, Task

__all__ = ["MultiLabelClassification"]

Rows = dict[str, list[Any]]

_BINARY = {"0": False, "0.0": False, "False": False, "1": True, "1.0": True, "True": True}


class MultiLabelClassification(TextClassification):
    """Text tables whose rows have any number of labels: in a column with lists, or in a column of 0 and 1 for each.

    Args:
        train_file: ``.jsonl`` or ``.parquet`` with lists of labels, ``.csv`` or ``.tsv`` with labels in one field, or
            any of them with a column of 0 and 1 for each label.
        val_file: validation examples, in any of these forms; default: ``val_fraction`` of the training examples is held
            out.
        label_column: column with the labels of an example, a list or a text; an empty one is an example without labels.
        label_separator: separator between labels when they are in one text.
        label_columns: columns of 0 and 1, which name the labels, instead of one with lists.
        threshold: a label is predicted when its probability is above this.
        class_weights: weight of a positive example of each label in the loss of that label, by its name; ``balanced``
            is examples without it / examples with it.
        options: see :class:`TextClassification`.

    """

    def __init__(
        self,
        train_file: str | None = None,
        val_file: str | None = None,
        *,
        label_column: str = "labels",
        label_separator: str = ",",
        label_columns: Sequence[str] | None = None,
        threshold: float = 0.5,
        class_weights: Literal["balanced"] | dict[str, float] | None = None,
        **options: Any,
    ) -> None:
        if not 0 < threshold < 1:
            raise UserError(f"data.threshold: {threshold} must be in (0, 1)")
        if not label_separator:
            raise UserError("data.label_separator: '' separates nothing; give a character, for example ';'")
        if label_columns is not None and not label_columns:
            raise UserError("data.label_columns: [] names no label; give the columns of 0 and 1, or leave it out")
        if options.get("sampling", "shuffled") != "shuffled":
            raise UserError("data.sampling: has no effect on examples with several labels; use data.class_weights")
        self.label_separator, self.threshold = label_separator, threshold
        self.label_columns = list(label_columns) if label_columns is not None else None
        super().__init__(
            train_file=train_file,
            val_file=val_file,
            task="classification",
            label_column=label_column,
            class_weights=class_weights,
            **options,
        )

    @property
    def task(self) -> Task:
        return MultiLabelTask(self.labels, self.threshold, self._class_weights())

    @property
    def labels(self) -> list[str]:
        """The columns of 0 and 1 in their order, or what occurs in the lists (numbers by value, text by alphabet)."""
        if self._labels is None:
            # From all rows, also those that are held out or beyond the limit: a split must not lose a label.
            table = self.rows("train")
            if table is None:
                raise UserError("data.train_file: missing; it says which labels there are")
            found = self.label_columns or sorted({name for row in self._names(table) for name in row}, key=label_order)
            if not found:
                raise UserError(
                    f"data.label_column: no row of {self.source('train')!r} has a label in {self.label_column!r}; name "
                    "the column with the labels, or set data.label_columns"
                )
            self._labels = found
        return self._labels

    @property
    def label_sources(self) -> tuple[str, list[str]]:
        return ("label_columns", self.label_columns) if self.label_columns else super().label_sources

    def check_labels(self, table: Dataset, split: str) -> None:
        """Whether a value is a list, or a text with labels in it, is seen when it is read."""
        if split == "predict" or self.label_columns:
            return
        if (row := missing_row(table, self.label_column, in_lists_alone=True)) is not None:
            raise UserError(
                f"data.label_column: the list in row {row} of {self.source(split)!r} has a missing label; fix the file"
            )

    def collate(self, rows: dict[str, list[Any]]) -> Batch:
        """Ids and masks ``(batch, tokens)``, padded to the longest row; target ``labels`` ``(batch, labels)``."""
        if "labels" not in rows:
            return self.batch(rows, {})
        return self.batch(rows, {"labels": torch.tensor(rows["labels"], dtype=torch.float32)})

    def _label(self, table: Dataset, split: str) -> tuple[Callable[[Rows], list[Any]], Any]:
        """What turns rows into targets, and what that depends on; every row is checked."""
        ids = {name: number for number, name in enumerate(self.labels)}
        source = self.source(split) or self.source("train")
        convert = self._reader(table)
        for row, names in enumerate(self._names(table)):
            if unknown := next((name for name in names if name not in ids), None):
                raise UserError(
                    f"data.{split}_file: label {unknown!r} in row {row + 1} of {source!r} never occurs in training; "
                    f"known are {self.labels[:10]}; fix the file or data.{self.label_sources[0]}"
                )

        def targets(rows: Rows) -> list[list[float]]:
            return [[float(label in names) for label in ids] for names in convert(rows)]

        return targets, [*self.label_sources, self.label_separator, self.labels, "multi-label-1"]

    def _balanced(self, targets: np.ndarray, classes: int) -> list[float]:
        positive = targets.sum(0)
        return (np.maximum(len(targets) - positive, 1) / np.maximum(positive, 1)).tolist()

    def _names(self, table: Dataset) -> list[list[str]]:
        """Names of the labels of each row."""
        columns = self.label_sources[1]
        return self._reader(table)({column: table[column] for column in columns})

    def _reader(self, table: Dataset) -> Callable[[Rows], list[list[str]]]:
        """A function from columns of some rows to the names of their labels."""
        if self.label_columns:
            return self._from_columns
        feature = getattr(table.features[self.label_column], "feature", None)
        names = feature.names if isinstance(feature, ClassLabel) else None

        def read(rows: Rows) -> list[list[str]]:
            return [self._from_list(value, names) for value in rows[self.label_column]]

        return read

    def _from_columns(self, rows: Rows) -> list[list[str]]:
        columns = self.label_columns or []
        for column in columns:
            if wrong := [value for value in rows[column] if str(value) not in _BINARY]:
                raise UserError(
                    f"data.label_columns: {wrong[0]!r} in column {column!r} must be 0 or 1; fix the file, or name "
                    "another"
                )
        return [[name for name in columns if _BINARY[str(rows[name][row])]] for row in range(len(rows[columns[0]]))]

    def _from_list(self, value: Any, names: list[str] | None) -> list[str]:
        if value is None:
            return []
        given: Any = value.split(self.label_separator) if isinstance(value, str) else value
        if not isinstance(given, list):
            raise UserError(
                f"data.label_column: {value!r} in {self.label_column!r} is not a list of labels; for one "
                "label each use TextClassification"
            )
        return [names[label] if names else str(label).strip() for label in given if str(label).strip()]
