"""What a table of examples is probably for: its task, and which columns it reads.

Functions of columns alone. What is a guess and no certainty is said in :attr:`Guess.doubts`.
"""

import math
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from lit_compress.choices import GuessedTask
from lit_compress.data.guess_file import is_number
from lit_compress.errors import UserError

__all__ = ["Guess", "guess_answers", "guess_task"]

Columns = Mapping[str, Sequence[Any]]

_LABELS = (
    *("label", "labels", "target", "class", "category", "gold_label", "sentiment", "score", "similarity_score"),
    *("quality", "rating", "stars", "intent", "topic", "y"),
)
_TEXTS = ("text", "sentence", "content", "review", "comment", "tweet", "body", "document", "message", "utterance")
_PAIRS = (
    *(("sentence1", "sentence2"), ("premise", "hypothesis"), ("question1", "question2"), ("question", "sentence")),
    *(("text1", "text2"), ("text_a", "text_b"), ("query", "passage"), ("query", "document")),
    *(("question", "passage"), ("#1 string", "#2 string")),
)
_WORDS, _TAGS = ("tokens", "words"), ("tags", "ner_tags", "labels", "pos_tags")
_SEPARATORS = ("|", ";", ",")
_PROSE = 3  # words on average
_FEW = 20  # numbers of which each may be a class


@dataclass(frozen=True, kw_only=True)
class Guess:
    """What a table was taken for.

    Args:
        task: kind of task.
        options: of its data module, those that are not the default.
        why: a few words about an option, by its name.
        doubts: sentences about what could also be meant, each with the option that says so.

    """

    task: GuessedTask
    options: dict[str, Any] = field(default_factory=dict)
    why: dict[str, str] = field(default_factory=dict)
    doubts: tuple[str, ...] = ()


def guess_task(
    columns: Columns,
    task: GuessedTask | None = None,
    text_columns: Sequence[str] | None = None,
    label_column: str | None = None,
) -> Guess:
    """The task of a table, and which columns it reads.

    Args:
        columns: values of some rows, by column; numbers, texts or lists.
        task: what it is, when that is known.
        text_columns: columns with the texts, when they are known.
        label_column: column with the labels, when it is known.

    Raises:
        UserError: no column has what the task needs.

    """
    known = (*(text_columns or ()), *([label_column] if label_column else ()))
    if missing := [name for name in known if name not in columns]:
        key = "label_column" if missing[0] == label_column else "text_columns"
        raise UserError(f"--{key}: {missing[0]!r} is not a column; it has {list(columns)}")
    if task in (None, "question-answering") and {"question", "context", "answers"} <= {*columns}:
        return guess_answers(columns["answers"])
    if task in (None, "token-classification") and (found := _words_and_tags(columns)):
        return _token_classification(*found)
    if task in ("question-answering", "token-classification"):
        needed = "question, context and answers" if task == "question-answering" else "lists of words and lists of tags"
        raise UserError(f"--task: {task} needs columns with {needed}; it has {list(columns)}")
    label, doubts = (label_column, []) if label_column else _label_column(columns, text_columns or ())
    if task in ("embedding", "reranking"):
        return _scored_texts(columns, task, text_columns, label, asked=label_column is not None)
    texts, why, more = _text_columns(columns, text_columns, label)
    doubts += more
    if task == "pretraining":
        return _pretraining(texts, why, doubts)
    if flags := _flag_columns(columns, task, texts, label, label_column):
        return _flags(texts, why, flags, doubts)
    if label is None:
        if task is not None:
            raise UserError(f"--label_column: missing; none of {list(columns)} looks like the label of a {task}")
        return _pretraining(texts, why, doubts)
    return _labelled(columns[label], label, task, texts, why, doubts)


def guess_answers(answers: Sequence[Any]) -> Guess:
    """Question answering, from the answers of each question: a list, or a mapping with a list of texts."""
    empty = sum(not (each.get("text") if isinstance(each, Mapping) else each) for each in answers)
    if not empty:
        return Guess(task="question-answering")
    why = {"no_answer": f"{empty} of {len(answers)} questions have no answer"}
    return Guess(task="question-answering", options={"no_answer": True}, why=why)


def _labelled(
    values: Sequence[Any],
    label: str,
    task: GuessedTask | None,
    texts: list[str],
    why: dict[str, str],
    doubts: list[str],
) -> Guess:
    options: dict[str, Any] = {"text_columns": texts, "label_column": label}
    names = [value for value in values if not isinstance(value, list)]
    separator = _separator([str(value) for value in names]) if task in (None, "multi-label") else None
    if len(names) < len(values) or separator or task == "multi-label":
        if separator:
            options["label_separator"] = separator
            why["label_separator"] = "separates the labels of an example"
            doubts.append(
                f"{label!r} is read as several labels with {separator!r} between; if each is one class, give "
                "--task classification"
            )
        return Guess(task="multi-label", options=options, why=why, doubts=tuple(doubts))
    distinct = Counter(map(str, names))
    numbers = all(is_number(name) for name in distinct)
    whole = numbers and all(float(name).is_integer() for name in distinct)
    if task == "regression" or (task is None and numbers and (not whole or len(distinct) > _FEW)):
        if task is None and whole:
            doubts.append(f"{label!r} has {len(distinct)} numbers, read as amounts; for classes --task classification")
        why["task"] = f"{label!r} holds numbers from {min(distinct, key=float)} to {max(distinct, key=float)}"
        return Guess(task="regression", options={"task": "regression"} | options, why=why, doubts=tuple(doubts))
    if task is None and whole and len(distinct) > 2:
        doubts.append(f"{label!r} has {len(distinct)} whole numbers, taken for classes; for amounts --task regression")
    if len(distinct) > max(len(names) // 2, _FEW):
        raise UserError(
            f"--label_column: {label!r} has {len(distinct)} different values in {len(names)} examples, too many for "
            "classes; name another column"
        )
    why["label_column"] = _counts(distinct)
    (_, most), (_, least) = distinct.most_common()[0], distinct.most_common()[-1]
    if most > 10 * least:
        doubts.append(
            "One class has ten times the examples of another; data.class_weights: balanced weighs them equally"
        )
    return Guess(task="classification", options=options, why=why, doubts=tuple(doubts))


def _scored_texts(
    columns: Columns, task: GuessedTask, given: Sequence[str] | None, label: str | None, asked: bool
) -> Guess:
    """Texts with a score, or without one texts that belong together and others that do not."""
    if label is not None and not (len({*columns[label]}) > 1 and all(is_number(value) for value in columns[label])):
        if asked:
            raise UserError(f"--label_column: {label!r} holds no numbers that differ, and {task} needs scores")
        label = None  # what looks like a label is not a score of pairs
    if task == "reranking" and label is None:
        return _ranked(columns, given)
    texts, why, _ = _text_columns(columns, given, label)
    if len(texts) < 2 or (label is not None and len(texts) > 2):
        needed = (
            "an embedding is measured on two: give --text_columns of a pair, with --label_column, its score, where "
            "there is one"
            if task == "embedding"
            else "a reranker reads two: give the query and its document"
        )
        several = "is one column" if len(texts) == 1 else f"are {len(texts)} columns"
        raise UserError(f"--text_columns: {texts} {several} of texts, and {needed}")
    if label is None:
        why["text_columns"] = "texts of a row are a pair; no column holds scores"
        return Guess(task=task, options={"text_columns": texts}, why=why)
    numbers = [float(value) for value in columns[label]]
    low, high = min(numbers), max(numbers)
    why["label_column"] = f"holds numbers from {low:g} to {high:g}"
    options: dict[str, Any] = {"text_columns": texts, "label_column": label}
    if low < (-1 if task == "embedding" else 0) or high > 1:  # no cosines, or no relevance
        options["score_range"] = [min(math.floor(low), 0), math.ceil(high)]
    return Guess(task=task, options=options, why=why)


def _ranked(columns: Columns, given: Sequence[str] | None) -> Guess:
    """A query, the document that is relevant, and others that are not, by the order of the columns."""
    texts = list(given or (name for name in columns if _is_text(columns[name]) and not _is_id(name)))
    if len(texts) < 3:
        raise UserError(
            f"--text_columns: {texts} must be query, relevant document and one or more others; for a query, a document "
            "and its score give --label_column, a column of numbers"
        )
    why = {"text_columns": "the query, the relevant document, and others", "label_column": "no column holds scores"}
    return Guess(task="reranking", options={"text_columns": texts, "label_column": None}, why=why)


def _pretraining(texts: list[str], why: dict[str, str], doubts: list[str]) -> Guess:
    why = {"text_column": why["text_columns"]} if "text_columns" in why else {}
    doubts = [*doubts, "No column looks like a label; if there is one, give --label_column"]
    return Guess(task="pretraining", options={"text_column": texts[0]}, why=why, doubts=tuple(doubts))


def _flag_columns(
    columns: Columns, task: GuessedTask | None, texts: list[str], label: str | None, label_column: str | None
) -> list[str]:
    """Columns of 0 and 1 that are labels of their own; none where another column is the label."""
    flags = [name for name in columns if name not in texts and _is_flag(columns[name])]
    if label_column is not None or len(flags) < 2:
        return []
    named = label is not None and label.lower() in _LABELS
    open_to_flags = (label is None or label in flags) and not named
    return flags if task == "multi-label" or open_to_flags else []


def _flags(texts: list[str], why: dict[str, str], flags: list[str], doubts: list[str]) -> Guess:
    why["label_columns"] = "hold 0 and 1 alone"
    doubts.append(f"The columns {flags} are read as labels that are true or false; for one label give --label_column")
    options = {"text_columns": texts, "label_columns": flags}
    return Guess(task="multi-label", options=options, why=why, doubts=tuple(doubts))


def _token_classification(words: str, tags: str, others: list[str]) -> Guess:
    options = {} if words == "tokens" and tags in ("tags", "ner_tags") else {"token_column": words, "tag_column": tags}
    why = {"tag_column": "as many entries as there are words"}
    doubts = [f"{each!r} could be the tags, too; data.tag_column: {each}" for each in others]
    return Guess(task="token-classification", options=options, why=why, doubts=tuple(doubts))


def _words_and_tags(columns: Columns) -> tuple[str, str, list[str]] | None:
    """Names of the columns with words and with tags, and of others that could be tags; None where there are none."""
    lists = {name: values for name, values in columns.items() if values and all(isinstance(v, list) for v in values)}
    if len(lists) < 2:
        return None
    words = next((name for name in lists if name.lower() in _WORDS), None)
    words = words or max(lists, key=lambda name: len({str(entry) for row in lists[name] for entry in row}))
    sizes = [len(row) for row in lists[words]]
    tags = [name for name in lists if name != words and [len(row) for row in lists[name]] == sizes]
    tags.sort(key=lambda name: _TAGS.index(name.lower()) if name.lower() in _TAGS else len(_TAGS))
    return (words, tags[0], tags[1:]) if tags else None


def _label_column(columns: Columns, texts: Sequence[str]) -> tuple[str | None, list[str]]:
    """The column that looks most like a label, and what could also be one."""
    free = [name for name in columns if name not in texts]
    if named := [name for known in _LABELS for name in free if name.lower() == known]:
        others = named[1:]
        return named[0], [f"{named[0]!r} is taken for the label, not {others}; --label_column"] if others else []
    if lists := [name for name in free if any(isinstance(value, list) for value in columns[name])]:
        return lists[0], []
    sizes = {name: len({*map(str, columns[name])}) for name in free if _may_be_label(name, columns[name])}
    few = {name: size for name, size in sizes.items() if 1 < size <= max(len(columns[name]) // 2, 2)}
    numbers = [name for name in sizes if all(is_number(value) for value in columns[name])]
    candidates = sorted(few, key=lambda name: (few[name], name not in numbers)) or numbers[-1:]
    if not candidates:
        return None, []
    others = [name for name in candidates[1:] if not _is_flag(columns[name])]
    said = f"{candidates[0]!r} is taken for the label, and {others} could be it; --label_column"
    return candidates[0], [said] if others else []


def _may_be_label(name: str, values: Sequence[Any]) -> bool:
    blank = any(value is None or not str(value).strip() for value in values)
    return not _is_id(name) and not blank and _mean_words(values) < _PROSE


def _is_id(name: str) -> bool:
    # A table is read with "Unnamed: 0" for the name of a column that has none, such as the index that pandas writes.
    return re.fullmatch(r"(.*[_ #])?(id|idx|index|uid|guid)|unnamed: \d+", name.lower()) is not None


def _text_columns(
    columns: Columns, given: Sequence[str] | None, label: str | None
) -> tuple[list[str], dict[str, str], list[str]]:
    """Columns with the texts, why, and what could also be meant."""
    if given:
        return list(given), {}, []
    lower = {name.lower(): name for name in columns if name != label}
    for pair in _PAIRS:
        if {*pair} <= lower.keys():
            return [lower[name] for name in pair], {"text_columns": "a pair by its names"}, []
    texts = [name for name in lower.values() if _is_text(columns[name])]
    if not texts:
        raise UserError(f"--text_columns: missing; none of {list(columns)} looks like text")
    prose = [name for name in texts if _mean_words(columns[name]) >= _PROSE] or [max(texts, key=_letters(columns))]
    named = [lower[name] for name in _TEXTS if name in lower and lower[name] in texts]
    if named or len(prose) != 2:
        chosen = named[0] if named else max(prose, key=_letters(columns))
        others = [name for name in prose if name != chosen]
        words = f"{_mean_words(columns[chosen]):.0f} words on average"
        pair = ", ".join([*others[:1], chosen])
        doubt = f"{chosen!r} is read, {others} not; for a pair --text_columns '[{pair}]'"
        return [chosen], {"text_columns": words}, [doubt] if others else []
    doubt = f"{prose} are read as a pair; for one of them --text_columns '[{prose[0]}]'"
    return prose, {"text_columns": "both hold sentences: a pair"}, [doubt]


def _letters(columns: Columns):
    return lambda name: sum(len(str(value)) for value in columns[name])


def _separator(values: Sequence[str]) -> str | None:
    """What stands between labels in a text: its parts are short, and each row of several uses labels that recur."""
    for sign in _SEPARATORS:
        several = [value.split(sign) for value in values if sign in value]
        counts = Counter(part.strip() for value in values for part in value.split(sign))
        recur = all(counts[part.strip()] > 1 or not part.strip() for row in several for part in row)
        short = all(len(part.split()) <= 4 for part in counts)
        if len(several) > 1 and len(counts) <= len({*values}) and recur and short:
            return sign
    return None


def _counts(distinct: Counter[str]) -> str:
    shown = ", ".join(f"{name} ({count})" for name, count in distinct.most_common(5))
    return f"{len(distinct)} classes: {shown}{', ...' if len(distinct) > 5 else ''}"


def _is_flag(values: Sequence[Any]) -> bool:
    found = {str(value) for value in values}
    return len(found) == 2 and found <= {"0", "1", "0.0", "1.0", "True", "False"}


def _is_text(values: Sequence[Any]) -> bool:
    return all(isinstance(value, str) for value in values) and not all(is_number(value) for value in values)


def _mean_words(values: Sequence[Any]) -> float:
    return sum(len(str(value).split()) for value in values) / max(len(values), 1)
