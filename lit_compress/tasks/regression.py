"""A number for each text."""

from typing import Any, ClassVar

import numpy as np
import pyarrow
import torch
import torchmetrics
from torch import Tensor
from torch.nn import functional as F
from torchmetrics import MetricCollection
from transformers import AutoModelForSequenceClassification, PretrainedConfig

from lit_compress.tasks.batch import Batch
from lit_compress.tasks.outcomes import Outcomes, Scores, array, divide
from lit_compress.tasks.task import Task

__all__ = ["RegressionTask", "correlation", "ranks_of"]


class RegressionTask(Task):
    """One number: mean squared error; Pearson and Spearman correlation (GLUE's STS-B); predicts values."""

    name = "regression"
    head = AutoModelForSequenceClassification
    architectures = ("ForSequenceClassification",)
    problem_type = "regression"
    pipeline_tag = "text-classification"
    data_options: ClassVar = {"task": "regression"}
    outputs = 1

    @classmethod
    def reads(cls, config: PretrainedConfig) -> bool:
        other = config.problem_type not in (None, cls.problem_type)
        return cls.has_head(config) and config.num_labels == 1 and not other

    def loss(self, output: Any, batch: Batch) -> Tensor:
        return F.mse_loss(output.logits.squeeze(-1), batch.targets["labels"])

    def metrics(self, prefix: str) -> MetricCollection:
        # float64: of predictions that are nearly the same the correlation's fourth digit is wrong in float32.
        pearson = torchmetrics.PearsonCorrCoef().set_dtype(torch.float64)
        return MetricCollection({"pearson": pearson, "spearman": torchmetrics.SpearmanCorrCoef()}, prefix=prefix)

    def update(self, metrics: MetricCollection, output: Any, batch: Batch) -> None:
        metrics.update(self.predictions(output, batch).double(), batch.targets["labels"].double())

    def predictions(self, output: Any, batch: Batch) -> Tensor:
        # float32 also under bf16: the correlations are computed from sums that half precision cannot hold.
        return output.logits.squeeze(-1).float()

    def schema(self) -> list[tuple[str, pyarrow.DataType]]:
        return [("value", pyarrow.float32())]

    def record(self, predictions: list[float]) -> dict[str, Any]:
        return {"value": predictions[0]}

    def outcome_columns(self, output: Any, batch: Batch) -> dict[str, Any]:
        return {"guess": array(self.predictions(output, batch)), "truth": array(batch.targets["labels"])}

    def outcomes(self, columns: dict[str, Any]) -> Outcomes:
        guess, truth = columns["guess"].astype(np.float64), columns["truth"].astype(np.float64)

        def score(weights: np.ndarray) -> Scores:
            ranks = ranks_of(guess, weights), ranks_of(truth, weights)
            return {"pearson": correlation(guess, truth, weights), "spearman": correlation(*ranks, weights)}

        # Values within a hundredth of what they should differ by are one value.
        same = len(guess) > 1 and np.ptp(guess) < 0.01 * truth.std()
        return Outcomes(
            unit="examples",
            lengths=columns["lengths"],
            score=score,
            goodness=-np.abs(guess - truth),
            answers=guess.tolist(),
            gold=truth.tolist(),
            constant=f"about {guess.mean():.4g}" if same else None,
        )


def correlation(first: np.ndarray, second: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Pearson's, in each resample; values ``(units,)`` or ``(resamples, units)``."""
    total = weights.sum(1, keepdims=True)
    first, second = (values - divide((weights * values).sum(1, keepdims=True), total) for values in (first, second))
    scale = np.sqrt((weights * first**2).sum(1) * (weights * second**2).sum(1))
    return divide((weights * first * second).sum(1), scale)


def ranks_of(values: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Mean rank of each value ``(units,)`` in each resample ``(resamples, units)``, without building the resample."""
    _, group = np.unique(values, return_inverse=True)
    order = np.argsort(group, kind="stable")
    starts = np.searchsorted(group[order], np.arange(group.max() + 1))
    counts = np.add.reduceat(weights[:, order], starts, axis=1)
    return (counts.cumsum(1) - (counts - 1) / 2)[:, group]
