"""A tag for each word of a sentence: named entities, parts of speech."""

import logging
from collections.abc import Iterator, Sequence
from functools import cached_property
from typing import Any, Literal

import numpy as np
import torch
from datasets import ClassLabel, Dataset, Features, List, Value
from lightning.pytorch.utilities import rank_zero_only
from transformers import PreTrainedTokenizerBase

from lit_compress.data.classification import label_order
from lit_compress.data.missing import missing_row
from lit_compress.data.tables import cached_map, generate_table, load_tokenizer
from lit_compress.data.text_data import TextData
from lit_compress.errors import UserError
from lit_compress.functional.entities import is_entity_tag, write_tags
from lit_compress.tasks import IGNORED, Batch, Task, TokenClassificationTask
from lit_compress.text_files import open_text, saved_splits

__all__ = ["TokenClassification"]

_TABLES = (".jsonl", ".json", ".parquet", ".jsonl.gz", ".json.gz")
_FEATURES = Features({"tokens": List(Value("string")), "tags": List(Value("string"))})


class TokenClassification(TextData):
    """Sentences of words with a tag each, from CoNLL column files, tables with list columns, or the hub.

    The tag of a word is learned and predicted at its first token. A sentence longer than ``max_length`` becomes
    several rows, or is cut. Where it is divided follows from its tags in training alone: validation and test divide it
    as prediction does, which has no tags.

    Args:
        train_file: a column file (a word a line, blank lines between sentences, ``-DOCSTART-`` lines left out; any
            ending, also ``.gz``), or ``.jsonl`` or ``.parquet`` with lists.
        val_file: validation sentences, in any of these forms; default: ``val_fraction`` of the training sentences is
            held out.
        token_column: number of the column with the words (0 is the first, -1 the last), or name of the list column;
            None is 0 or ``tokens``.
        tag_column: number or name of the column with the tags; None is -1, or ``tags``, or else ``ner_tags``.
        scheme: ``keep`` the tags as they are written, or write their entities as ``IOB2`` or ``BIOES``.
        long_sentences: of training; ``window`` splits a sentence into several examples, between entities where
            possible; ``cut`` drops the rest. Metrics and predictions are always of whole sentences.
        options: see :class:`TextOptions`.

    """

    def __init__(
        self,
        train_file: str | None = None,
        val_file: str | None = None,
        *,
        token_column: int | str | None = None,
        tag_column: int | str | None = None,
        scheme: Literal["keep", "IOB2", "BIOES"] = "keep",
        long_sentences: Literal["window", "cut"] = "window",
        **options: Any,
    ) -> None:
        for key, value, allowed in (
            ("scheme", scheme, ("keep", "IOB2", "BIOES")),
            ("long_sentences", long_sentences, ("window", "cut")),
        ):
            if value not in allowed:
                raise UserError(f"data.{key}: {value!r} must be one of {', '.join(allowed)}")
        self.token_column, self.tag_column = token_column, tag_column
        self.scheme, self.long_sentences = scheme, long_sentences
        super().__init__(pair=False, train_file=train_file, val_file=val_file, **options)

    def load_tokenizer(self) -> PreTrainedTokenizerBase:
        return load_tokenizer(self.tokenizer_name, "data.tokenizer", words=True)

    def check_tokenizer(self) -> None:
        super().check_tokenizer()
        if self.max_length <= self.special_tokens:
            raise UserError(f"data.max_length: {self.max_length} leaves no room for a word; give more")
        if not self.tokenizer.is_fast:
            raise UserError(f"data.tokenizer: {self.tokenizer_name!r} has no fast version, which words need")

    @cached_property
    def _ends(self) -> dict[str, tuple[list[int], list[int]]]:
        return _special_ends(self.tokenizer)

    @property
    def task(self) -> Task:
        return TokenClassificationTask(self.labels)

    @property
    def labels(self) -> list[str]:
        """Tags of the training file in the order of their ids: ``O``, then kinds by alphabet, and numbers by value."""
        if self._labels is None:
            table = self.rows("train")
            if table is None:
                raise UserError("data.train_file: missing; it says which tags there are")
            # From all sentences, also those that are held out or beyond the limit: a split must not lose a tag.
            found = {tag for tags in self._tags(table, "train") for tag in tags}
            self._labels = sorted(found, key=lambda tag: (tag != "O", tag.partition("-")[2], label_order(tag)))
            if len(self._labels) < 2:
                raise UserError(
                    f"data.tag_column: the tags of {self.source('train')!r} are all {self._labels}; "
                    "name the column with the tags"
                )
        return self._labels

    def load(self, source: str, key: str) -> Dataset:
        if _is_table(source, key):
            return self.read_table(source, key)
        columns: dict[str, Any] = {
            "token_column": 0 if self.token_column is None else self.token_column,
            "tag_column": -1 if self.tag_column is None else self.tag_column,
        }
        for name, value in columns.items():
            if not isinstance(value, int):
                raise UserError(f"data.{name}: {value!r} is a name; {source!r} has numbered columns, so give a number")
        if key == "data.predict_file":
            columns["tag_column"] = None
        encoding = self.options.encoding, self.options.encoding_errors
        return generate_table(_read_columns, source, key, self.options.cache_dir, _FEATURES, *encoding, **columns)

    def check(self, table: Dataset, split: str) -> None:
        columns = {"token_column": self._token_name(split)}
        if split != "predict":
            columns["tag_column"] = self._tag_name(split, table)
        self.require_columns(table, split, columns)
        for key, column in columns.items():
            if (row := missing_row(table, column)) is not None:
                raise UserError(
                    f"data.{key}: {column!r} in row {row} of {self.source(split)!r} is missing, or has an empty entry; "
                    "fix the file"
                )
            if not isinstance(table[0][column], list):
                raise UserError(f"data.{key}: {column!r} of {self.source(split)!r} holds no lists")
        if split == "predict":
            return
        words, tags = (table.data.column(columns[key]) for key in ("token_column", "tag_column"))
        counts = [np.array([len(row) for row in column.to_pylist()]) for column in (words, tags)]
        if (wrong := np.flatnonzero(counts[0] != counts[1])).size:
            row = wrong[0]
            raise UserError(
                f"data.{split}_file: row {row + 1} of {self.source(split)!r} has {counts[0][row]} words "
                f"and {counts[1][row]} tags; fix the file"
            )

    def encode(self, table: Dataset, split: str) -> Dataset:
        words_column = self._token_name(split)
        tags_of = None if split == "predict" else self._tags(table, split)
        known = [] if split == "predict" else self.labels  # a file to predict needs no other file
        ids = {tag: number for number, tag in enumerate(known)}
        for row, tags in enumerate(tags_of or ()):
            if unknown := next((tag for tag in tags if tag not in ids), None):
                raise UserError(
                    f"data.{split}_file: tag {unknown!r} in sentence {row + 1} of {self.source(split)!r} never occurs "
                    f"in training; known are {self.labels[:10]}; fix the file or data.tag_column"
                )

        def windows(rows: dict[str, list[Any]], numbers: list[int]) -> dict[str, list[Any]]:
            made = []
            for number, words in zip(numbers, rows[words_column], strict=True):
                tags = tags_of[number] if tags_of is not None else None
                made += self._windows(number, [str(word) for word in words], tags, ids, split == "train")
            return {name: [row[name] for row in made] for name in _COLUMNS}

        kind = split if split in ("train", "predict") else "evaluation"
        names = (words_column, "tags" if split == "predict" else self._tag_name(split, table))
        settings = [self.scheme, self.long_sentences, self.max_length, names, kind]
        encoded = cached_map(table, windows, self.tokenizer, [settings, known, "tokens-3"], f"Tokenizing {split}", True)
        if not len(encoded):  # no sentence has a word: `datasets` knows of no column then
            return Dataset.from_dict({name: [] for name in _COLUMNS})
        if long := int((np.asarray(encoded["first_word"]) > 0).sum() + (np.asarray(encoded["lost"]) > 0).sum()):
            lost = int(np.sum(encoded["lost"]))
            what = f"{lost} words beyond them are left out" if lost else f"they became {long} more examples"
            _tell(f"data.max_length: {split} has sentences longer than {self.max_length} tokens; {what}")
        return encoded

    def predict_rows(self) -> np.ndarray:
        return np.asarray(self._require("predict")["sentence"])

    def token_examples(self) -> Iterator[tuple[dict[str, Any], dict[str, list[int]]]]:
        table: Any = self.table("val")
        encoded: Any = self._dataset("val")
        column = self._token_name("val")
        for row in encoded or ():
            words = [str(word) for word in table[row["sentence"]][column]]
            whole = len(row["tags"]) == len(words) and row["length"] < self.max_length
            # Words that a tokenizer drops are unknown ones here, so that they keep their place.
            if whole and self.tokenizer.unk_token_id not in row["input_ids"]:
                yield {"text": words, "is_split_into_words": True}, self.inputs_of(row)

    def collate(self, rows: dict[str, list[Any]]) -> Batch:
        """Ids and masks ``(batch, tokens)``; target ``labels``, -100 where no word begins.

        ``meta`` has ``word_starts`` ``(batch, tokens)``, and in ``examples`` the sentence and first word of each row.
        """
        labels = torch.full((len(rows["input_ids"]), max(map(len, rows["input_ids"]))), IGNORED)
        starts = torch.zeros(labels.shape, dtype=torch.bool)
        left = self.tokenizer.padding_side == "left"
        for row, (tags, begins) in enumerate(zip(rows["tags"], rows["word_starts"], strict=True)):
            offset = labels.shape[1] - len(rows["input_ids"][row]) if left else 0
            positions = torch.tensor(begins) + offset
            starts[row, positions] = True
            labels[row, positions] = torch.tensor(tags)
        pairs = zip(rows["sentence"], rows["first_word"], strict=True)
        examples = [{"sentence": sentence, "first_word": word} for sentence, word in pairs]
        return self.batch(rows, {"labels": labels}, {"word_starts": starts, "examples": examples})

    def _windows(
        self, number: int, words: list[str], tags: list[str] | None, ids: dict[str, int], training: bool
    ) -> list[dict[str, Any]]:
        """The rows of a sentence; only in training may its tags say where it is divided."""
        room = self.max_length - self.special_tokens
        pieces = self._pieces(words, room)
        sizes = np.cumsum([0, *(len(piece) for piece in pieces)])
        cut = training and self.long_sentences == "cut"
        begin, made = 0, []
        while begin < len(words):
            end = int(np.searchsorted(sizes, sizes[begin] + room, side="right")) - 1
            if training and tags is not None and end < len(words) and not cut:
                end = _between_entities(tags, begin, end)
            row = self._row(pieces[begin:end], [ids[tag] for tag in tags[begin:end]] if tags is not None else None)
            lost = len(words) - end if cut else 0
            made.append(row | {"sentence": number, "first_word": begin, "lost": lost})
            if cut:
                break
            begin = end
        return made

    def _pieces(self, words: list[str], room: int) -> list[list[int]]:
        """Token ids of each word, at least one and at most ``room``."""
        if not words:
            return []
        encoded = self.tokenizer(words, is_split_into_words=True, add_special_tokens=False, truncation=False)
        pieces: list[list[int]] = [[] for _ in words]
        for token, word in zip(encoded["input_ids"], encoded.word_ids(), strict=True):
            pieces[word].append(token)  # type: ignore[index, arg-type]
        unknown = self.tokenizer.unk_token_id
        # A word of characters that the tokenizer drops keeps its place, or tags and words would no longer line up.
        return [piece[:room] if piece else [unknown] for piece in pieces]  # type: ignore[list-item]

    def _row(self, pieces: list[list[int]], tags: list[int] | None) -> dict[str, Any]:
        (first, last), (first_types, last_types) = self._ends["input_ids"], self._ends["token_type_ids"]
        begins = len(first) + np.cumsum([0, *(len(piece) for piece in pieces[:-1])])
        words = [token for piece in pieces for token in piece]
        ids, types = [*first, *words, *last], [*first_types, *[0] * len(words), *last_types]
        row = {"input_ids": ids, "attention_mask": [1] * len(ids), "token_type_ids": types}
        unlabelled = [IGNORED] * len(pieces)
        return row | {"length": len(ids), "word_starts": begins.tolist(), "tags": tags or unlabelled}

    def _token_name(self, split: str) -> str:
        """The list column with the words."""
        return self._named("token_column", split) or "tokens"

    def _tag_name(self, split: str, table: Dataset) -> str:
        """The list column with the tags."""
        given = self._named("tag_column", split)
        # Most of the hub's data sets, CoNLL's for example, say which kind of tags they are.
        found = "ner_tags" if "ner_tags" in table.column_names and "tags" not in table.column_names else "tags"
        return given or found

    def _named(self, key: str, split: str) -> str | None:
        """The name that an option gives to a column of a table; None where it gives none, or the file has no names."""
        value, source = getattr(self, key), self.files[split] or self.files["train"]
        if source is not None and not _is_table(source, f"data.{split}_file"):
            return None
        if isinstance(value, int):
            raise UserError(f"data.{key}: {value} is a number; {source or self.options.hub!r} has named columns")
        return value

    def _tags(self, table: Dataset, split: str) -> list[list[str]]:
        """Tags of each sentence, by name and in the scheme asked for."""
        column = self._tag_name(split, table)
        feature = getattr(table.features[column], "feature", None)
        names = feature.names if isinstance(feature, ClassLabel) else None
        tags = [[names[tag] if names else str(tag) for tag in row] for row in table[column]]
        if self.scheme == "keep":
            return tags
        for row, sentence in enumerate(tags):
            if wrong := next((tag for tag in sentence if not is_entity_tag(tag)), None):
                raise UserError(
                    f"data.scheme: {wrong!r} in sentence {row + 1} of {self.source(split)!r} is not an entity tag; "
                    "use keep"
                )
        return [write_tags(sentence, self.scheme) for sentence in tags]


_COLUMNS = (
    *("input_ids", "attention_mask", "token_type_ids", "length"),
    *("word_starts", "tags", "sentence", "first_word", "lost"),
)


def _is_table(source: str, key: str) -> bool:
    """Whether a source has named columns; other files have numbered ones."""
    return source.endswith(_TABLES) or saved_splits(source, key) is not None


@rank_zero_only
def _tell(message: str) -> None:
    logging.getLogger(__name__).warning(message)


def _special_ends(tokenizer: PreTrainedTokenizerBase) -> dict[str, tuple[list[int], list[int]]]:
    """What a tokenizer puts before and after the words of a text: ids, and their types (XLNet's are all at the end)."""
    encoded = tokenizer(["a"], is_split_into_words=True, return_token_type_ids=True, return_special_tokens_mask=True)
    words = [place for place, special in enumerate(encoded["special_tokens_mask"]) if not special]
    return {
        name: (encoded[name][: words[0]], encoded[name][words[-1] + 1 :]) for name in ("input_ids", "token_type_ids")
    }


def _between_entities(tags: Sequence[str], begin: int, end: int) -> int:
    """The last place up to ``end`` where no entity continues; ``end`` itself when one fills the whole window."""
    for place in range(end, begin, -1):
        if tags[place][:2] not in ("I-", "E-"):
            return place
    return end


def _read_columns(
    path: str, stamp: str, token_column: int, tag_column: int | None, encoding: str, errors: str
) -> Iterator[dict[str, list[str]]]:
    """Sentences of a column file; fields are separated by tabs where there are any, and by white space otherwise.

    Without a ``tag_column`` words have no tags.
    """
    words: list[str] = []
    tags: list[str] = []
    with open_text(path, encoding, errors) as file:
        for number, line in enumerate(file, 1):
            # A tab at the end is before an empty field: what has no tag must not have its word for one.
            fields = line.rstrip("\r\n").split("\t") if "\t" in line else line.split()
            if not fields or not "".join(fields).strip() or fields[0].startswith("-DOCSTART-"):
                if words:
                    yield {"tokens": words, "tags": tags}
                words, tags = [], []
                continue
            try:
                words.append(fields[token_column].strip())
                tags.append("" if tag_column is None else _tag(fields, token_column, tag_column))
            except IndexError:
                said = f"line {number} of {path!r} has {len(fields)} columns and no word"
                if tag_column is None:
                    raise UserError(f"{said} among them; data.token_column is {token_column}") from None
                raise UserError(
                    f"{said} with a tag; data.token_column is {token_column} and data.tag_column {tag_column}"
                ) from None
    if words:
        yield {"tokens": words, "tags": tags}


def _tag(fields: Sequence[str], token_column: int, tag_column: int) -> str:
    """The tag of a word; an ``IndexError`` where it is empty, or the same field as the word."""
    places = range(len(fields))
    tag = fields[tag_column].strip()
    if not tag or places[token_column] == places[tag_column]:
        raise IndexError
    return tag
