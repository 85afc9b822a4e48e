"""Taylor: what the loss would change by, to first order, were a weight 0."""

from collections.abc import Mapping

import torch
from torch import Tensor

from lit_compress.functional.importance import taylor
from lit_compress.functional.patterns import Pattern
from lit_compress.models.heads_and_neurons import Kind
from lit_compress.strategies.distributed_weights import full_weight
from lit_compress.strategies.importance.importance import Importance, Sample
from lit_compress.strategies.sampling import loader_batch_size, sample_gradients
from lit_compress.strategies.units import Units

__all__ = ["Taylor"]


class Taylor(Importance):
    """``sum of |w * dL/dw|`` over the training steps since the last update (ROSITA: Liu et al. 2021, arXiv 2103.11367).

    Collects into a buffer: one number for each weight, or for each head and neuron. A pruned weight has no gradient and
    does not come back. Changes no other weight.

    Args:
        score_batches: batches of training data that give the gradients of the task when the first update comes before
            there is anything to collect.

    """

    collects = True

    def __init__(self, score_batches: int = 64) -> None:
        self.score_batches = score_batches

    def check(self, pattern: Pattern | Kind) -> None:
        self._check_positive("score_batches")

    def why_no_regrowth(self) -> str | None:
        return "a pruned weight has no gradient, so its Taylor importance stays 0"

    def prepare(self, units: Units) -> None:
        units.add_totals()

    @torch.no_grad()
    def collect(self, units: Units, gradients: Mapping[str, Tensor]) -> None:
        scores = {name: taylor(full_weight(layer), gradients[name].abs()) for name, layer in units.layers.items()}
        totals = units.totals
        for name, score in units.reduce(scores).items():
            # A step whose gradients overflowed in half precision is skipped by the scaler; it says nothing.
            totals[name] += score.nan_to_num(0.0, 0.0, 0.0)

    def scores(self, units: Units, sample: Sample) -> dict[str, Tensor]:
        if sample.first:
            layers, size = units.layers, loader_batch_size(sample.trainer)
            weights = [layer.weight for layer in layers.values()]
            for gradients in sample_gradients(sample.trainer, sample.pl_module, weights, self.score_batches, size):
                self.collect(units, dict(zip(layers, gradients, strict=True)))
        return units.totals

    def forget(self, units: Units) -> None:
        for total in units.totals.values():
            total.zero_()
