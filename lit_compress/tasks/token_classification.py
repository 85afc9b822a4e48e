"""A tag for each word of a sentence."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow
import torch
from torch import Tensor
from torchmetrics import Metric, MetricCollection
from torchmetrics.utilities import dim_zero_cat
from transformers import AutoModelForTokenClassification

from lit_compress.functional.entities import entities, is_entity_tag
from lit_compress.tasks.batch import IGNORED, Batch, count_of
from lit_compress.tasks.masked_words import mean_over_tokens
from lit_compress.tasks.outcomes import Outcomes, Scores, array, class_scores, divide
from lit_compress.tasks.task import Task

__all__ = ["EntityScore", "TokenClassificationTask"]


class TokenClassificationTask(Task):
    """A tag per word: cross-entropy over the first token of each word; entity and tag scores; predicts tags.

    A prediction is, for each example, ``{"sentence": its number, "first_word": of the example, "tags": [...]}``.
    """

    name = "token_classification"
    head = AutoModelForTokenClassification
    architectures = ("ForTokenClassification",)
    has_classes = True
    pipeline_tag = "token-classification"
    data_module = "lit_compress.data.TokenClassification"
    labels: list[str]

    def loss(self, output: Any, batch: Batch) -> Tensor:
        labels = batch.targets["labels"]
        return mean_over_tokens(output.logits, labels, count_of(batch, "labelled", labels))

    def count(self, batch: Batch) -> int:
        return int((batch.targets["labels"] != IGNORED).sum())

    def metrics(self, prefix: str) -> MetricCollection:
        return MetricCollection({"entities": EntityScore(self.labels)}, prefix=prefix)

    def update(self, metrics: MetricCollection, output: Any, batch: Batch) -> None:
        metrics.update(output.logits.argmax(-1), batch)

    def predictions(self, output: Any, batch: Batch) -> list[dict[str, Any]]:
        rows = zip(output.logits.argmax(-1), batch.meta["word_starts"], batch.meta["examples"], strict=True)
        return [
            {"sentence": example["sentence"], "first_word": example["first_word"]}
            | {"tags": [self.labels[tag] for tag in tags[starts].tolist()]}
            for tags, starts, example in rows
        ]

    def schema(self) -> list[tuple[str, pyarrow.DataType]]:
        return [("tags", pyarrow.list_(pyarrow.string()))]

    def record(self, predictions: list[dict[str, Any]]) -> dict[str, Any]:
        return {"tags": [tag for window in predictions for tag in window["tags"]]}

    def outcome_columns(self, output: Any, batch: Batch) -> dict[str, Any]:
        words = _word_tags(output.logits.argmax(-1), batch)
        examples = {
            name: np.array([row[name] for row in batch.meta["examples"]]) for name in ("sentence", "first_word")
        }
        return {"words": array(words)} | examples

    def outcomes(self, columns: dict[str, Any]) -> Outcomes:
        labels, kinds = self.labels, _tag_kinds(self.labels)
        # Rows of one sentence are joined, and drawn together.
        _, owner = np.unique(columns["sentence"], return_inverse=True)
        order = np.lexsort((columns["first_word"], columns["sentence"]))
        lengths = np.bincount(owner, columns["lengths"]).astype(int)
        sentences = _whole_sentences(torch.tensor(columns["words"]))
        sums = np.stack([_tag_counts(tags, labels, kinds) for tags in sentences])
        answers, gold = ([[labels[tag] for tag in tags[:, column]] for tags in sentences] for column in (0, 1))

        def score(weights: np.ndarray) -> Scores:
            total = weights @ sums
            scores: Scores = {}
            if kinds != labels:
                hits, found, true = (part.sum(1) for part in np.split(total[:, :-2], 3, axis=1))
                scores["f1"] = 2 * hits / np.maximum(found + true, 1)
                scores["precision"] = hits / np.maximum(found, 1)
                scores["recall"] = hits / np.maximum(true, 1)
            return scores | {"accuracy": divide(total[:, -2], np.maximum(total[:, -1], 1))}

        true = np.split(sums[:, :-2].sum(0), 3)[2]
        hits, found, wanted = (part.sum(1) for part in np.split(sums[:, :-2], 3, axis=1))
        guesses, truths = (set(columns["words"][:, column].tolist()) for column in (2, 3))
        return Outcomes(
            unit="sentences",
            lengths=lengths,
            score=score,
            goodness=2 * hits - found - wanted,  # minus the entities that are missing, and those that are not there
            constant=labels[guesses.pop()] if len(guesses) == 1 < len(truths) else None,
            score_classes=class_scores(sums[:, :-2], kinds),
            class_units={kind: int(count) for kind, count in zip(kinds, true, strict=True)},
            answers=answers,
            gold=gold,
            examples=order[np.unique(columns["sentence"][order], return_index=True)[1]].tolist(),
        )


class EntityScore(Metric):
    """Entity-level ``f1``, ``precision`` and ``recall`` (micro average), and ``accuracy`` of single tags.

    An entity counts when its kind and both its ends are right, as CoNLL's script counts. The rows of a long sentence
    are joined first, whichever rank saw them. Labels that are not entity tags (parts of speech) have an accuracy only.

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

    def update(self, predictions: Tensor, batch: Batch) -> None:
        """Add tag ids ``(batch, tokens)``, and the batch of a token classification data module."""
        self.words.append(_word_tags(predictions, batch))

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
        for tags in _whole_sentences(words):
            guess, truth = (set(entities([self.labels[tag] for tag in column.tolist()])) for column in tags.unbind(1))
            right, found, true = right + len(guess & truth), found + len(guess), true + len(truth)
        return right, found, true


def _word_tags(predictions: Tensor, batch: Batch) -> Tensor:
    """Sentence, place in it, predicted and true tag of every labelled word, int64 ``(words, 4)``.

    Args:
        predictions: tag ids ``(batch, tokens)``.
        batch: of a token classification data module.

    """
    counted = batch.targets["labels"] != IGNORED
    place = counted.cumsum(1) - 1 + _column(batch, "first_word")
    columns = (_column(batch, "sentence").expand_as(place), place, predictions, batch.targets["labels"])
    return torch.stack([column[counted] for column in columns], dim=1)


def _column(batch: Batch, name: str) -> Tensor:
    return batch.targets["labels"].new_tensor([[example[name]] for example in batch.meta["examples"]])


def _whole_sentences(words: Tensor) -> list[Tensor]:
    """Predicted and true tag ids ``(words, 2)`` of each sentence, in order, from rows of :func:`_word_tags` in any."""
    words = words.cpu()
    words = words[torch.from_numpy(np.lexsort((words[:, 1], words[:, 0])))]
    _, counts = words[:, 0].unique_consecutive(return_counts=True)
    return list(words[:, 2:].split(counts.tolist()))


def _tag_counts(tags: Tensor, names: list[str], kinds: list[str]) -> np.ndarray:
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
    """Kinds of entities, or the tags themselves where they are not entity tags."""
    if not all(is_entity_tag(label) for label in labels):
        return labels
    return list(dict.fromkeys(label.partition("-")[2] for label in labels if label != "O"))
