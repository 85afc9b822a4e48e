"""What a head is trained for: its loss and its metrics."""

from typing import Protocol

import torch
import torchmetrics
from torch import Tensor
from torch.nn import functional as F
from torchmetrics import MetricCollection
from torchmetrics.classification import MulticlassConfusionMatrix

__all__ = ["Classification", "MatthewsCorrCoef", "Regression", "Task"]


class Task(Protocol):
    """A loss and the metrics that judge it."""

    def loss(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Scalar training loss of logits ``(batch, outputs)`` and labels ``(batch,)``."""
        ...

    def metrics(self, prefix: str) -> MetricCollection:
        """Fresh metrics whose ``update`` takes what :meth:`predictions` returns, and the labels."""
        ...

    def predictions(self, logits: Tensor) -> Tensor:
        """Class ids or values, shape ``(batch,)``."""
        ...


class MatthewsCorrCoef(MulticlassConfusionMatrix):
    """Matthews correlation from the confusion matrix, 0 when predictions or labels are all of one class.

    torchmetrics' own gives such a collapsed model up to 0.58 (version 1.9, labels 0, 0, 0, 1).
    """

    def compute(self) -> Tensor:
        matrix = self.confmat.double()
        total, truth, predicted = matrix.sum(), matrix.sum(1), matrix.sum(0)
        covariance = matrix.trace() * total - truth @ predicted
        scale = ((total**2 - truth @ truth) * (total**2 - predicted @ predicted)).sqrt()
        return torch.where(scale > 0, covariance / scale, torch.zeros_like(scale)).float()


class Classification:
    """One of several classes: cross-entropy; accuracy, F1 and Matthews correlation.

    F1 is of class 1 when there are two classes (GLUE's convention for MRPC and QQP) and the macro average otherwise.
    """

    def __init__(self, num_labels: int) -> None:
        self.num_labels = num_labels

    def loss(self, logits: Tensor, labels: Tensor) -> Tensor:
        return F.cross_entropy(logits, labels)

    def predictions(self, logits: Tensor) -> Tensor:
        return logits.argmax(-1)

    def metrics(self, prefix: str) -> MetricCollection:
        task = "binary" if self.num_labels == 2 else "multiclass"
        return MetricCollection(
            {
                "accuracy": torchmetrics.Accuracy(task=task, num_classes=self.num_labels, average="micro"),
                "f1": torchmetrics.F1Score(task=task, num_classes=self.num_labels, average="macro"),
                "matthews": MatthewsCorrCoef(self.num_labels),
            },
            prefix=prefix,
        )


class Regression:
    """One number: mean squared error; Pearson and Spearman correlation (GLUE's STS-B)."""

    def loss(self, logits: Tensor, labels: Tensor) -> Tensor:
        return F.mse_loss(logits.squeeze(-1), labels)

    def predictions(self, logits: Tensor) -> Tensor:
        # float32 also under bf16: the correlations are computed from sums that half precision cannot hold.
        return logits.squeeze(-1).float()

    def metrics(self, prefix: str) -> MetricCollection:
        return MetricCollection(
            {"pearson": torchmetrics.PearsonCorrCoef(), "spearman": torchmetrics.SpearmanCorrCoef()}, prefix=prefix
        )
