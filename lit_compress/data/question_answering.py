"""Questions whose answer is a span of a context: SQuAD 1.1 and 2.0."""

import itertools
import logging
import math
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from datasets import Dataset, Features, List, Value

from lit_compress.data.tables import cached_map, generate_table
from lit_compress.data.text_data import TextData
from lit_compress.errors import UserError
from lit_compress.tasks import Batch, QuestionAnsweringTask, Task
from lit_compress.text_files import read_json

__all__ = ["QuestionAnswering"]

_log = logging.getLogger(__name__)
_FEATURES = Features(
    {name: Value("string") for name in ("id", "question", "context")}
    | {"answers": List(Value("string")), "starts": List(Value("int64")), "marks": List(Value("string"))}
    | {"impossible": Value("bool")}
)


class QuestionAnswering(TextData):
    """Questions and contexts, cut into overlapping windows of ``max_length`` tokens.

    A question that leaves no room for context loses its end, which is said.
    Where an answer does not lie in a window, or there is none, start and end are the window's first token. Metrics
    come from the texts of all windows of a question.

    Args:
        train_file: SQuAD's ``.json`` (also ``.gz``), or ``.jsonl`` or ``.parquet`` with the columns ``id``,
            ``question``, ``context`` and ``answers`` (``text`` and ``answer_start``).
        val_file: validation questions, in any of these forms; default: the last contexts, with ``val_fraction`` of the
            training questions, are held out.
        no_answer: whether questions may have no answer (SQuAD 2.0).
        null_threshold: with ``no_answer``, there is none where its score, a sum of two logits, is more than this above
            the best span's; validation says the best as ``best_f1_threshold``.
        answer_marks: train only on answers whose field ``start`` is one of these (how sure ``answer_start`` is, in
            data that says so); None trains on every answer that has an ``answer_start``.
        doc_stride: tokens that neighbouring windows share.
        max_length: length of a window in tokens, question and special tokens included.
        batch_size: windows per training batch and device.
        options: see :class:`TextOptions`.

    """

    def __init__(
        self,
        train_file: str | None = None,
        val_file: str | None = None,
        *,
        no_answer: bool = False,
        null_threshold: float = 0.0,
        answer_marks: Sequence[str] | None = None,
        doc_stride: int = 128,
        max_length: int = 384,
        batch_size: int = 16,
        **options: Any,
    ) -> None:
        if math.isnan(null_threshold):
            raise UserError("data.null_threshold: nan must be a number")
        if null_threshold and not no_answer:
            raise UserError(
                f"data.null_threshold: {null_threshold} has no effect where each question has an answer; leave it out, "
                "or set data.no_answer to true (SQuAD 2.0)"
            )
        self.no_answer, self.null_threshold, self.doc_stride = no_answer, null_threshold, doc_stride
        self.answer_marks = list(answer_marks) if answer_marks is not None else None
        super().__init__(
            pair=True, train_file=train_file, val_file=val_file, max_length=max_length, batch_size=batch_size, **options
        )

    def check_tokenizer(self) -> None:
        super().check_tokenizer()
        if not 0 <= self.doc_stride < self.max_length - self.special_tokens:
            raise UserError(
                f"data.doc_stride: {self.doc_stride} must be at least 0 and below max_length {self.max_length} "
                f"less {self.special_tokens} special tokens"
            )
        tokenizer = self.tokenizer_name
        if not self.tokenizer.is_fast:
            raise UserError(f"data.tokenizer: {tokenizer!r} has no fast version, which the places of answers need")
        if self.tokenizer.padding_side == "left":
            raise UserError(
                f"data.tokenizer: {tokenizer!r} pads on the left, and answers are counted from the first token; set "
                '"padding_side": "right" in its tokenizer_config.json, or give another'
            )
        if self.tokenizer("a")["input_ids"][0] != self.tokenizer.cls_token_id:
            raise UserError(f"data.tokenizer: {tokenizer!r} does not begin with its classification token")

    @property
    def task(self) -> Task:
        return QuestionAnsweringTask(self.no_answer, self.null_threshold)

    def load(self, source: str, key: str) -> Dataset:
        if source.endswith((".json", ".json.gz")):
            encoding = self.options.encoding, self.options.encoding_errors
            return generate_table(_read_squad, source, key, self.options.cache_dir, _FEATURES, *encoding)
        return self.read_table(source, key)

    def normalized(self, table: Dataset, split: str) -> Dataset:
        if "starts" in table.column_names:
            return table
        columns = {"id", "question", "context", *(() if split == "predict" else ("answers",))}
        if missing := sorted(columns - set(table.column_names)):
            raise UserError(
                f"data.{split}_file: {self.source(split)!r} has no column {missing[0]!r}; it has {table.column_names}"
            )
        place = {"key": f"data.{split}_file: ", "source": self.source(split)}
        return table.map(
            _row, with_indices=True, fn_kwargs=place, remove_columns=table.column_names, features=_FEATURES
        )

    def check(self, table: Dataset, split: str) -> None:
        if split == "predict":
            return
        answers, impossible = table["answers"], table["impossible"]
        for row, (texts, none) in enumerate(zip(answers, impossible, strict=True)):
            if (none or not texts) and not self.no_answer:
                raise UserError(
                    f"data.{split}_file: question {table[row]['id']!r} of {self.source(split)!r} has no answers; "
                    "set data.no_answer to true if that is meant (SQuAD 2.0)"
                )

    def trainable(self, table: Dataset) -> Dataset:
        """Questions without an answer, and those with an answer whose place is known (and sure enough)."""
        kept = [
            row
            for row, example in enumerate(table.to_list())
            if example["impossible"] or self._place(example) is not None
        ]
        if not kept:
            what = f"has a field start among {self.answer_marks}" if self.answer_marks else "has an answer_start"
            raise UserError(f"data.train_file: no answer in {self.source('train')!r} {what}; there is nothing to learn")
        return table.select(kept)

    def held_out(self, table: Dataset, count: int) -> np.ndarray:
        """Every question on the last contexts, as many as it takes: what is validated on was not trained on."""
        numbers: dict[str, int] = {}
        contexts = np.array([numbers.setdefault(context, len(numbers)) for context in table["context"]])
        if len(numbers) == 1:
            _log.warning("data.val_file: missing, and all questions are on one context: it is validated on, too")
            return np.arange(len(table) - count, len(table))
        questions = np.cumsum(np.bincount(contexts)[::-1])
        last = min(int(np.searchsorted(questions, count)) + 1, len(numbers) - 1)
        return np.flatnonzero(contexts >= len(numbers) - last)

    def encode(self, table: Dataset, split: str) -> Dataset:
        def windows(rows: dict[str, list[Any]], numbers: list[int]) -> dict[str, list[Any]]:
            examples = [{name: rows[name][i] for name in rows} | {"row": numbers[i]} for i in range(len(rows["id"]))]
            return self._windows(examples, split)

        settings = [self.max_length, self.doc_stride, self.answer_marks, self.no_answer, split, "questions-3"]
        encoded = cached_map(table, windows, self.tokenizer, settings, f"Tokenizing {split}", True)
        if cut := int(np.sum(encoded["question_is_cut"])):
            _log.warning(
                "data.max_length: %d of %d questions to %s leave no new context after data.doc_stride %d in %d tokens "
                "and were cut at their ends; give more max_length to read them whole",
                *(cut, len(table), split, self.doc_stride, self.max_length),
            )
        return encoded.remove_columns("question_is_cut")

    def predict_rows(self) -> np.ndarray:
        return np.asarray(self._require("predict")["row"])

    def token_examples(self) -> Iterator[tuple[dict[str, Any], dict[str, list[int]]]]:
        table: Any = self.table("val")
        encoded: Any = self._dataset("val")
        rows, question = iter(table or ()), None
        for window in encoded or ():
            if window["id"] == question:
                continue  # the first window of each question is what a call without overflow gives
            row, question = next(rows), window["id"]
            texts = {"text": self._short([row["question"].lstrip()])[0], "text_pair": row["context"]}
            yield texts | {"truncation": "only_second", "max_length": self.max_length}, self.inputs_of(window)

    def collate(self, rows: dict[str, list[Any]]) -> Batch:
        """Ids and masks ``(batch, tokens)``; targets ``start_positions`` and ``end_positions`` ``(batch,)``.

        For metrics ``meta`` has ``char_start`` and ``char_end`` ``(batch, tokens)``, -1 outside the context, and texts
        in ``examples``.
        """
        targets = {name: torch.tensor(rows[name]) for name in ("start_positions", "end_positions")}
        if "char_start" not in rows:
            return self.batch(rows, targets)
        meta: dict[str, Any] = {}
        for name in ("char_start", "char_end"):
            columns = [torch.tensor(row) for row in rows[name]]
            meta[name] = torch.nn.utils.rnn.pad_sequence(columns, batch_first=True, padding_value=-1)
        meta["examples"] = [
            {"question": question, "context": context, "answers": answers, "no_answer": self.no_answer}
            for question, context, answers in zip(rows["id"], rows["context"], rows["answers"], strict=True)
        ]
        return self.batch(rows, targets, meta)

    def _windows(self, examples: list[dict[str, Any]], split: str) -> dict[str, list[Any]]:
        # Some of SQuAD's questions begin with many blanks, which would take the context's place.
        given = [example["question"].lstrip() for example in examples]
        questions = self._short(given)
        encoded = self.tokenizer(
            questions,
            [example["context"] for example in examples],
            truncation="only_second",
            max_length=self.max_length,
            stride=self.doc_stride,
            return_overflowing_tokens=True,
            return_offsets_mapping=True,
        )
        owners, offsets = encoded.pop("overflow_to_sample_mapping"), encoded.pop("offset_mapping")
        made: dict[str, list[Any]] = {name: list(encoded[name]) for name in encoded}
        made["length"] = [len(ids) for ids in encoded["input_ids"]]
        extra = ("start_positions", "end_positions", "question_is_cut", *(_FOR_METRICS if split != "train" else ()))
        extra = (*extra, *(("row",) if split == "predict" else ()))
        made |= {name: [] for name in extra}
        places = [self._place(example, split) for example in examples]
        for window, owner in enumerate(owners):
            inside = np.array([sequence == 1 for sequence in encoded.sequence_ids(window)])
            characters = np.where(inside[:, None], np.asarray(offsets[window]), -1)
            start, end = self._positions(characters, inside, places[owner], examples[owner], split)
            first = window == 0 or owners[window - 1] != owner
            values = {"start_positions": start, "end_positions": end}
            values["question_is_cut"] = first and questions[owner] != given[owner]
            values |= {"char_start": characters[:, 0].tolist(), "char_end": characters[:, 1].tolist()}
            values |= {name: examples[owner][name] for name in ("id", "context", "answers", "row")}
            for name in extra:
                made[name].append(values[name])
        return made

    def _positions(
        self,
        characters: np.ndarray,
        inside: np.ndarray,
        place: tuple[int, int] | None,
        example: dict[str, Any],
        split: str,
    ) -> tuple[int, int]:
        """First and last token of the answer; 0, 0 when it is not in this window, or there is none."""
        if example["impossible"]:
            return 0, 0
        if place is None:
            return self.max_length, self.max_length  # unknown: beyond every window, so that the loss leaves it out
        tokens = np.flatnonzero(inside)
        start, end = place
        if not len(tokens) or start < characters[tokens[0], 0] or end > characters[tokens[-1], 1]:
            return 0, 0
        first = np.searchsorted(characters[tokens, 0], start, side="right") - 1
        last = np.searchsorted(characters[tokens, 1], end, side="left")
        return int(tokens[first]), int(tokens[last])

    def _place(self, example: dict[str, Any], split: str = "train") -> tuple[int, int] | None:
        """Characters of the first answer that says where it is: first, and after the last.

        Raises:
            UserError: a training answer is not where it is said to be.

        """
        marks = example["marks"] or [""] * len(example["answers"])
        for text, start, mark in zip(example["answers"], example["starts"], marks, strict=True):
            if start < 0 or not text or (split == "train" and self.answer_marks and mark not in self.answer_marks):
                continue
            if example["context"][start : start + len(text)] == text:
                return start, start + len(text)
            if split == "train":
                raise UserError(
                    f"data.train_file: answer {text!r} of question {example['id']!r} in {self.source('train')!r} is "
                    f"not at answer_start {start} of its context; fix the file"
                )
        return None

    def _short(self, questions: list[str]) -> list[str]:
        """Questions that leave room for new context in each window; longer ones end earlier."""
        room = self.max_length - self.special_tokens - self.doc_stride
        encoded = self.tokenizer(questions, add_special_tokens=False, truncation=False, return_offsets_mapping=True)
        ends = [[end for _, end in offsets] for offsets in encoded["offset_mapping"]]
        return [
            question if len(end) < room else question[: end[max(room // 2, 1) - 1]]
            for question, end in zip(questions, ends, strict=True)
        ]


_FOR_METRICS = ("char_start", "char_end", "id", "context", "answers")


def _row(row: dict[str, Any], number: int, source: str | None, key: str = "") -> dict[str, Any]:
    """:func:`_normal_row`; an error names the row, from 0, and its source."""
    try:
        return _normal_row(row)
    except UserError as error:
        raise UserError(f"{key}row {number + 1} of {source!r} {error}; fix the file") from None


def _normal_row(row: dict[str, Any]) -> dict[str, Any]:
    """A row of a table in the form of SQuAD on the hub.

    Raises:
        UserError: the end of a sentence about a row that is not what it must be.

    """
    for name in ("id", "question", "context"):
        if row[name] is None:
            raise UserError(f"has no {name}")
        if name != "id" and not isinstance(row[name], str):
            raise UserError(f"has the {name} {row[name]!r}, which is not text")
    given: Any = row.get("answers") or {}
    wrong = f"has the answers {given!r}, which must be lists of text and answer_start"
    answers = given
    if isinstance(given, list) and all(isinstance(answer, dict) for answer in given):
        answers = {name: [answer.get(name) for answer in given] for name in ("text", "answer_start", "start")}
    if not isinstance(answers, dict):
        raise UserError(wrong)
    texts, starts, marks = (answers.get(name) or [] for name in ("text", "answer_start", "start"))
    if not all(isinstance(each, list) for each in (texts, starts, marks)):
        raise UserError(wrong)
    starts = [-1 if start is None else start for start in starts or [-1] * len(texts)]
    marks = [str(mark or "") for mark in marks or [""] * len(texts)]
    if len(texts) != len(starts):
        raise UserError(f"has answers with {len(texts)} texts and {len(starts)} answer_start")
    are_of_their_kinds = all(isinstance(text, str) for text in texts) and all(map(_is_whole, starts))
    if len(texts) != len(marks) or not are_of_their_kinds:
        raise UserError(wrong)
    impossible = bool(row["is_impossible"]) if row.get("is_impossible") is not None else not texts
    return {
        "id": str(row["id"]),
        "question": row["question"],
        "context": row["context"],
        "answers": [] if impossible else texts,
        "starts": [] if impossible else starts,
        "marks": [] if impossible else marks,
        "impossible": impossible,
    }


def _is_whole(number: Any) -> bool:
    return isinstance(number, int | float) and float(number).is_integer()


def _read_squad(path: str, stamp: str, encoding: str, errors: str) -> Iterator[dict[str, Any]]:
    """Rows of SQuAD's nested JSON."""
    content, numbers = read_json(path, encoding, errors), itertools.count()
    try:
        for article in content["data"]:
            for paragraph in article["paragraphs"]:
                for question in paragraph["qas"]:
                    yield _row(question | {"context": paragraph["context"]}, next(numbers), path)
    except (KeyError, TypeError, AttributeError) as error:
        raise UserError(
            f"{path!r} is not SQuAD's JSON (data > paragraphs > context, qas > id, question, answers): {error!r}"
        ) from error
