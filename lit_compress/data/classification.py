"""Sentences or sentence pairs with a label: classification and regression."""

import math
import os
from collections.abc import Callable, Sequence
from typing import Any, Literal

import numpy as np
import torch
from datasets import ClassLabel, Dataset, load_dataset
from lightning.pytorch import LightningDataModule
from torch import Tensor
from torch.utils.data import DataLoader

from lit_compress.data.batches import LengthGroupedBatches, ResumableDataLoader
from lit_compress.data.text import load_table, load_tokenizer, tokenize
from lit_compress.errors import UserError

__all__ = ["TextClassification"]


class TextClassification(LightningDataModule):
    """Text tables from files, class folders or the hub; tokenised once, cached, batched by length, sharded by rank.

    Args:
        train_file: ``.tsv``, ``.csv``, ``.jsonl`` or ``.parquet`` (also ``.gz``), a folder with one folder of
            ``.txt`` files per class, or ``package:name/path`` inside an installed package.
        val_file: likewise; without it ``val_fraction`` of the training rows is held out.
        test_file: likewise, with labels, for ``test``.
        predict_file: likewise, labels not needed, for ``predict``.
        hub: dataset name on the hub instead of files, for example ``nyu-mll/glue``.
        hub_config: its configuration, for example ``sst2``.
        hub_val_split: its validation split.
        tokenizer: hub name, folder or ``package:``; on the command line the model's by default.
        task: ``classification`` or ``regression``.
        text_columns: one column, or two for sentence pairs.
        label_column: column of the label.
        columns: column names of files without a header (GLUE's CoLA).
        encoding: of text files; the default also accepts a byte order mark (GLUE's MRPC).
        encoding_errors: ``strict`` refuses bytes that are no text in this encoding, ``replace`` reads over them.
        max_length: longest input in tokens; longer ones are truncated.
        batch_size: examples per training batch and device.
        eval_batch_size: examples per evaluation batch and device; None is ``batch_size``.
        limit: train on this many rows, drawn with ``split_seed``; None takes all.
        val_fraction: share of training rows held out when there is no ``val_file``.
        split_seed: determines the hold-out and ``limit``; apart from the run's seed, so that runs share their split.
        num_workers: loader processes; 0 loads in the training process.
        cache_dir: for Arrow files; None is the `datasets` default.

    """

    def __init__(
        self,
        train_file: str | None = None,
        val_file: str | None = None,
        test_file: str | None = None,
        predict_file: str | None = None,
        hub: str | None = None,
        hub_config: str | None = None,
        hub_val_split: str = "validation",
        tokenizer: str | None = None,
        task: Literal["classification", "regression"] = "classification",
        text_columns: Sequence[str] = ("text",),
        label_column: str = "label",
        columns: Sequence[str] | None = None,
        encoding: str = "utf-8-sig",
        encoding_errors: Literal["strict", "replace"] = "strict",
        max_length: int = 128,
        batch_size: int = 32,
        eval_batch_size: int | None = None,
        limit: int | None = None,
        val_fraction: float = 0.1,
        split_seed: int = 0,
        num_workers: int = 0,
        cache_dir: str | None = None,
    ) -> None:
        super().__init__()
        if (train_file is None) == (hub is None):
            raise UserError("data: give either data.train_file or data.hub")
        if tokenizer is None:
            raise UserError("data.tokenizer: missing; give a hub name or a model folder")
        if len(text_columns) not in (1, 2):
            raise UserError(f"data.text_columns: {list(text_columns)} must be one column, or two for sentence pairs")
        sizes = {"batch_size": batch_size, "eval_batch_size": eval_batch_size, "limit": limit, "max_length": max_length}
        for name, value in sizes.items():
            if value is not None and value < 1:
                raise UserError(f"data.{name}: {value} must be at least 1")
        if not 0 < val_fraction < 1:
            raise UserError(f"data.val_fraction: {val_fraction} must be in (0, 1)")
        self.files = {"train": train_file, "val": val_file, "test": test_file, "predict": predict_file}
        self.hub, self.hub_config, self.hub_val_split = hub, hub_config, hub_val_split
        self.tokenizer_name, self.task = tokenizer, task
        self.text_columns, self.label_column = list(text_columns), label_column
        self.columns, self.encoding, self.encoding_errors = columns, encoding, encoding_errors
        self.max_length, self.batch_size = max_length, batch_size
        self.eval_batch_size = eval_batch_size or batch_size
        self.limit, self.val_fraction, self.split_seed = limit, val_fraction, split_seed
        self.num_workers, self.cache_dir = num_workers, cache_dir
        self.tokenizer = load_tokenizer(tokenizer, "data.tokenizer")
        special = self.tokenizer.num_special_tokens_to_add(pair=len(text_columns) == 2)
        if max_length < special:
            raise UserError(f"data.max_length: {max_length} must be at least {special}, the special tokens alone")
        longest = self.tokenizer.model_max_length
        if max_length > longest:
            raise UserError(f"data.max_length: {max_length} is above {longest}, the longest input of {tokenizer!r}")
        self._labels: list[str] | None = None
        self._train_loader: ResumableDataLoader | None = None
        self._position = {"consumed": 0}
        self._tokenized: dict[str, Dataset] = {}

    @property
    def labels(self) -> list[str] | None:
        """Class names in the order of their ids (numbers by value, text by alphabet); None for regression."""
        if self.task == "regression":
            return None
        if self._labels is None:
            # From all rows, also those that are held out or beyond the limit: a split must not lose a class.
            table = self._rows("train")
            assert table is not None
            feature = table.features[self.label_column]
            if isinstance(feature, ClassLabel):
                self._labels = list(feature.names)
            else:
                values = table.unique(self.label_column)
                if None in values or "" in values:
                    row = next(i for i, value in enumerate(table[self.label_column]) if value in (None, ""))
                    raise UserError(
                        f"data.label_column: no label in row {row + 1} of {self._source('train')!r}; mend the file"
                    )
                self._labels = sorted({str(value) for value in values}, key=_label_order)
            if len(self._labels) < 2:
                raise UserError(
                    f"data.label_column: {self.label_column!r} has the single value {self._labels} "
                    f"in {self._source('train')!r}; a classification needs two; for numbers set data.task to regression"
                )
        return self._labels

    def prepare_data(self) -> None:
        """Read and tokenise every split into the cache, on one process of each machine."""
        for split in self.files:
            self._dataset(split)

    def setup(self, stage: str) -> None:
        """Open the cached splits."""
        self.prepare_data()

    def train_dataloader(self) -> DataLoader:
        loader = self._loader("train", shuffle=True)
        assert isinstance(loader, ResumableDataLoader)
        loader.epoch_ended = lambda: self.trainer is not None and self.trainer.is_last_batch
        loader.load_state_dict(self._position)
        self._train_loader, self._position = loader, {"consumed": 0}
        return loader

    def state_dict(self) -> dict[str, int]:
        """Position in the epoch, for the checkpoint.

        Lightning restores a loader's own state only when nobody asked for the number of training steps before, which
        every learning-rate schedule does; the state of a data module it always restores.
        """
        return self._train_loader.state_dict() if self._train_loader else self._position

    def load_state_dict(self, state_dict: dict[str, int]) -> None:
        """Continue the epoch where the checkpoint was made, whether the loader exists already or not."""
        if self._train_loader is None:
            self._position = state_dict
        else:
            self._train_loader.load_state_dict(state_dict)

    def val_dataloader(self) -> DataLoader:
        return self._loader("val", shuffle=False)

    def test_dataloader(self) -> DataLoader:
        return self._loader("test", shuffle=False)

    def predict_dataloader(self) -> DataLoader:
        """In the order of the file: predictions line up with its rows."""
        dataset = self._require("predict")
        return DataLoader(
            dataset,  # type: ignore[arg-type]
            batch_size=self.eval_batch_size,
            collate_fn=self._collate_rows,
            num_workers=self.num_workers,
        )

    def collate(self, rows: dict[str, list[Any]]) -> dict[str, Tensor]:
        """Columns of a batch, padded to its longest row: ids and masks ``(batch, tokens)``, labels and ``index``."""
        inputs = {name: rows[name] for name in rows if name not in ("labels", "length", "index")}
        batch = dict(self.tokenizer.pad(inputs, return_tensors="pt"))
        if "labels" in rows:
            batch["labels"] = torch.tensor(
                rows["labels"], dtype=torch.float32 if self.task == "regression" else torch.long
            )
        if "index" in rows:
            batch["index"] = torch.tensor(rows["index"])
        return batch

    def _collate_rows(self, rows: list[dict[str, Any]]) -> dict[str, Tensor]:
        return self.collate({name: [row[name] for row in rows] for name in rows[0]})

    def _loader(self, split: str, shuffle: bool) -> DataLoader:
        dataset = self._require(split)
        trainer = self.trainer
        batches = LengthGroupedBatches(
            np.asarray(dataset["length"]),
            self.batch_size if shuffle else self.eval_batch_size,
            shuffle=shuffle,
            seed=int(os.environ.get("PL_GLOBAL_SEED", 0)),
            num_replicas=trainer.world_size if trainer else 1,
            rank=trainer.global_rank if trainer else 0,
        )
        loader = ResumableDataLoader if shuffle else DataLoader
        return loader(
            dataset,  # type: ignore[arg-type]
            sampler=batches,
            batch_size=None,
            collate_fn=self.collate,  # type: ignore[arg-type]  (without a batch size it gets a batch of rows)
            num_workers=self.num_workers,
            pin_memory=torch.cuda.is_available(),
            # A generator of its own: opening a loader must not move the generator that dropout draws from.
            generator=torch.Generator(),
        )

    def _require(self, split: str) -> Dataset:
        dataset = self._dataset(split)
        if dataset is None:
            raise UserError(f"data.{split}_file: missing; give the file to {split} on")
        return dataset

    def _dataset(self, split: str) -> Dataset | None:
        if split not in self._tokenized:
            table = self._table(split)
            if table is None:
                return None
            tokenized = tokenize(
                table,
                self.tokenizer,
                self.text_columns,
                self.max_length,
                f"Tokenising {split}",
                self._label(table, split) if split != "predict" else None,
            )
            if split == "train":
                # Which example a row of a batch is: what a cache of the teacher's answers is read by.
                tokenized = tokenized.add_column("index", np.arange(len(tokenized)))  # type: ignore[call-arg]
            self._tokenized[split] = tokenized
        return self._tokenized[split]

    def _table(self, split: str) -> Dataset | None:
        """The rows of a split that are used; None when it was not given."""
        held_out = split in ("train", "val") and not (self.files["val"] or self.hub)
        table = self._rows("train" if held_out else split)
        if table is not None and held_out:
            table = self._hold_out(table, split)
        if table is not None and split == "train" and self.limit and self.limit < len(table):
            table = table.shuffle(seed=self.split_seed).select(range(self.limit))
        return table

    def _rows(self, split: str) -> Dataset | None:
        """All rows of a source; None when it was not given; columns and texts checked."""
        table = self._read(split)
        if table is None:
            return None
        for column in [*self.text_columns, *([] if split == "predict" else [self.label_column])]:
            if column not in table.column_names:
                key = "label_column" if column == self.label_column else "text_columns"
                raise UserError(
                    f"data.{key}: {column!r} is no column of {self._source(split)!r}; it has {table.column_names}; "
                    "for a file without a header give data.columns"
                )
        for column in self.text_columns:
            if table.data.column(column).null_count:
                row = next(i for i, value in enumerate(table[column]) if value is None)
                raise UserError(
                    f"data.text_columns: no {column!r} in row {row + 1} of {self._source(split)!r}; mend the file"
                )
        return table

    def _read(self, split: str) -> Dataset | None:
        if self.hub:
            name = {"train": "train", "val": self.hub_val_split}.get(split)
            if name is not None:
                try:
                    return load_dataset(self.hub, self.hub_config, split=name, cache_dir=self.cache_dir)  # type: ignore[return-value]
                except (OSError, ValueError) as error:
                    raise UserError(f"data.hub: {self.hub!r} cannot be loaded: {str(error).splitlines()[0]}") from error
        source = self.files[split]
        if source is None:
            return None
        return load_table(
            source, f"data.{split}_file", self.columns, self.encoding, self.encoding_errors, self.cache_dir
        )

    def _source(self, split: str) -> str | None:
        return self.files[split] or self.hub

    def _hold_out(self, table: Dataset, split: str) -> Dataset:
        order = np.random.default_rng(self.split_seed).permutation(len(table))
        held = max(round(self.val_fraction * len(table)), 1)
        if held >= len(table):
            raise UserError(
                f"data.val_fraction: {self.val_fraction} of {len(table)} rows leaves none to train on; give more"
            )
        return table.select(np.sort(order[:held] if split == "val" else order[held:]))

    def _label(self, table: Dataset, split: str) -> tuple[str, Callable[[Any], int | float], Any]:
        """The label column, what turns its values into targets, and what that depends on; every value is checked."""
        column, labels = self.label_column, self.labels
        source = self._source(split) or self._source("train")
        if labels is None:
            for row, value in enumerate(table[column]):
                _check_finite(value, row, source, column)
            return column, float, None
        feature = table.features[column]
        # By name: the numbers behind the names may differ between two files.
        names = dict(enumerate(feature.names)) if isinstance(feature, ClassLabel) else {}
        ids = {name: index for index, name in enumerate(labels)}
        for row, value in enumerate(names.get(value, value) for value in table[column]):
            if str(value) not in ids:
                raise UserError(
                    f"data.{split}_file: label {str(value)!r} in row {row + 1} of {source!r} never occurs in training; "
                    f"known are {labels[:10]}; mend the file or data.label_column"
                )
        return column, lambda value: ids[str(names.get(value, value))], [labels, names]


def _label_order(label: str) -> tuple[bool, float, str]:
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
            f"data.label_column: {value!r} in row {row + 1} of {source!r}, column {column!r}, is no finite number; "
            "mend the file, or set data.task to classification"
        )
