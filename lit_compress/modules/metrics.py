"""Metrics of token and text tasks: sums and texts that are gathered over all ranks before anything is divided."""

import json
import re
import string
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torchmetrics import Metric
from torchmetrics.functional.text import squad
from torchmetrics.utilities import dim_zero_cat

from lit_compress.functional.entities import entities, is_entity_tag
from lit_compress.functional.spans import best_spans

__all__ = ["IGNORED", "AnswerScore", "EntityScore", "MaskedTokenScore", "MeanLoss"]

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
        return {"perplexity": (self.loss / count).exp().float(), "accuracy": (self.correct / count).float()}


class EntityScore(Metric):
    """Entity-level ``f1``, ``precision`` and ``recall`` (micro average), and ``accuracy`` of single tags.

    An entity counts when its kind and both its ends are right, as CoNLL's script counts. Labels that are no entity
    tags (parts of speech) have an accuracy only.

    Args:
        labels: tags in the order of their ids.

    """

    full_state_update = False
    right: Tensor
    found: Tensor
    true: Tensor
    correct: Tensor
    count: Tensor

    def __init__(self, labels: Sequence[str]) -> None:
        super().__init__()
        self.labels = list(labels)
        self.has_entities = all(is_entity_tag(label) for label in labels)
        for name in ("right", "found", "true", "correct", "count"):
            self.add_state(name, torch.zeros((), dtype=torch.float64), dist_reduce_fx="sum")

    def update(self, predictions: Tensor, labels: Tensor) -> None:
        """Add tag ids ``(batch, tokens)``; only tokens whose label counts are looked at."""
        counted = labels != IGNORED
        self.correct += (predictions[counted] == labels[counted]).sum()
        self.count += counted.sum()
        if not self.has_entities:
            return
        for guess, truth, mask in zip(predictions.cpu(), labels.cpu(), counted.cpu(), strict=True):
            found, true = (set(entities([self.labels[i] for i in row[mask].tolist()])) for row in (guess, truth))
            self.right += len(found & true)
            self.found += len(found)
            self.true += len(true)

    def compute(self) -> dict[str, Tensor]:
        scores: dict[str, Tensor] = {}
        if self.has_entities:  # first what tables show: most tags are "O", so that every model has them right
            scores["f1"] = 2 * self.right / (self.found + self.true).clamp_min(1)
            scores["precision"] = self.right / self.found.clamp_min(1)
            scores["recall"] = self.right / self.true.clamp_min(1)
        scores["accuracy"] = self.correct / self.count.clamp_min(1)
        return {name: value.float() for name, value in scores.items()}


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
        scores = squad(*self.pairs([json.loads(line) for line in lines]))
        return {name: scores[name] for name in ("f1", "exact_match")}

    def pairs(self, windows: Sequence[dict[str, Any]]) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
        """Predictions and targets as torchmetrics' ``squad`` takes them, one of each question, from all windows."""
        truths = {window["question"]: window for window in windows}
        predictions, targets = [], []
        for question, text in self.answers(windows).items():
            gold = truths[question]["answers"]
            if truths[question]["no_answer"]:
                gold = [answer for answer in gold if _is_said(answer)]
            gold = gold or [""]
            predictions.append({"prediction_text": text, "id": question})
            targets.append({"answers": {"text": gold, "answer_start": [0] * len(gold)}, "id": question})
        return predictions, targets

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


def _is_said(answer: str) -> bool:
    """Whether anything is left without articles and punctuation; SQuAD 2.0's script drops other gold answers."""
    bare = "".join(character for character in answer.lower() if character not in string.punctuation)
    return bool(re.sub(r"\b(a|an|the)\b", " ", bare).strip())
