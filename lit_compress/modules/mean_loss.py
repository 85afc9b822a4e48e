"""The loss of an evaluation: sums that are gathered over all ranks before anything is divided."""

import torch
from torch import Tensor
from torchmetrics import Metric

__all__ = ["MeanLoss"]


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
