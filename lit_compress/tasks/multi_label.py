"""Any number of labels for each text."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow
import torch
from torch import Tensor
from torch.nn import functional as F
from torchmetrics import Metric, MetricCollection
from transformers import AutoModelForSequenceClassification, PretrainedConfig

from lit_compress.tasks.batch import Batch
from lit_compress.tasks.outcomes import Outcomes, Scores, array, class_scores, divide, f1_of
from lit_compress.tasks.task import Task, weights_like

__all__ = ["LabelScore", "MultiLabelTask"]


class MultiLabelTask(Task):
    """Labels that do not exclude each other: binary cross-entropy; F1 and exact matches; predicts probabilities.

    F1 is of all decisions (micro) and the mean over the labels (macro), where a label that never occurs counts as 0, as
    in scikit-learn. An exact match has all labels right.

    Args:
        labels: in the order of their ids.
        threshold: a label is predicted when its probability is above this.
        class_weights: what an example that has a label counts in the loss of that label; without it, it counts 1.

    """

    name = "multi_label_classification"
    head = AutoModelForSequenceClassification
    architectures = ("ForSequenceClassification",)
    has_classes = True
    problem_type = "multi_label_classification"
    pipeline_tag = "text-classification"
    data_module = "lit_compress.data.MultiLabelClassification"
    labels: list[str]

    def __init__(
        self,
        labels: Sequence[str] | None = None,
        threshold: float = 0.5,
        class_weights: Sequence[float] | None = None,
    ) -> None:
        super().__init__(labels)
        self.threshold = threshold
        self.class_weights = None if class_weights is None else list(class_weights)

    @classmethod
    def reads(cls, config: PretrainedConfig) -> bool:
        return cls.has_head(config) and config.problem_type == cls.problem_type

    def loss(self, output: Any, batch: Batch) -> Tensor:
        weight = weights_like(self.class_weights, output.logits)
        return F.binary_cross_entropy_with_logits(output.logits, batch.targets["labels"], pos_weight=weight)

    def metrics(self, prefix: str) -> MetricCollection:
        return MetricCollection({"labels": LabelScore(len(self.labels))}, prefix=prefix)

    def update(self, metrics: MetricCollection, output: Any, batch: Batch) -> None:
        metrics.update(self.answers(output.logits), batch.targets["labels"] > 0.5)

    def predictions(self, output: Any, batch: Batch) -> Tensor:
        return output.logits.float().sigmoid()

    def answers(self, logits: Tensor) -> Tensor:
        return logits.float().sigmoid() > self.threshold

    def schema(self) -> list[tuple[str, pyarrow.DataType]]:
        chosen = ("labels", pyarrow.list_(pyarrow.string()))
        return [chosen, *((f"probability_{label}", pyarrow.float32()) for label in self.labels)]

    def record(self, predictions: list[Sequence[float]]) -> dict[str, Any]:
        (probabilities,) = predictions
        named = dict(zip(self.labels, probabilities, strict=True))
        chosen = [label for label, probability in named.items() if probability > self.threshold]
        return {"labels": chosen} | {f"probability_{label}": probability for label, probability in named.items()}

    def note(self) -> str | None:
        return f"a label is predicted where its probability, a sigmoid of its logit, is above {self.threshold:g}"

    def outcome_columns(self, output: Any, batch: Batch) -> dict[str, Any]:
        return {"guess": array(self.answers(output.logits)), "truth": array(batch.targets["labels"] > 0.5)}

    def outcomes(self, columns: dict[str, Any]) -> Outcomes:
        guess, truth, labels = columns["guess"], columns["truth"], self.labels
        sums, right = np.concatenate([guess & truth, guess, truth], axis=1).astype(float), (guess == truth).all(1)

        def score(weights: np.ndarray) -> Scores:
            parts = np.split(weights @ sums, 3, axis=1)
            return {
                "f1_micro": np.nan_to_num(f1_of(*(part.sum(1) for part in parts))),
                "f1_macro": np.nan_to_num(f1_of(*parts)).mean(1),
                "exact_match": divide(weights @ right, weights.sum(1)),
            }

        same = len(np.unique(guess, axis=0)) == 1 < len(np.unique(truth, axis=0))
        answers, gold = (
            [
                ", ".join(label for label, chosen in zip(labels, row, strict=True) if chosen) or "no label"
                for row in rows
            ]
            for rows in (guess, truth)
        )
        return Outcomes(
            unit="examples",
            lengths=columns["lengths"],
            score=score,
            score_classes=class_scores(sums, labels),
            class_units={label: int(count) for label, count in zip(labels, truth.sum(0), strict=True)},
            right=right,
            share=("exact_match", 1.0),
            goodness=-(guess != truth).sum(1),
            constant=answers[0] if same else None,
            answers=answers,
            gold=gold,
        )


class LabelScore(Metric):
    """``f1_micro``, ``f1_macro`` and ``exact_match`` of labels, in float64.

    One metric and no collection of torchmetrics' own, which would show them by alphabet.

    Args:
        labels: how many there are.

    """

    full_state_update = False
    hits: Tensor
    found: Tensor
    true: Tensor
    exact: Tensor
    rows: Tensor

    def __init__(self, labels: int) -> None:
        super().__init__()
        for name, shape in (("hits", labels), ("found", labels), ("true", labels), ("exact", ()), ("rows", ())):
            self.add_state(name, torch.zeros(shape, dtype=torch.float64), dist_reduce_fx="sum")

    def update(self, guess: Tensor, truth: Tensor) -> None:
        """Add which labels are predicted and which are true, bool ``(batch, labels)``."""
        self.hits += (guess & truth).sum(0)
        self.found += guess.sum(0)
        self.true += truth.sum(0)
        self.exact += (guess == truth).all(1).sum()
        self.rows += len(guess)

    def compute(self) -> dict[str, Tensor]:
        both = self.found + self.true
        return {
            "f1_micro": 2 * self.hits.sum() / both.sum().clamp_min(1),
            "f1_macro": (2 * self.hits / both.clamp_min(1)).mean(),
            "exact_match": self.exact / self.rows,
        }
