"""Text whose masked words are to be guessed: language modelling for encoders."""

import zlib
from collections.abc import Iterator
from functools import cached_property, partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from datasets import Dataset, IterableDataset, load_dataset
from datasets.exceptions import DatasetGenerationError
from torch.utils.data import Dataset as TorchDataset

from lit_compress.data.batches import LengthGroupedBatches
from lit_compress.data.documents import group_documents, pack_sentences, segment_pairs, split_sentences
from lit_compress.data.masking import mask_tokens
from lit_compress.data.streaming import StreamedBatches, StreamLoader
from lit_compress.data.tables import cached_map
from lit_compress.data.text_data import TextData
from lit_compress.errors import UserError
from lit_compress.sources import resolve_source
from lit_compress.tasks import IGNORED, Batch, MaskedWordsTask, PretrainingTask, Task
from lit_compress.text_files import check_there, file_suffix, read_failure, saved_splits
from lit_compress.training_steps import run_seed

__all__ = ["MaskedLanguageModeling"]

_BUILDERS = {".jsonl": "json", ".json": "json", ".parquet": "parquet", ".csv": "csv", ".tsv": "csv"}


class MaskedLanguageModeling(TextData):
    """A corpus in lines, packed into sequences; which tokens are masked is drawn again in each epoch.

    Masks follow from the seed of the run, the epoch and the number of the sequence; in validation from ``split_seed``
    alone, so that all runs and epochs are measured on the same ones.

    Args:
        train_file: text, a paragraph a line (``.txt`` or any other ending, also ``.gz``), a folder of ``.txt`` and
            ``.txt.gz`` files (also in folders inside it), or ``.jsonl``, ``.parquet``, ``.csv``, ``.tsv`` with a column
            of texts.
        val_file: validation text, in any of these forms; default: the last ``val_fraction`` of the training lines is
            held out.
        text_column: column with the texts, where there are columns.
        packing: ``full_sentences`` fills sequences with whole sentences, across documents with a separator between
            (RoBERTa); ``line`` makes each line a sequence and cuts off what is too long; ``segment_pairs`` makes pairs
            of segments that follow each other or do not, with ``next_sentence_label`` (BERT).
        documents: what a document is: a ``line`` (or row), or the lines between two blank ones (``blank_line``).
        mask_probability: fraction of tokens to predict.
        random_next_probability: fraction of pairs whose second segment is from another document.
        short_sequence_probability: fraction of pairs that aim at a random shorter length.
        streaming: read the training text while training, without caching it; needs ``trainer.max_steps`` and
            ``val_file``.
        options: see :class:`TextOptions`.

    """

    def __init__(
        self,
        train_file: str | None = None,
        val_file: str | None = None,
        *,
        text_column: str = "text",
        packing: Literal["full_sentences", "line", "segment_pairs"] = "full_sentences",
        documents: Literal["line", "blank_line"] = "line",
        mask_probability: float = 0.15,
        random_next_probability: float = 0.5,
        short_sequence_probability: float = 0.1,
        streaming: bool = False,
        **options: Any,
    ) -> None:
        self.text_column, self.packing, self.documents = text_column, packing, documents
        self.mask_probability, self.streaming = mask_probability, streaming
        self.random_next_probability = random_next_probability
        self.short_sequence_probability = short_sequence_probability
        self.same_inputs = False
        self._check_options()
        super().__init__(pair=packing == "segment_pairs", train_file=train_file, val_file=val_file, **options)
        if self.streaming:
            self._check_streaming()

    @cached_property
    def special(self) -> np.ndarray:
        """Ids of the special tokens."""
        return np.array(sorted(self.tokenizer.all_special_ids))

    @cached_property
    def words(self) -> np.ndarray:
        """Ids of all other tokens."""
        return np.setdiff1d(np.arange(len(self.tokenizer)), self.special)

    def check_tokenizer(self) -> None:
        super().check_tokenizer()
        if self.max_length < self.special_tokens + 2:
            raise UserError(f"data.max_length: {self.max_length} leaves no room for words; give more")
        for name in ("mask", "cls", "sep", "pad"):
            self._id(name)

    @property
    def task(self) -> Task:
        return PretrainingTask() if self.packing == "segment_pairs" else MaskedWordsTask()

    def load(self, source: str, key: str) -> Dataset:
        files, builder = self._files(source, key)
        if builder != "text":
            return self.read_table(source, key)
        options = {name: getattr(self.options, name) for name in ("encoding", "encoding_errors", "cache_dir")}
        try:
            table = load_dataset("text", data_files=files, split="train", **options)
        except (DatasetGenerationError, OSError, ValueError, LookupError, EOFError) as error:
            raise UserError(f"{key}: {source!r} cannot be read as text: {read_failure(error)}") from error
        assert isinstance(table, Dataset)
        return table

    def check(self, table: Dataset, split: str) -> None:
        column = self._column(split)
        self.require_columns(table, split, {"text_column": column})
        # One kind for all values of a column; null where each is missing.
        if getattr(table.features[column], "dtype", None) not in ("string", "large_string", "null"):
            raise self._no_texts(column, split)
        if not any((text or "").strip() for text in table[column]):
            raise UserError(f"data.{split}_file: {self.source(split)!r} has no text")

    def _no_texts(self, column: str, split: str) -> UserError:
        return UserError(f"data.text_column: {column!r} of {self.source(split)!r} holds no texts; name another column")

    def rows(self, split: str) -> Dataset | None:
        if self.streaming and split == "train":  # never a table: it may be larger than the disk
            return None
        return super().rows(split)

    def held_out(self, table: Dataset, count: int) -> np.ndarray:
        """The last lines: lines that belong together stay together."""
        return np.arange(len(table) - count, len(table))

    def drawn(self, table: Dataset, split: str, count: int) -> Dataset:
        """Documents of several lines stay whole: as many as have so many lines, in the order of the file."""
        if self.documents == "line":
            return super().drawn(table, split, count)
        blank = [not (text or "").strip() for text in table[self._column(split)]]
        document = np.cumsum(blank)  # a document with the blank line before it
        lines = np.bincount(document)
        order = np.random.default_rng(self.options.split_seed).permutation(len(lines))
        enough = int(np.searchsorted(np.cumsum(lines[order]), count)) + 1
        return table.select(np.flatnonzero(np.isin(document, order[:enough])))

    def encode(self, table: Dataset, split: str) -> Dataset:
        column = self._column(split)

        def sequences(rows: dict[str, list[Any]], numbers: list[int]) -> dict[str, list[Any]]:
            if split == "predict":
                return self._one_per_line([text or "" for text in rows[column]], keep_blank=True)
            return self.sequences(rows[column], (self.options.split_seed, numbers[0]))

        settings = [
            *(column, self.packing, self.documents, self.random_next_probability, self.short_sequence_probability),
            *(self.max_length, self.options.split_seed, split == "predict", "masked-1"),
        ]
        encoded = cached_map(table, sequences, self.tokenizer, settings, f"Tokenizing {split}", True)
        if not len(encoded):
            raise UserError(
                f"data.{split}_file: {self.source(split)!r} makes no sequences with packing {self.packing}; "
                "pairs need documents of several sentences"
            )
        if self.packing == "segment_pairs" and split == "train":
            self._check_pairs(encoded["next_sentence_label"][:])
        return encoded

    def sequences(self, texts: list[str], key: tuple[int, ...]) -> dict[str, list[Any]]:
        """Lines to sequences: a function of the lines and, for pairs, of the key that seeds them."""
        texts = [text or "" for text in texts]
        if self.packing == "line":
            return self._one_per_line(texts)
        documents = self._token_documents(group_documents(texts, self.documents == "line"))
        room = self.max_length - self.special_tokens
        start, end = [self._id("cls")], [self._id("sep")]
        if self.packing == "full_sentences":
            return self._rows([start + row + end for row in pack_sentences(documents, room, end[0])])
        pairs = list(
            segment_pairs(
                documents,
                room,
                np.random.default_rng(list(key)),
                self.random_next_probability,
                self.short_sequence_probability,
            )
        )
        rows = self._rows([start + first + end + second + end for first, second, _ in pairs])
        rows["token_type_ids"] = [[0] * (len(first) + 2) + [1] * (len(second) + 1) for first, second, _ in pairs]
        return rows | {"next_sentence_label": [label for *_, label in pairs]}

    def view(self, dataset: Dataset, batches: LengthGroupedBatches) -> Any:
        return _Keyed(dataset, batches, run_seed() if batches.shuffle else self.options.split_seed)

    def token_examples(self) -> Iterator[tuple[dict[str, Any], dict[str, list[int]]]]:
        """Lines by themselves, whatever they are packed to."""
        table: Any = self.table("val")
        for row in table or ():
            call = {"text": row[self._column("val")] or "", "truncation": True, "max_length": self.max_length}
            yield call, self.inputs_of(dict(self.tokenizer(**call)))

    def collate(self, rows: dict[str, list[Any]]) -> Batch:
        """Masked ids, masks and target ``labels`` (-100 where nothing is to guess), all ``(batch, tokens)``.

        In predictions the text says what is masked, and there are no labels.
        """
        if "key" not in rows:
            return self.batch(rows, {})
        masked = [
            mask_tokens(np.asarray(ids), self.special, self._id("mask"), self.words, self.mask_probability, key)
            for ids, key in zip(rows["input_ids"], rows["key"], strict=True)
        ]
        batch = self.batch(rows | {"input_ids": [ids.tolist() for ids, _ in masked]}, {})
        targets = torch.full(batch.inputs["input_ids"].shape, IGNORED)
        for row, (_, labels) in enumerate(masked):
            targets[row, batch.inputs["attention_mask"][row].bool()] = torch.from_numpy(labels)
        batch.targets["labels"] = targets
        if "next_sentence_label" in rows:
            batch.targets["next_sentence_label"] = torch.tensor(rows["next_sentence_label"])
        return batch

    def train_dataloader(self) -> Any:
        if not self.streaming:
            return super().train_dataloader()
        steps = self.trainer.max_steps * self.trainer.accumulate_grad_batches if self.trainer else 0
        if steps < 0:
            raise UserError("trainer.max_steps: missing; a stream (data.streaming) has no end of its own")
        column = self._column("train")
        first = {name: values[0] for name, values in next(self._blocks(1), {}).items()}
        if column not in first:
            raise UserError(
                f"data.text_column: {column!r} is not a column of {self.source('train')!r}; it has {list(first)}"
            )
        if not isinstance(first[column], str | None):
            raise self._no_texts(column, "train")
        world, rank = self.ranks()
        batches = StreamedBatches(
            self._blocks,
            partial(self._sequences_of_block, column),
            self.collate,
            self.batch_size,
            run_seed(),
            world,
            rank,
            str(self.source("train")),
        )
        return self.remember(StreamLoader(batches, steps, self.options.num_workers))

    def _sequences_of_block(
        self, column: str, rows: dict[str, list[Any]], number: int, block: int
    ) -> dict[str, list[Any]]:
        return self.sequences(rows[column], (self.options.split_seed, number, block))

    def _blocks(self, size: int) -> Iterator[dict[str, list[Any]]]:
        """The corpus of a stream from its beginning, in blocks of so many rows, as columns."""
        try:
            yield from self._stream().iter(batch_size=size)
        except UserError:
            raise
        except (DatasetGenerationError, OSError, ValueError, LookupError, EOFError, zlib.error) as error:
            # Without advice that has no effect on a stream.
            why = read_failure(error).removesuffix(", or data.encoding_errors to replace")
            raise UserError(f"data.train_file: {self.source('train')!r} cannot be read: {why}") from error

    def _stream(self) -> IterableDataset:
        if self.options.hub:
            stream = load_dataset(self.options.hub, self.options.hub_config, split="train", streaming=True)
        else:
            files, builder = self._files(str(self.files["train"]), "data.train_file")
            options: dict[str, Any] = {} if builder == "parquet" else {"encoding": self.options.encoding}
            stream = load_dataset(builder, data_files=files, split="train", streaming=True, **options)
        assert isinstance(stream, IterableDataset)
        return stream

    def _files(self, source: str, key: str) -> tuple[list[str], str]:
        """The files of a source, and the reader that `datasets` has for them."""
        path = Path(resolve_source(source, key))
        if saved_splits(source, key) is not None:
            return [str(path)], "saved"
        if path.is_dir():
            files = sorted(str(file) for file in path.rglob("*") if file.name.endswith((".txt", ".txt.gz")))
            if not files:
                raise UserError(f"{key}: the folder {source!r} has no .txt or .txt.gz files")
            return files, "text"
        check_there(source, key, "a file or a folder of .txt files")
        return [str(path)], _BUILDERS.get(file_suffix(path), "text")

    def _column(self, split: str) -> str:
        source = self.files[split] or self.files["train"]
        is_text = source is not None and self._files(source, f"data.{split}_file")[1] == "text"
        return "text" if is_text else self.text_column

    def _token_documents(self, documents: list[str]) -> list[list[list[int]]]:
        sentences = [split_sentences(document) for document in documents]
        flat = [sentence for document in sentences for sentence in document]
        if not flat:
            return []
        ids = iter(self.tokenizer(flat, add_special_tokens=False, truncation=False, verbose=False)["input_ids"])
        return [[tokens for _ in document if (tokens := next(ids))] for document in sentences]

    def _one_per_line(self, texts: list[str], keep_blank: bool = False) -> dict[str, list[Any]]:
        texts = [text for text in texts if keep_blank or text.strip()]
        if not texts:
            return self._rows([])
        encoded: Any = self.tokenizer(texts, truncation=True, max_length=self.max_length)
        return self._rows(encoded["input_ids"])

    def _rows(self, sequences: list[list[int]]) -> dict[str, list[Any]]:
        return {
            "input_ids": sequences,
            "attention_mask": [[1] * len(ids) for ids in sequences],
            "token_type_ids": [[0] * len(ids) for ids in sequences],
            "length": [len(ids) for ids in sequences],
        }

    def _id(self, name: str) -> int:
        number = getattr(self.tokenizer, f"{name}_token_id")
        if number is None:
            raise UserError(f"data.tokenizer: {self.tokenizer_name!r} has no {name} token, which this task needs")
        return number

    def _check_options(self) -> None:
        for key, value, allowed in (
            ("packing", self.packing, ("full_sentences", "line", "segment_pairs")),
            ("documents", self.documents, ("line", "blank_line")),
        ):
            if value not in allowed:
                raise UserError(f"data.{key}: {value!r} must be one of {', '.join(allowed)}")
        if not 0 < self.mask_probability < 1:
            raise UserError(f"data.mask_probability: {self.mask_probability} must be in (0, 1)")
        self._check_pair_options()
        if self.packing == "line" and self.documents != "line":
            raise UserError("data.documents: has no effect on packing line; leave it out")

    def _check_pair_options(self) -> None:
        for key, default in (("random_next_probability", 0.5), ("short_sequence_probability", 0.1)):
            value = getattr(self, key)
            if not 0 <= value <= 1:
                raise UserError(f"data.{key}: {value} must be in [0, 1]")
            if self.packing != "segment_pairs" and value != default:
                raise UserError(f"data.{key}: has no effect on packing {self.packing}; leave it out")

    def _check_streaming(self) -> None:
        if self.options.limit:
            raise UserError("data.limit: has no effect on a stream; set trainer.max_steps instead")
        if not (self.files["val"] or self.options.hub):
            raise UserError("data.val_file: missing; nothing can be held out of a stream (data.streaming)")
        if self.options.num_workers > 1:
            raise UserError(
                f"data.num_workers: {self.options.num_workers} is above 1, which one stream of text is read by"
            )
        train = self.files["train"]
        if train is not None and self._files(train, "data.train_file")[1] in ("csv", "saved"):
            raise UserError(f"data.train_file: {train!r} cannot be streamed; give text, .jsonl or .parquet")
        if self.options.encoding_errors != "strict":
            raise UserError("data.encoding_errors: has no effect on a stream; leave it out")

    def _check_pairs(self, labels: list[int]) -> None:
        for label, what in ((0, "that follow each other"), (1, "from two documents")):
            if label not in labels and not (label == 1 and self.random_next_probability == 0):
                hint = "documents of several sentences" if label == 0 else "two documents or more"
                raise UserError(
                    f"data.documents: {self.source('train')!r} gives no segments {what}; pairs need {hint}, "
                    "so set data.documents to what a document is"
                )


class _Keyed(TorchDataset):
    """Rows, and for each a key that its masks follow from: seed, epoch, number."""

    def __init__(self, rows: Dataset, batches: LengthGroupedBatches, seed: int) -> None:
        self.rows, self.batches, self.seed = rows, batches, seed

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, numbers: list[int]) -> dict[str, list[Any]]:
        epoch = self.batches.epoch if self.batches.shuffle else 0
        return self.rows[numbers] | {"key": [(self.seed, epoch, number) for number in numbers]}
