"""What a model did on each unit of the validation data, in a form whose metrics can be computed for any resample."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain
from typing import Any

import numpy as np
import torch
from torch.nn import functional as F

from lit_compress.functional.entities import entities, is_entity_tag
from lit_compress.modules.metrics import IGNORED, AnswerScore, gold_answers, whole_sentences, word_tags
from lit_compress.modules.tasks import (
    Classification,
    MaskedLanguageModel,
    Pretraining,
    QuestionAnswering,
    Regression,
    Task,
    TokenClassification,
)

__all__ = ["Outcomes", "Recorder"]

Scores = dict[str, np.ndarray]


@dataclass(frozen=True, kw_only=True)
class Outcomes:
    """A model's answers to the units that a resample draws: rows, sentences, questions or sequences.

    Attributes:
        unit: what a unit is called, in the plural.
        lengths: int ``(units,)``, of each unit's input.
        length_unit: what it is counted in.
        score: weights ``(resamples, units)``, how often each unit was drawn, to metric to ``(resamples,)``; the names
            and conventions are those of the task's metrics.
        score_classes: likewise, to class to metric; None where a task has no classes.
        class_units: how many units (or entities) each class has.
        confidence: of the predicted class, ``(units,)``; None where there are no probabilities.
        right: bool ``(units,)``, whether the answer is right; None where answers are not right or wrong.
        share: the metric that is the share of right answers, and its value when all are; None where there is none.
        goodness: how good each answer is, ``(units,)``, more is better; what says whether it became better or worse.
        constant: what every unit is answered with, when that is the same thing although it should not be.
        majority: the most frequent class and its share, the accuracy of a model that knows nothing.
        slices: name to bool ``(units,)``, beside the slices by length.

    """

    unit: str
    lengths: np.ndarray
    score: Callable[[np.ndarray], Scores]
    length_unit: str = "tokens"
    score_classes: Callable[[np.ndarray], dict[str, Scores]] | None = None
    class_units: Mapping[str, int] = field(default_factory=dict)
    confidence: np.ndarray | None = None
    right: np.ndarray | None = None
    share: tuple[str, float] | None = None
    goodness: np.ndarray | None = None
    constant: str | None = None
    majority: tuple[str, float] | None = None
    slices: Mapping[str, np.ndarray] = field(default_factory=dict)


class Recorder:
    """Keeps what :class:`Outcomes` needs of each batch; logits are not kept.

    Args:
        task: what the model is asked.
        labels: names of classes or tags in the order of their ids.

    """

    def __init__(self, task: Task, labels: Sequence[str] | None = None) -> None:
        self.task, self.labels = task, list(labels or ())
        self._record, self._finish = _KINDS[type(task)]
        self._batches: list[dict[str, Any]] = []

    def add(self, output: Any, batch: Mapping[str, Any]) -> None:
        """Keep the answers to one batch, a Hugging Face output."""
        mask = batch.get("attention_mask")
        lengths = torch.full(batch["input_ids"].shape[:1], batch["input_ids"].shape[1]) if mask is None else mask.sum(1)
        self._batches.append({"lengths": _array(lengths)} | self._record(self, output, batch))

    def outcomes(self) -> Outcomes:
        """Everything that was added."""
        columns: dict[str, Any] = {}
        for name in self._batches[0]:
            parts = [batch[name] for batch in self._batches]
            columns[name] = (
                np.concatenate(parts) if isinstance(parts[0], np.ndarray) else list(chain.from_iterable(parts))
            )
        return self._finish(self, columns)


def _record_classes(recorder: Recorder, output: Any, batch: Mapping[str, Any]) -> dict[str, Any]:
    confidence, guess = output.logits.float().softmax(-1).max(-1)
    return {"confidence": _array(confidence), "guess": _array(guess), "truth": _array(batch["labels"])}


def _classes(recorder: Recorder, columns: dict[str, Any]) -> Outcomes:
    truth, guess, labels = columns["truth"], columns["guess"], recorder.labels
    one_hot, right = np.eye(len(labels)), columns["truth"] == columns["guess"]
    sums = np.concatenate([one_hot[truth] * right[:, None], one_hot[guess], one_hot[truth]], axis=1)

    def score(weights: np.ndarray) -> Scores:
        hits, found, true = np.split(weights @ sums, 3, axis=1)
        total, f1 = true.sum(1), _f1(hits, found, true)
        # As torchmetrics: F1 of class 1 of two, else the mean over the classes that occur.
        f1 = np.nan_to_num(f1[:, 1]) if len(labels) == 2 else np.nan_to_num(_mean(f1))
        covariance = hits.sum(1) * total - (true * found).sum(1)
        scale = np.sqrt((total**2 - (true**2).sum(1)) * (total**2 - (found**2).sum(1)))
        return {
            "accuracy": _divide(hits.sum(1), total),
            "f1": f1,
            "matthews": np.nan_to_num(_divide(covariance, scale)),
        }

    return Outcomes(
        unit="rows",
        lengths=columns["lengths"],
        score=score,
        score_classes=_classes_from(sums, labels),
        class_units={label: int((truth == index).sum()) for index, label in enumerate(labels)},
        confidence=columns["confidence"],
        right=right,
        share=("accuracy", 1.0),
        goodness=right.astype(float),
        constant=labels[guess[0]] if len(set(guess)) == 1 < len(set(truth)) else None,
        majority=(labels[most := int(np.bincount(truth).argmax())], float((truth == most).mean())),
    )


def _record_values(recorder: Recorder, output: Any, batch: Mapping[str, Any]) -> dict[str, Any]:
    return {"guess": _array(recorder.task.predictions(output, dict(batch))), "truth": _array(batch["labels"])}


def _values(recorder: Recorder, columns: dict[str, Any]) -> Outcomes:
    guess, truth = columns["guess"].astype(np.float64), columns["truth"].astype(np.float64)

    def score(weights: np.ndarray) -> Scores:
        ranks = _ranks(guess, weights), _ranks(truth, weights)
        return {"pearson": _correlation(guess, truth, weights), "spearman": _correlation(*ranks, weights)}

    # Values within a hundredth of what they should differ by are one value.
    same = len(guess) > 1 and np.ptp(guess) < 0.01 * truth.std()
    return Outcomes(
        unit="rows",
        lengths=columns["lengths"],
        score=score,
        goodness=-np.abs(guess - truth),
        constant=f"about {guess.mean():.4g}" if same else None,
    )


def _record_tags(recorder: Recorder, output: Any, batch: Mapping[str, Any]) -> dict[str, Any]:
    words = word_tags(output.logits.argmax(-1), batch)
    return {"words": _array(words), "sentence": np.array([example["sentence"] for example in batch["examples"]])}


def _tags(recorder: Recorder, columns: dict[str, Any]) -> Outcomes:
    kinds = _tag_kinds(recorder.labels)
    # Rows of one sentence are joined, and drawn together.
    _, owner = np.unique(columns["sentence"], return_inverse=True)
    lengths = np.bincount(owner, columns["lengths"]).astype(int)
    sums = np.stack(
        [_tag_counts(tags, recorder.labels, kinds) for tags in whole_sentences(torch.tensor(columns["words"]))]
    )

    def score(weights: np.ndarray) -> Scores:
        total = weights @ sums
        scores: Scores = {}
        if kinds != recorder.labels:
            hits, found, true = (part.sum(1) for part in np.split(total[:, :-2], 3, axis=1))
            scores["f1"] = 2 * hits / np.maximum(found + true, 1)
            scores["precision"] = hits / np.maximum(found, 1)
            scores["recall"] = hits / np.maximum(true, 1)
        return scores | {"accuracy": _divide(total[:, -2], np.maximum(total[:, -1], 1))}

    true = np.split(sums[:, :-2].sum(0), 3)[2]
    hits, found, wanted = (part.sum(1) for part in np.split(sums[:, :-2], 3, axis=1))
    guesses, truths = (set(columns["words"][:, column].tolist()) for column in (2, 3))
    return Outcomes(
        unit="sentences",
        lengths=lengths,
        score=score,
        goodness=2 * hits - found - wanted,  # minus the entities that are missing, and those that are not there
        constant=recorder.labels[guesses.pop()] if len(guesses) == 1 < len(truths) else None,
        score_classes=_classes_from(sums[:, :-2], kinds),
        class_units={kind: int(count) for kind, count in zip(kinds, true, strict=True)},
    )


def _tag_counts(tags: torch.Tensor, names: list[str], kinds: list[str]) -> np.ndarray:
    """Right, predicted and true entities of a sentence ``(3 * kinds,)``, right tags, all tags; ids ``(words, 2)``."""
    numbers = {kind: number for number, kind in enumerate(kinds)}
    counts, correct = np.zeros((3, len(kinds))), (tags[:, 0] == tags[:, 1]).sum()
    found, true = (
        set(entities([names[tag] for tag in ids]))
        if kinds != names
        else {(names[tag], place, place) for place, tag in enumerate(ids)}
        for ids in tags.T.tolist()
    )
    for index, group in enumerate((found & true, found, true)):
        for kind, *_ in group:
            counts[index, numbers[kind]] += 1
    return np.array([*counts.reshape(-1), int(correct), len(tags)])


def _tag_kinds(labels: list[str]) -> list[str]:
    """Kinds of entities, or the tags themselves where they are no entity tags."""
    if not all(is_entity_tag(label) for label in labels):
        return labels
    return list(dict.fromkeys(label.partition("-")[2] for label in labels if label != "O"))


def _record_answers(recorder: Recorder, output: Any, batch: Mapping[str, Any]) -> dict[str, Any]:
    windows = AnswerScore().best_of_windows(output.start_logits, output.end_logits, dict(batch))
    lengths = [{"context": len(example["context"])} for example in batch["examples"]]
    return {"windows": [window | length for window, length in zip(windows, lengths, strict=True)]}


def _answers(recorder: Recorder, columns: dict[str, Any]) -> Outcomes:
    windows = {window["question"]: window for window in columns["windows"]}
    scores = AnswerScore().scores(columns["windows"])
    sums = np.array(list(scores.values()))
    answered = np.array([gold_answers(windows[question]) != [""] for question in scores])

    def score(weights: np.ndarray) -> Scores:
        means = _divide(weights @ sums, weights.sum(1)[:, None])
        return {"f1": means[:, 1], "exact_match": means[:, 0]}

    said = set(AnswerScore().answers(columns["windows"]).values())
    both = {"with an answer": answered, "without an answer": ~answered} if 0 < answered.mean() < 1 else {}
    return Outcomes(
        unit="questions",
        lengths=np.array([windows[question]["context"] for question in scores]),
        length_unit="characters of context",
        score=score,
        right=sums[:, 0] > 0,
        share=("exact_match", 100.0),
        goodness=sums[:, 1],
        constant=(said.pop() or "no answer") if len(said) == 1 < len(scores) else None,
        slices=both,
    )


def _record_words(recorder: Recorder, output: Any, batch: Mapping[str, Any]) -> dict[str, Any]:
    following = isinstance(recorder.task, Pretraining)
    logits, labels = output.prediction_logits if following else output.logits, batch["labels"]
    row, column = torch.nonzero(labels != IGNORED, as_tuple=True)
    logits, truth = logits[row, column].float(), labels[row, column]
    sums = np.zeros((len(labels), 4))
    values = (F.cross_entropy(logits, truth, reduction="none"), logits.argmax(-1) == truth, torch.ones_like(truth))
    for index, value in enumerate(values):
        sums[:, index] = np.bincount(_array(row), _array(value), len(labels))
    if following:
        sums[:, 3] = _array(output.seq_relationship_logits.argmax(-1) == batch["next_sentence_label"])
    return {"sums": sums}


def _words(recorder: Recorder, columns: dict[str, Any]) -> Outcomes:
    sums = columns["sums"]

    def score(weights: np.ndarray) -> Scores:
        loss, right, count, follows = (weights @ sums).T
        scores = {"perplexity": np.exp(_divide(loss, count)), "accuracy": _divide(right, count)}
        if isinstance(recorder.task, Pretraining):
            scores["next_sentence"] = _divide(follows, weights.sum(1))
        return scores

    return Outcomes(unit="sequences", lengths=columns["lengths"], score=score, goodness=-sums[:, 0])


def _classes_from(sums: np.ndarray, names: list[str]) -> Callable[[np.ndarray], dict[str, Scores]]:
    """Recall, precision and F1 of each class from ``(units, 3 * classes)``: right, predicted and true ones."""

    def score(weights: np.ndarray) -> dict[str, Scores]:
        hits, found, true = np.split(weights @ sums, 3, axis=1)
        parts = {"recall": _divide(hits, true), "precision": _divide(hits, found), "f1": _f1(hits, found, true)}
        return {name: {key: values[:, index] for key, values in parts.items()} for index, name in enumerate(names)}

    return score


def _f1(hits: np.ndarray, found: np.ndarray, true: np.ndarray) -> np.ndarray:
    return _divide(2 * hits, found + true)


def _divide(above: np.ndarray, below: np.ndarray) -> np.ndarray:
    """NaN where there is nothing to divide by, silently."""
    above, below = np.broadcast_arrays(above, below)
    return np.divide(above, below, out=np.full(above.shape, np.nan), where=below > 0)


def _mean(values: np.ndarray) -> np.ndarray:
    """Mean of each row over what is a number."""
    known = ~np.isnan(values)
    return _divide(np.where(known, values, 0).sum(1), known.sum(1))


def _correlation(first: np.ndarray, second: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Pearson's, in each resample; values ``(units,)`` or ``(resamples, units)``."""
    total = weights.sum(1, keepdims=True)
    first, second = (values - _divide((weights * values).sum(1, keepdims=True), total) for values in (first, second))
    scale = np.sqrt((weights * first**2).sum(1) * (weights * second**2).sum(1))
    return _divide((weights * first * second).sum(1), scale)


def _ranks(values: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Mean rank of each value ``(units,)`` in each resample ``(resamples, units)``, without building the resample."""
    _, group = np.unique(values, return_inverse=True)
    order = np.argsort(group, kind="stable")
    starts = np.searchsorted(group[order], np.arange(group.max() + 1))
    counts = np.add.reduceat(weights[:, order], starts, axis=1)
    return (counts.cumsum(1) - (counts - 1) / 2)[:, group]


def _array(tensor: torch.Tensor) -> np.ndarray:
    return tensor.detach().cpu().numpy()


# How the answers to a batch are kept, and what becomes of them.
_KINDS: dict[type, tuple[Callable[..., dict[str, Any]], Callable[..., Outcomes]]] = {
    Classification: (_record_classes, _classes),
    Regression: (_record_values, _values),
    TokenClassification: (_record_tags, _tags),
    QuestionAnswering: (_record_answers, _answers),
    MaskedLanguageModel: (_record_words, _words),
    Pretraining: (_record_words, _words),
}
