"""Metrics of token and text tasks: sums and texts that are gathered over all ranks before anything is divided."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F
from torchmetrics import Metric
from torchmetrics.classification import MulticlassConfusionMatrix
from torchmetrics.utilities import dim_zero_cat

from lit_compress.functional.answers import answer_scores, words_of
from lit_compress.functional.entities import entities, is_entity_tag
from lit_compress.functional.spans import best_spans

__all__ = [
    "IGNORED",
    "AnswerScore",
    "ClassScore",
    "EntityScore",
    "MaskedTokenScore",
    "MeanLoss",
    "gold_answers",
    "whole_sentences",
    "word_tags",
]

# Label of tokens that are not part of a loss or a metric: F.cross_entropy's default.
IGNORED = -100


class MeanLoss(Metric):
    """Mean of batch losses, each weighted by what it is the mean of.

    torchmetrics' ``MeanMetric`` leaves out a NaN, or (version 1.9, ``nan_strategy="disable"``) the weights.
    """

    full_state_update = False
    total: Tensor
    count: Tensor

    def __init__(self) -> None:
        super().__init__()
        for name in ("total", "count"):
            self.add_state(name, torch.zeros((), dtype=torch.float64), dist_reduce_fx="sum")

    def update(self, loss: Tensor, count: int) -> None:
        """Add the loss of a batch."""
        self.total += loss.double() * count
        self.count += count

    def compute(self) -> Tensor:
        return (self.total / self.count).float()


class ClassScore(MulticlassConfusionMatrix):
    """``accuracy``, ``f1`` and ``matthews`` correlation of classes, in float64.

    F1 is of class 1 when there are two classes (GLUE's convention for MRPC and QQP), and otherwise the mean over the
    classes that occur. The Matthews correlation is 0 when predictions or labels are all of one class; torchmetrics'
    own gives such a collapsed model up to 0.58 (version 1.9, labels 0, 0, 0, 1).
    """

    def compute(self) -> dict[str, Tensor]:
        matrix = self.confmat.double()
        right, true, found, total = matrix.diag(), matrix.sum(1), matrix.sum(0), matrix.sum()
        f1 = 2 * right / (true + found)
        covariance = right.sum() * total - true @ found
        scale = ((total**2 - true @ true) * (total**2 - found @ found)).sqrt()
        return {
            "accuracy": right.sum() / total,
            "f1": f1[1].nan_to_num() if len(right) == 2 else f1.nanmean(),
            "matthews": torch.where(scale > 0, covariance / scale, torch.zeros_like(scale)),
        }


class MaskedTokenScore(Metric):
    """``perplexity`` and top-1 ``accuracy`` over the tokens with a label, every token weighing the same."""

    full_state_update = False
    loss: Tensor
    correct: Tensor
    count: Tensor

    def __init__(self) -> None:
        super().__init__()
        for name in ("loss", "correct", "count"):
            self.add_state(name, torch.zeros((), dtype=torch.float64), dist_reduce_fx="sum")

    def update(self, logits: Tensor, labels: Tensor) -> None:
        """Add logits ``(batch, tokens, vocabulary)`` and labels ``(batch, tokens)``."""
        masked = labels != IGNORED
        logits, labels = logits[masked].float(), labels[masked]
        self.loss += F.cross_entropy(logits, labels, reduction="sum").double()
        self.correct += (logits.argmax(-1) == labels).sum()
        self.count += len(labels)

    def compute(self) -> dict[str, Tensor]:
        count = self.count.clamp_min(1)
        return {"perplexity": (self.loss / count).exp(), "accuracy": self.correct / count}


class EntityScore(Metric):
    """Entity-level ``f1``, ``precision`` and ``recall`` (micro average), and ``accuracy`` of single tags.

    An entity counts when its kind and both its ends are right, as CoNLL's script counts. The rows of a long sentence
    are joined first, whichever rank saw them. Labels that are no entity tags (parts of speech) have an accuracy only.

    Args:
        labels: tags in the order of their ids.

    """

    full_state_update = False
    words: list[Tensor]

    def __init__(self, labels: Sequence[str]) -> None:
        super().__init__()
        self.labels = list(labels)
        self.has_entities = all(is_entity_tag(label) for label in labels)
        self.add_state("words", [], dist_reduce_fx="cat")

    def update(self, predictions: Tensor, batch: Mapping[str, Any]) -> None:
        """Add tag ids ``(batch, tokens)``, and the batch of a token classification data module."""
        self.words.append(word_tags(predictions, batch))

    def compute(self) -> dict[str, Tensor]:
        words = dim_zero_cat(self.words)
        scores: dict[str, Tensor] = {}
        if self.has_entities:  # first what tables show: most tags are "O", so that every model has them right
            right, found, true = words.new_tensor(self._entity_counts(words), dtype=torch.float64)
            scores["f1"] = 2 * right / (found + true).clamp_min(1)
            scores["precision"] = right / found.clamp_min(1)
            scores["recall"] = right / true.clamp_min(1)
        return scores | {"accuracy": (words[:, 2] == words[:, 3]).double().mean()}

    def _entity_counts(self, words: Tensor) -> tuple[int, int, int]:
        """Entities that are right, predicted, and true."""
        right = found = true = 0
        for tags in whole_sentences(words):
            guess, truth = (set(entities([self.labels[tag] for tag in column.tolist()])) for column in tags.unbind(1))
            right, found, true = right + len(guess & truth), found + len(guess), true + len(truth)
        return right, found, true


def word_tags(predictions: Tensor, batch: Mapping[str, Any]) -> Tensor:
    """Sentence, place in it, predicted and true tag of every labelled word, int64 ``(words, 4)``.

    Args:
        predictions: tag ids ``(batch, tokens)``.
        batch: of a token classification data module.

    """
    counted = batch["labels"] != IGNORED
    place = counted.cumsum(1) - 1 + _column(batch, "first_word")
    columns = (_column(batch, "sentence").expand_as(place), place, predictions, batch["labels"])
    return torch.stack([column[counted] for column in columns], dim=1)


def _column(batch: Mapping[str, Any], name: str) -> Tensor:
    return batch["labels"].new_tensor([[example[name]] for example in batch["examples"]])


def whole_sentences(words: Tensor) -> list[Tensor]:
    """Predicted and true tag ids ``(words, 2)`` of each sentence, in order, from rows of :func:`word_tags` in any."""
    words = words.cpu()
    words = words[torch.from_numpy(np.lexsort((words[:, 1], words[:, 0])))]
    _, counts = words[:, 0].unique_consecutive(return_counts=True)
    return list(words[:, 2:].split(counts.tolist()))


class AnswerScore(Metric):
    """SQuAD's ``f1`` and ``exact_match`` in percent, version 1.1 or 2.0, from the windows of each question.

    Windows of one question may be scored by several ranks; each leaves a line of text (as bytes, which ranks can
    gather) with its best span, and the best of a question's windows is its answer. Where a question may have no answer
    that is the prediction when the least score of "none" among the windows is above the best span's.

    Args:
        n_best: starts and ends that are combined to spans.
        max_answer_length: longest answer in tokens.
        null_threshold: how much the score of "none" must be above the best span's.

    """

    full_state_update = False
    lines: list[Tensor]

    def __init__(self, n_best: int = 20, max_answer_length: int = 30, null_threshold: float = 0.0) -> None:
        super().__init__()
        self.n_best, self.max_answer_length, self.null_threshold = n_best, max_answer_length, null_threshold
        self.add_state("lines", [], dist_reduce_fx="cat")

    def update(self, start_logits: Tensor, end_logits: Tensor, batch: dict[str, Any]) -> None:
        """Add logits ``(batch, tokens)`` of windows, and the batch of a question answering data module."""
        windows = self.best_of_windows(start_logits, end_logits, batch)
        text = "".join(json.dumps(window) + "\n" for window in windows)
        self.lines.append(torch.tensor(list(text.encode()), dtype=torch.uint8, device=start_logits.device))

    def compute(self) -> dict[str, Tensor]:
        lines = bytes(dim_zero_cat(self.lines).tolist()).decode().splitlines()
        scores = list(self.scores([json.loads(line) for line in lines]).values())
        means = torch.tensor(scores, dtype=torch.float64, device=self.device).mean(0)
        return {"f1": means[1], "exact_match": means[0]}

    def scores(self, windows: Sequence[dict[str, Any]]) -> dict[str, tuple[float, float]]:
        """Question to exact match and F1 in percent, from all windows."""
        truths = {window["question"]: window for window in windows}
        found = {}
        for question, text in self.answers(windows).items():
            exact, f1 = answer_scores(text, gold_answers(truths[question]), truths[question]["no_answer"])
            found[question] = 100 * exact, 100 * f1
        return found

    def best_of_windows(self, start_logits: Tensor, end_logits: Tensor, batch: dict[str, Any]) -> list[dict[str, Any]]:
        """Each window's question, best text with its characters and score, and score of no answer, as JSON types."""
        start_logits, end_logits = start_logits.float(), end_logits.float()
        allowed = batch["char_start"] >= 0
        score, first, last = best_spans(start_logits, end_logits, allowed, self.n_best, self.max_answer_length)
        begin = batch["char_start"].gather(1, first[:, None])[:, 0].tolist()
        end = batch["char_end"].gather(1, last[:, None])[:, 0].tolist()
        null = (start_logits[:, 0] + end_logits[:, 0]).tolist()
        best = []
        for row, (example, value) in enumerate(zip(batch["examples"], score.tolist(), strict=True)):
            found = value > -torch.inf
            best.append(
                {name: example[name] for name in ("question", "answers", "no_answer")}
                | {"text": example["context"][begin[row] : end[row]] if found else None}
                | {"start": begin[row] if found else None, "end": end[row] if found else None}
                | {"score": value if found else None, "null": null[row]}
            )
        return best

    def answers(self, windows: Sequence[dict[str, Any]]) -> dict[str, str]:
        """Question to predicted text, empty for none, from all windows."""
        by_question: dict[str, list[dict[str, Any]]] = {}
        for window in windows:
            by_question.setdefault(window["question"], []).append(window)
        return {question: self._answer(group) for question, group in by_question.items()}

    def _answer(self, windows: list[dict[str, Any]]) -> str:
        spans = [window for window in windows if window["text"] is not None]
        if not spans:
            return ""
        best = max(spans, key=lambda window: window["score"])
        null = min(window["null"] for window in windows)
        if best["no_answer"] and null - best["score"] > self.null_threshold:
            return ""
        return best["text"]


def gold_answers(window: Mapping[str, Any]) -> list[str]:
    """Right answers to the question of a window, an empty one where there is none."""
    # SQuAD 2.0's script drops what is only articles and punctuation.
    kept = [answer for answer in window["answers"] if not window["no_answer"] or words_of(answer)]
    return kept or [""]
