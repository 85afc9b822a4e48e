"""Sentences or sentence pairs with a label: classification and regression."""

import logging
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Literal

import numpy as np
import torch
from datasets import ClassLabel, Dataset, List
from lightning.pytorch.utilities import rank_zero_only

from lit_compress.data.augmentation import MaskedWordReplacement
from lit_compress.data.missing import missing_row
from lit_compress.data.tables import tokenize
from lit_compress.data.text_data import TextData
from lit_compress.errors import UserError
from lit_compress.tasks import Batch, ClassificationTask, RegressionTask, Task
from lit_compress.text_files import check_fields, header_hint

__all__ = ["TextClassification"]


class TextClassification(TextData):
    """Text tables from files, class folders or the hub; tokenized once, cached, batched by length, sharded by rank.

    Args:
        train_file: ``.tsv``, ``.csv``, ``.jsonl`` or ``.parquet`` (also ``.gz``), a folder with one folder of
            ``.txt`` files per class, or ``package:name/path`` inside an installed package.
        val_file: validation examples, in any of these forms; default: ``val_fraction`` of the training examples is held
            out.
        task: ``classification`` or ``regression``.
        text_columns: one column, or two for sentence pairs.
        label_column: column of the label.
        columns: column names of files without a header (GLUE's CoLA).
        delimiter: one character between the fields of ``.csv``, ``.tsv`` and ``.txt``; None is a comma in ``.csv``, and
            a tab in the others.
        class_weights: weight of each class in the loss, by the name of the class; ``balanced`` gives all classes the
            same total weight (examples / classes / examples of the class). The loss is the mean over the examples.
        sampling: ``shuffled`` uses each training example once per epoch; ``balanced`` draws as many with replacement,
            the same number from each class.
        augmentation: makes more training examples from each; on the training split only, after ``limit``.
        options: see :class:`TextOptions`.

    """

    def __init__(
        self,
        train_file: str | None = None,
        val_file: str | None = None,
        *,
        task: Literal["classification", "regression"] = "classification",
        text_columns: Sequence[str] | str = ("text",),
        label_column: str = "label",
        columns: Sequence[str] | None = None,
        delimiter: str | None = None,
        class_weights: Literal["balanced"] | dict[str, float] | None = None,
        sampling: Literal["shuffled", "balanced"] = "shuffled",
        augmentation: MaskedWordReplacement | None = None,
        **options: Any,
    ) -> None:
        text_columns = [text_columns] if isinstance(text_columns, str) else list(text_columns)
        if len(text_columns) not in (1, 2):
            raise UserError(f"data.text_columns: {text_columns} must be one column, or two for sentence pairs")
        if label_column in text_columns:
            raise UserError(
                f"data.label_column: {label_column!r} is one of data.text_columns, too: the model would read the label"
            )
        _check_imbalance(class_weights, sampling, task)
        self.regression = task == "regression"
        self.text_columns, self.label_column, self.columns = text_columns, label_column, columns
        self.delimiter, self.class_weights, self.sampling = delimiter, class_weights, sampling
        self.augmentation = augmentation
        super().__init__(pair=len(text_columns) == 2, train_file=train_file, val_file=val_file, **options)
        check_fields(delimiter, columns, self.files, self.options.hub)

    @property
    def task(self) -> Task:
        return RegressionTask() if self.regression else ClassificationTask(self.labels, self._class_weights())

    @property
    def labels(self) -> list[str] | None:
        """Class names in the order of their ids (numbers by value, text by alphabet); None for regression."""
        if self.regression:
            return None
        if self._labels is None:
            # From all rows, also those that are held out or beyond the limit: a split must not lose a class.
            table = self.rows("train")
            if table is None:
                raise UserError("data.train_file: missing; it says which labels there are")
            feature = table.features[self.label_column]
            if isinstance(feature, ClassLabel):
                self._labels = list(feature.names)
            else:
                values = [str(value) for value in table[self.label_column]]
                if "" in values:
                    raise UserError(
                        f"data.label_column: no label in row {values.index('') + 1} of {self.source('train')!r}; fix "
                        "the file"
                    )
                self._labels = sorted(set(values), key=label_order)
        if len(self._labels) < 2:
            raise UserError(
                f"data.label_column: {self.label_column!r} has the single value {self._labels} "
                f"in {self.source('train')!r}; a classification needs two; for numbers set data.task to regression"
            )
        return self._labels

    def use_labels(self, labels: Sequence[str]) -> None:
        super().use_labels(labels)
        if self.class_weights == "balanced":
            # A trained model is evaluated, and its training file need not be there to be counted.
            self.class_weights = None

    def _class_weights(self) -> list[float] | None:
        """What each class counts in the loss, in the order of their ids."""
        if self.class_weights is None:
            return None
        labels = list(self.labels or ())
        if isinstance(self.class_weights, str):
            table = self.table("train")
            assert table is not None  # the labels are from it
            targets = self._label(table, "train")[0]({column: table[column] for column in self.label_sources[1]})
            return self._balanced(np.asarray(targets), len(labels))
        weights = {str(name): weight for name, weight in self.class_weights.items()}
        for wrong in sorted(weights.keys() ^ set(labels)):
            what = "is not a class" if wrong in weights else "has no weight"
            raise UserError(f"data.class_weights: {wrong!r} {what} of {self.source('train')!r}; name each of {labels}")
        return [weights[label] for label in labels]

    def _balanced(self, targets: np.ndarray, classes: int) -> list[float]:
        """Weights with which all classes count the same together, from the class of each row."""
        counts = np.bincount(targets, minlength=classes)
        return (len(targets) / classes / np.maximum(counts, 1)).tolist()

    def load(self, source: str, key: str) -> Dataset:
        return self.read_table(source, key, self.columns, self.delimiter)

    @property
    def label_sources(self) -> tuple[str, list[str]]:
        """The option that names the columns with labels, and those columns."""
        return "label_column", [self.label_column]

    def check(self, table: Dataset, split: str) -> None:
        header = header_hint(table.column_names)
        for column in self.text_columns:
            self.require_columns(table, split, {"text_columns": column}, header)
        key, columns = self.label_sources
        for column in columns if split != "predict" else ():
            self.require_columns(table, split, {key: column}, header)
        self.check_labels(table, split)
        for column in self.text_columns:
            if (row := missing_row(table, column)) is not None:
                raise UserError(
                    f"data.text_columns: no {column!r} in row {row} of {self.source(split)!r}; fix the file"
                )

    def check_labels(self, table: Dataset, split: str) -> None:
        """Raise a ``UserError`` when the column of labels holds something else than one for each row."""
        if split == "predict":
            return
        if isinstance(table.features[self.label_column], List):
            raise UserError(
                f"data.label_column: {self.label_column!r} of {self.source(split)!r} holds lists of labels; take "
                "data: MultiLabelClassification"
            )
        if (row := missing_row(table, self.label_column)) is not None:
            raise UserError(f"data.label_column: no label in row {row} of {self.source(split)!r}; fix the file")

    def table(self, split: str) -> Dataset | None:
        table = super().table(split)
        if table is None or split != "train" or self.augmentation is None:
            return table
        return self.augmentation(table, self.text_columns)

    def encode(self, table: Dataset, split: str) -> Dataset:
        for column in self.text_columns:
            # In batches: row by row, `datasets` takes much longer to give a column.
            batches: Any = table.select_columns(column).iter(1000)
            if empty := sum(not str(text).strip() for batch in batches for text in batch[column]):
                rank_zero_only(logging.getLogger(__name__).warning)(
                    "data.text_columns: %d of %d rows to %s have an empty %r and are read as they are; leave them out "
                    "of the file if they mean nothing",
                    *(empty, len(table), split, column),
                )
        label = self._label(table, split) if split != "predict" else None
        return tokenize(table, self.tokenizer, self.text_columns, self.max_length, f"Tokenizing {split}", label)

    def collate(self, rows: dict[str, list[Any]]) -> Batch:
        """Ids and masks ``(batch, tokens)``, padded to the longest row; target ``labels`` ``(batch,)``."""
        if "labels" not in rows:
            return self.batch(rows, {})
        dtype = torch.float32 if self.regression else torch.long
        return self.batch(rows, {"labels": torch.tensor(rows["labels"], dtype=dtype)})

    def sampling_weights(self, dataset: Dataset) -> np.ndarray | None:
        if self.sampling == "shuffled":
            return None
        classes = np.asarray(dataset["labels"])
        return 1 / np.bincount(classes)[classes]

    def token_examples(self) -> Iterator[tuple[dict[str, Any], dict[str, list[int]]]]:
        table: Any = self.table("val")
        encoded: Any = self._dataset("val")
        for row, seen in zip(table or (), encoded or (), strict=True):
            texts = dict(zip(("text", "text_pair"), (str(row[column]) for column in self.text_columns), strict=False))
            yield texts | {"truncation": True, "max_length": self.max_length}, self.inputs_of(seen)

    def _label(self, table: Dataset, split: str) -> tuple[Callable[[dict[str, list[Any]]], list[Any]], Any]:
        """What turns rows into targets, and what that depends on; every value is checked."""
        column, labels = self.label_column, self.labels
        source = self.source(split) or self.source("train")
        if labels is None:
            for row, value in enumerate(table[column]):
                _check_finite(value, row, source, column)
            return lambda rows: [float(value) for value in rows[column]], (column, None)
        feature = table.features[column]
        # By name: the numbers behind the names may differ between two files.
        names = dict(enumerate(feature.names)) if isinstance(feature, ClassLabel) else {}
        ids = {name: index for index, name in enumerate(labels)}
        for row, value in enumerate(names.get(value, value) for value in table[column]):
            if str(value) not in ids:
                raise UserError(
                    f"data.{split}_file: label {str(value)!r} in row {row + 1} of {source!r} never occurs in training; "
                    f"known are {labels[:10]}; fix the file or data.label_column"
                )
        return lambda rows: [ids[str(names.get(value, value))] for value in rows[column]], (column, [labels, names])


def _check_imbalance(class_weights: Any, sampling: str, task: str) -> None:
    if sampling not in ("shuffled", "balanced"):
        raise UserError(f"data.sampling: {sampling!r} must be shuffled or balanced")
    if task == "regression":
        for key, given in (("class_weights", class_weights is not None), ("sampling", sampling != "shuffled")):
            if given:
                raise UserError(f"data.{key}: has no effect on a regression, which has no classes; leave it out")
    if isinstance(class_weights, dict):
        for name, weight in class_weights.items():
            if not (math.isfinite(weight) and weight > 0):
                raise UserError(f"data.class_weights: {weight} of {name!r} must be a positive number")
    elif class_weights not in (None, "balanced"):
        raise UserError(f"data.class_weights: {class_weights!r} must be balanced, or a number for each class")


def label_order(label: str) -> tuple[bool, float, str]:
    """Key of an order of labels: numbers by value, then text by alphabet."""
    try:
        number = float(label)
    except ValueError:
        number = math.nan
    # A nan among numbers is neither above nor below them: sorted() would depend on where it starts.
    return (True, 0.0, label) if math.isnan(number) else (False, number, label)


def _check_finite(value: Any, row: int, source: str | None, column: str) -> None:
    try:
        finite = math.isfinite(float(value))
    except (TypeError, ValueError):
        finite = False
    if not finite:
        raise UserError(
            f"data.label_column: {value!r} in row {row + 1} of {source!r}, column {column!r}, is not a finite number; "
            "fix the file, or set data.task to classification"
        )
