"""What the data modules share: sources, splits, caching, batches, ranks, and continuing in the middle of an epoch."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from datasets import Dataset, load_dataset
from lightning.pytorch import LightningDataModule
from torch import Tensor
from torch.utils.data import DataLoader
from transformers import PreTrainedTokenizerBase

from lit_compress.data.batches import FixedBatches, LengthGroupedBatches
from lit_compress.data.options import TextOptions
from lit_compress.data.resumable_loader import ResumableDataLoader
from lit_compress.data.tables import load_saved, load_table, load_tokenizer
from lit_compress.errors import UserError
from lit_compress.hub import check_hub
from lit_compress.init_args import KeepsInitArgs
from lit_compress.sources import resolve_source
from lit_compress.tasks import Batch, Task
from lit_compress.text_files import read_failure, require_columns, saved_splits
from lit_compress.training_steps import interrupted, run_seed

__all__ = ["TextData"]

_TRAIN = "data.train_file"


class TextData(KeepsInitArgs, LightningDataModule):
    """Base of the data modules: texts from files or the hub, tokenized once, batched by length, sharded by rank.

    A subclass sets its own attributes before it calls this constructor, which may call :meth:`check_tokenizer`. It
    defines :meth:`encode` and :meth:`collate`, gives in :attr:`task` what the head is for, and checks what
    its columns hold in :meth:`check`.

    Args:
        pair: whether an input is a pair of texts.
        options: see :class:`TextOptions`.

    Attributes:
        same_inputs: whether an example reads the same in each epoch.
        predict_from: row of the file that predictions begin with, 0 for all.

    """

    same_inputs: bool = True
    predict_from: int = 0

    def __init__(self, pair: bool = False, **options: Any) -> None:
        super().__init__()
        self.options = TextOptions(**options)
        # The record of a run has what was not given, too.
        vars(self)["_init_args"] = asdict(self.options) | vars(self)["_init_args"]
        files = ("train", "val", "test", "predict")
        self.files: dict[str, str | None] = {name: getattr(self.options, f"{name}_file") for name in files}
        train = self.files["train"]
        # Whatever else it is, it need not be there to be evaluated or predicted without.
        saved = saved_splits(train, _TRAIN) if train and Path(train).is_dir() else None
        if not self.files["val"] and self.options.hub_val_split in (saved or ()):
            self.files["val"] = train
        tokenizer, max_length = str(self.options.tokenizer), self.options.max_length
        self.tokenizer_name, self.max_length, self.batch_size = tokenizer, max_length, self.options.batch_size
        self.eval_batch_size = self.options.eval_batch_size or self.batch_size
        self._pair = pair
        self._train_loader: Any = None
        self._position: dict[str, Any] = {"consumed": 0}
        self._tokenized: dict[str, Dataset] = {}
        self._read_once: dict[tuple[str, str | None], Dataset | None] = {}
        self._labels: list[str] | None = None
        if Path(resolve_source(tokenizer, "data.tokenizer")).exists():  # one on the hub is asked for after the files
            self.check_tokenizer()

    @cached_property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        """The tokenizer, loaded when it is first needed."""
        return self.load_tokenizer()

    def load_tokenizer(self) -> PreTrainedTokenizerBase:
        """The tokenizer, ready for what this class does with it."""
        return load_tokenizer(self.tokenizer_name, "data.tokenizer")

    @cached_property
    def special_tokens(self) -> int:
        """How many of them the tokenizer adds to an input."""
        return self.tokenizer.num_special_tokens_to_add(pair=self._pair)

    def check_tokenizer(self) -> None:
        """Raise a ``UserError`` when the tokenizer does not do for the texts and options."""
        if self.tokenizer.pad_token_id is None:
            raise UserError(
                f"data.tokenizer: {self.tokenizer_name!r} has no padding token, which texts of several lengths in a "
                'batch need; give one that has, or name it in its tokenizer_config.json: "pad_token"'
            )
        if self.max_length <= self.special_tokens:
            raise UserError(f"data.max_length: {self.max_length} must be above {self.special_tokens} special tokens")
        name, longest = self.tokenizer_name, self.tokenizer.model_max_length
        if self.max_length > longest:
            raise UserError(f"data.max_length: {self.max_length} is above {longest}, the longest input of {name!r}")

    def __getstate__(self) -> dict[str, Any]:
        # A worker of the data loader gets a copy, pickled where processes are not forked; it collates what it is given.
        return vars(self) | {"trainer": None, "_train_loader": None, "_tokenized": {}, "_read_once": {}}

    def __str__(self) -> str:
        # Lightning's reads and tokenises every split to say how many batches there are.
        sources = {name: self.source(name) for name in self.files if self.source(name)}
        return f"{type(self).__name__}({sources})"

    def check_sources(self) -> None:
        """Before a training: read every local source and then the tokenizer; a ``UserError`` is for what is wrong."""
        if self.source("train") is None:
            raise UserError("data.train_file: missing; give the file to train on, or data.hub")
        for split, file in self.files.items():
            if file:
                self.rows(split)
        self.check_tokenizer()

    @property
    def task(self) -> Task:
        """What the head is trained for; the command line gives it to the model."""
        raise NotImplementedError(f"{type(self).__name__} must define task")

    def encode(self, table: Dataset, split: str) -> Dataset:
        """The rows of a split as token ids, with a column ``length``; cached."""
        raise NotImplementedError(f"{type(self).__name__} must define encode(table, split)")

    def collate(self, rows: dict[str, list[Any]]) -> Batch:
        """Columns of a batch as what the model and the task take."""
        raise NotImplementedError(f"{type(self).__name__} must define collate(rows)")

    def normalized(self, table: Dataset, split: str) -> Dataset:
        """The rows of a source in the form that the rest of the class reads."""
        return table

    def check(self, table: Dataset, split: str) -> None:
        """Raise a ``UserError`` when the rows of a source are not what they must be."""

    def load(self, source: str, key: str) -> Dataset:
        """The rows of a file or folder."""
        return self.read_table(source, key)

    def read_table(
        self, source: str, key: str, columns: Sequence[str] | None = None, delimiter: str | None = None
    ) -> Dataset:
        """The rows of a table; ``columns`` are the names where it has no header."""
        options = self.options
        split = {_TRAIN: "train", "data.val_file": options.hub_val_split}.get(key, "test")
        return load_table(
            source, key, columns, options.encoding, options.encoding_errors, options.cache_dir, delimiter, split
        )

    def trainable(self, table: Dataset) -> Dataset:
        """The rows that can be trained on."""
        return table

    @property
    def labels(self) -> list[str] | None:
        """Names of the classes or tags in the order of their ids; None where there are none."""
        return None

    def use_labels(self, labels: Sequence[str]) -> None:
        """Take a trained model's classes, in the order of their ids, instead of those of the training file."""
        self._labels = list(labels)

    def prepare_data(self) -> None:
        """Read and tokenise every split into the cache, on one process of each machine."""
        self.open_splits(list(self.files))

    def setup(self, stage: str) -> None:
        """Open the cached splits; to validate no other file needs to be there."""
        self.open_splits(["val"] if stage == "validate" else list(self.files))

    def open_splits(self, splits: Sequence[str]) -> None:
        """Read and tokenise splits, from the cache when they are in it."""
        for split in splits:
            self._dataset(split)

    def train_dataloader(self) -> Any:
        loader = self._loader("train", shuffle=True)
        assert isinstance(loader, ResumableDataLoader)
        loader.epoch_ended = lambda: self.trainer is not None and self.trainer.is_last_batch
        return self.remember(loader)

    def remember(self, loader: Any) -> Any:
        """Keep the training loader, whose position is part of a checkpoint, and bring it to where that was made."""
        loader.interrupted = lambda: self.trainer is not None and interrupted(self.trainer)
        loader.load_state_dict(self._position)
        self._train_loader, self._position = loader, {"consumed": 0}
        return loader

    def state_dict(self) -> dict[str, Any]:
        """Position in the epoch, for the checkpoint.

        Lightning restores a loader's own state only when nobody asked for the number of training steps before, which
        every learning-rate schedule does; the state of a data module it always restores.
        """
        return self._train_loader.state_dict() if self._train_loader else self._position

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
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
        """In the order of the file, from ``predict_start`` on: predictions line up with its rows."""
        dataset = self._require("predict")
        return DataLoader(
            dataset.select(range(self.predict_start, len(dataset))),  # type: ignore[arg-type]
            batch_size=self.eval_batch_size,
            collate_fn=self._collate_rows,
            num_workers=self.options.num_workers,
        )

    @property
    def predict_start(self) -> int:
        """The example to begin with: of row ``predict_from``, or the first of its batch.

        Batches are then those of a run from the beginning, and so is every digit of what is predicted.
        """
        first = int(np.searchsorted(self.predict_rows(), self.predict_from))
        return first - first % self.eval_batch_size

    @classmethod
    def predicted_columns(cls, options: Mapping[str, Any]) -> list[str]:
        """Columns of texts that a prediction reads, from the options of a data module."""
        columns = options.get("text_columns") or options.get("text_column") or "text"
        return [columns] if isinstance(columns, str) else list(columns)

    def predict_rows(self) -> np.ndarray:
        """The row of the file ``(examples,)`` that each example to predict comes from, in ascending order."""
        return np.arange(len(self._require("predict")))

    def predict_count(self) -> int:
        """How many rows the file to predict has, those that make no example included."""
        table = self.rows("predict")
        return 0 if table is None else len(table)

    def token_examples(self) -> Iterator[tuple[dict[str, Any], dict[str, list[int]]]]:
        """Validation examples, each as the call of a tokenizer and the columns that the model sees; none by default."""
        yield from ()

    def inputs_of(self, columns: dict[str, Any]) -> dict[str, Any]:
        """The columns, of one row or of several, that are inputs of the model."""
        return {name: columns[name] for name in self.tokenizer.model_input_names if name in columns}

    def batch(
        self, rows: dict[str, list[Any]], targets: dict[str, Tensor], meta: dict[str, Any] | None = None
    ) -> Batch:
        """The model's inputs ``(batch, tokens)`` padded to the longest row, and what else a subclass knows."""
        numbers = {"index": torch.tensor(rows["index"])} if "index" in rows else {}
        return Batch(self.pad(rows), targets, numbers | (meta or {}))

    def pad(self, rows: dict[str, list[Any]]) -> dict[str, Tensor]:
        """The model's inputs ``(batch, tokens)``, padded to the longest row."""
        return dict(self.tokenizer.pad(self.inputs_of(rows), return_tensors="pt"))

    def view(self, dataset: Dataset, batches: LengthGroupedBatches) -> Any:
        """What a loader reads: the rows, or the rows and something about them."""
        return dataset

    def sampling_weights(self, dataset: Dataset) -> np.ndarray | None:
        """How often to draw each training example ``(rows,)``, one in relation to the others; None takes each once."""
        return None

    def source(self, split: str) -> str | None:
        """Where a split comes from, for errors."""
        return self.files[split] or self.options.hub

    def _collate_rows(self, rows: list[dict[str, Any]]) -> Batch:
        return self.collate({name: [row[name] for row in rows] for name in rows[0]})

    def _loader(self, split: str, shuffle: bool) -> DataLoader:
        dataset = self._require(split)
        world, rank = self.ranks()
        if not shuffle and len(dataset) < world:
            # One of them would repeat a row, or have none and wait for the others forever.
            raise UserError(
                f"data.{split}_file: {len(dataset)} examples are fewer than {world} devices; give more examples"
            )
        overfits = self.trainer is not None and self.trainer.overfit_batches > 0  # type: ignore[attr-defined]
        batches = (FixedBatches if overfits else LengthGroupedBatches)(
            np.asarray(dataset["length"]),
            self.batch_size if shuffle else self.eval_batch_size,
            shuffle=shuffle,
            seed=run_seed(),
            num_replicas=world,
            rank=rank,
            weights=self.sampling_weights(dataset) if shuffle else None,
        )
        loader = ResumableDataLoader if shuffle else DataLoader
        return loader(
            self.view(dataset, batches),
            sampler=batches,
            batch_size=None,
            collate_fn=self.collate,  # type: ignore[arg-type]  (without a batch size it gets a batch of rows)
            num_workers=self.options.num_workers,
            pin_memory=torch.cuda.is_available(),
            # A generator of its own: opening a loader must not move the generator that dropout draws from.
            generator=torch.Generator(),
        )

    def ranks(self) -> tuple[int, int]:
        """How many processes share the data, and which this is."""
        return (self.trainer.world_size, self.trainer.global_rank) if self.trainer else (1, 0)

    def _require(self, split: str) -> Dataset:
        dataset = self._dataset(split)
        if dataset is None:
            raise UserError(f"data.{split}_file: missing; give that file")
        return dataset

    def _dataset(self, split: str) -> Dataset | None:
        if split not in self._tokenized:
            table = self.table(split)
            if table is None:
                return None
            tokenized = self.encode(table, split)
            if split == "train" and self.same_inputs:
                # Which example a row of a batch is: what a cache of the teacher's outputs is read by.
                tokenized = tokenized.add_column("index", np.arange(len(tokenized)))  # type: ignore[call-arg]
            self._tokenized[split] = tokenized
        return self._tokenized[split]

    def table(self, split: str) -> Dataset | None:
        """The rows of a split that are used; None when it was not given."""
        held_out = split in ("train", "val") and not (self.files["val"] or self.options.hub)
        table = self.rows("train" if held_out else split)
        if table is not None and held_out:
            table = self._hold_out(table, split)
        if table is not None and split == "train":
            table = self.trainable(table)
        limit = {"train": self.options.limit, "predict": None}.get(split, self.options.eval_limit)
        if table is not None and limit and limit < len(table):
            table = self.drawn(table, split, limit)
        return table

    def rows(self, split: str) -> Dataset | None:
        """All rows of a source, checked; None when it was not given."""
        # Labels, checks, lengths and the tokenised split each ask for it. A table is a mapped file: it takes no memory.
        key = (split, self.files.get(split))
        if key not in self._read_once:
            table = self._read(split)
            if table is not None:
                table = self.normalized(table, split)
                self.check(table, split)
            self._read_once[key] = table
        return self._read_once[key]

    def require_columns(self, table: Dataset, split: str, columns: dict[str, str], hint: str = "") -> None:
        """Every column, by the key that names it, must be there.

        Raises:
            UserError: one is not.

        """
        require_columns(table.column_names, self.source(split), columns, hint)

    def _read(self, split: str) -> Dataset | None:
        if (hub := self.options.hub) and not self.files[split]:
            name = {"train": "train", "val": self.options.hub_val_split}.get(split)
            if name is not None:
                if saved_splits(hub, "data.hub") is not None:
                    return load_saved(hub, "data.hub", name)
                check_hub(hub, "data.hub")
                try:
                    return load_dataset(hub, self.options.hub_config, split=name, cache_dir=self.options.cache_dir)  # type: ignore[return-value]
                except (OSError, ValueError) as error:
                    raise UserError(f"data.hub: {hub!r} cannot be loaded: {read_failure(error)}") from error
        source = self.files[split]
        return None if source is None else self.load(source, f"data.{split}_file")

    def _hold_out(self, table: Dataset, split: str) -> Dataset:
        share = self.options.val_fraction
        held = max(round(share * len(table)), 1)
        if held >= len(table):
            raise UserError(f"data.val_fraction: {share} of {len(table)} examples leaves none to train on; give more")
        mask = np.zeros(len(table), dtype=bool)
        mask[self.held_out(table, held)] = True
        return table.select(np.flatnonzero(mask if split == "val" else ~mask))

    def drawn(self, table: Dataset, split: str, count: int) -> Dataset:
        """About ``count`` rows of a split that are used instead of all: drawn at random."""
        return table.shuffle(seed=self.options.split_seed).select(range(count))

    def held_out(self, table: Dataset, count: int) -> np.ndarray:
        """Row numbers of about ``count`` rows to hold out: drawn at random."""
        return np.random.default_rng(self.options.split_seed).permutation(len(table))[:count]
