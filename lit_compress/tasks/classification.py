"""One of several classes for each text."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow
import torch
from torch import Tensor
from torch.nn import functional as F
from torchmetrics import MetricCollection
from torchmetrics.classification import MulticlassConfusionMatrix
from transformers import AutoModelForSequenceClassification, PretrainedConfig

from lit_compress.tasks.batch import Batch
from lit_compress.tasks.outcomes import Outcomes, Scores, array, class_scores, divide, f1_of, mean_of_known
from lit_compress.tasks.task import Task, weights_like

__all__ = ["ClassScore", "ClassificationTask"]


class ClassificationTask(Task):
    """One of several classes: cross-entropy; accuracy, F1 and Matthews correlation; predicts probabilities.

    Args:
        labels: names of the classes in the order of their ids.
        class_weights: what an example of each class counts in the loss, which is the mean over the examples of a batch.

    """

    name = "classification"
    head = AutoModelForSequenceClassification
    architectures = ("ForSequenceClassification",)
    has_classes = True
    problem_type = "single_label_classification"
    pipeline_tag = "text-classification"
    class_metric = "recall"
    labels: list[str]

    def __init__(self, labels: Sequence[str] | None = None, class_weights: Sequence[float] | None = None) -> None:
        super().__init__(labels)
        self.class_weights = None if class_weights is None else list(class_weights)

    @classmethod
    def reads(cls, config: PretrainedConfig) -> bool:
        # Not by `problem_type`, which most models leave open.
        other = config.problem_type not in (None, cls.problem_type)
        return cls.has_head(config) and config.num_labels != 1 and not other

    def loss(self, output: Any, batch: Batch) -> Tensor:
        if self.class_weights is None:
            return F.cross_entropy(output.logits, batch.targets["labels"])
        weight = weights_like(self.class_weights, output.logits)
        # Not the weighted mean, in which a batch of one class alone would not be weighted at all.
        return F.cross_entropy(output.logits, batch.targets["labels"], weight, reduction="sum") / batch.rows

    def metrics(self, prefix: str) -> MetricCollection:
        return MetricCollection({"classes": ClassScore(len(self.labels))}, prefix=prefix)

    def update(self, metrics: MetricCollection, output: Any, batch: Batch) -> None:
        metrics.update(self.predictions(output, batch).argmax(-1), batch.targets["labels"])

    def predictions(self, output: Any, batch: Batch) -> Tensor:
        # float32 also under bf16, where different logits have equal probabilities.
        return output.logits.float().softmax(-1)

    def schema(self) -> list[tuple[str, pyarrow.DataType]]:
        return [("label", pyarrow.string()), *((f"probability_{label}", pyarrow.float32()) for label in self.labels)]

    def record(self, predictions: list[Sequence[float]]) -> dict[str, Any]:
        (probabilities,) = predictions
        best = max(range(len(probabilities)), key=probabilities.__getitem__)
        named = {f"probability_{name}": value for name, value in zip(self.labels, probabilities, strict=True)}
        return {"label": self.labels[best]} | named

    def outcome_columns(self, output: Any, batch: Batch) -> dict[str, Any]:
        confidence, guess = output.logits.float().softmax(-1).max(-1)
        return {"confidence": array(confidence), "guess": array(guess), "truth": array(batch.targets["labels"])}

    def outcomes(self, columns: dict[str, Any]) -> Outcomes:
        truth, guess, labels = columns["truth"], columns["guess"], self.labels
        one_hot, right = np.eye(len(labels)), columns["truth"] == columns["guess"]
        sums = np.concatenate([one_hot[truth] * right[:, None], one_hot[guess], one_hot[truth]], axis=1)

        def score(weights: np.ndarray) -> Scores:
            hits, found, true = np.split(weights @ sums, 3, axis=1)
            total, f1 = true.sum(1), f1_of(hits, found, true)
            # As torchmetrics: F1 of class 1 of two, else the mean over the classes that occur.
            f1 = np.nan_to_num(f1[:, 1]) if len(labels) == 2 else np.nan_to_num(mean_of_known(f1))
            covariance = hits.sum(1) * total - (true * found).sum(1)
            scale = np.sqrt((total**2 - (true**2).sum(1)) * (total**2 - (found**2).sum(1)))
            return {
                "accuracy": divide(hits.sum(1), total),
                "f1": f1,
                "matthews": np.nan_to_num(divide(covariance, scale)),
            }

        return Outcomes(
            unit="examples",
            lengths=columns["lengths"],
            score=score,
            score_classes=class_scores(sums, labels),
            class_units={label: int((truth == index).sum()) for index, label in enumerate(labels)},
            confidence=columns["confidence"],
            right=right,
            share=("accuracy", 1.0),
            goodness=right.astype(float),
            constant=labels[guess[0]] if len(set(guess)) == 1 < len(set(truth)) else None,
            answers=[labels[index] for index in guess],
            gold=[labels[index] for index in truth],
            majority=(labels[most := int(np.bincount(truth).argmax())], float((truth == most).mean())),
        )


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
