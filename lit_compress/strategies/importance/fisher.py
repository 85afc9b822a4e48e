"""Fisher: what the loss would miss least, to second order, goes, and the remaining weights compensate for it."""

from collections.abc import Mapping

import torch
from torch import Tensor

from lit_compress.errors import UserError
from lit_compress.functional import fisher
from lit_compress.functional.patterns import Pattern
from lit_compress.models.heads_and_neurons import Kind
from lit_compress.nn.compressible import CompressibleLinear
from lit_compress.strategies.distributed_weights import full_weight
from lit_compress.strategies.importance.importance import Importance, Sample
from lit_compress.strategies.sampling import sample_gradients
from lit_compress.strategies.units import Units

__all__ = ["Fisher"]


class Fisher(Importance):
    """Optimal BERT Surgeon (oBERT: Kurtic et al. 2022, arXiv 2203.07259).

    At each update gradients of the task loss (no distillation, no dropout) give a block-diagonal Fisher matrix. Its
    inverse says how much the loss would rise without a weight, and how the remaining weights compensate for it, so
    what is pruned cannot come back. Keeps nothing; an update costs ``recomputations * gradients`` forward and backward
    passes.

    Args:
        gradients: m, the mini-batches whose gradients make the Fisher matrix.
        gradient_batch_size: examples of such a mini-batch on each device.
        damping: lambda, added to the diagonal; too large is magnitude pruning, too small unstable.
        block_size: B, the weights that know of each other; memory grows with it.
        recomputations: parts that an update is made in, each with fresh gradients, equal steps of sparsity apart.
        memory: GiB that inverses may take on the device, in addition to model and activations. What does not fit is
            divided among the layers, at the price of sampling the gradients again for each part.

    """

    needs_passes = True

    def __init__(
        self,
        gradients: int = 1024,
        gradient_batch_size: int = 16,
        damping: float = 1e-7,
        block_size: int = 50,
        recomputations: int = 1,
        memory: float = 20.0,
    ) -> None:
        self.gradients, self.gradient_batch_size, self.damping = gradients, gradient_batch_size, damping
        self.block_size, self.recomputations, self.memory = block_size, recomputations, memory

    def check(self, pattern: Pattern | Kind) -> None:
        self._check_positive("gradients", "gradient_batch_size", "block_size", "recomputations")
        # The inverse begins as 1 / damping, a number that fp32 has.
        for key, value, least in (("damping", self.damping, 1e-30), ("memory", self.memory, 1e-6)):
            if not value >= least:
                raise UserError(f"{self.key}.{key}: {value} must be {least:g} or more")
        group = pattern.columns if isinstance(pattern, Pattern) else 1
        if self.block_size % group:
            raise UserError(
                f"{self.key}.block_size: {self.block_size} is not a multiple of the {group} weights of a group; "
                f"give {self.block_size // group * group or group}"
            )

    def why_no_regrowth(self) -> str | None:
        return "the remaining weights have compensated for it"

    def check_size(self, units: Units) -> None:
        self._shares(units.layers)

    def choose(self, units: Units, sparsity: float, sample: Sample) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        shares, compensated = self._shares(units.layers), units.compensated
        scores: dict[str, Tensor] = {}
        inverses: dict[str, Tensor] = {}
        for share in shares:
            self._fill(inverses, sample, share)
            scores |= {name: self._saliency(layer, inverses[name], units.together) for name, layer in share.items()}
        kept = units.select(units.reduce(scores), sparsity)
        values: dict[str, Tensor] = {}
        # The inverses of the last share are still there. No weight is written before the last gradient is sampled.
        for share in reversed(shares):
            if not share.keys() & compensated.keys():
                continue
            if inverses.keys() != share.keys():
                self._fill(inverses, sample, share)
            for name, layer in share.items():
                inverse = inverses.pop(name)
                if name in compensated:
                    pruned = units.pruned_now(name, kept)
                    values[name] = fisher.compensate(full_weight(layer), inverse, pruned, units.together)
        return kept, values

    def _fill(self, inverses: dict[str, Tensor], sample: Sample, layers: Mapping[str, CompressibleLinear]) -> None:
        """Put the inverses of some layers, and no others, into a dict; the old ones go first, for their memory."""
        inverses.clear()
        weights = [layer.weight for layer in layers.values()]
        together = min(fisher.GRADIENTS_PER_UPDATE, self.gradients)
        buffers = {}
        for name, weight in zip(layers, weights, strict=True):
            inverses[name] = fisher.damped_inverse(weight.numel(), self.block_size, self.damping, weight.device)
            buffers[name] = inverses[name].new_empty(len(inverses[name]), together, self.block_size)
        samples = sample_gradients(
            sample.trainer, sample.pl_module, weights, self.gradients, self.gradient_batch_size, sample.draw
        )
        for number, gradients in enumerate(samples):
            row = number % together
            for buffer, gradient in zip(buffers.values(), gradients, strict=True):
                buffer[:, row] = fisher.to_blocks(gradient, self.block_size)
            if row + 1 == together or number + 1 == self.gradients:
                for name, buffer in buffers.items():
                    fisher.add_gradients_(inverses[name], buffer[:, : row + 1], self.gradients)

    def _saliency(self, layer: CompressibleLinear, inverse: Tensor, group: int) -> Tensor:
        scores = fisher.saliency(full_weight(layer), inverse, group)
        # Rounding can make an inverse of none: large gradients that are nearly the same, and little damping.
        if not (torch.isfinite(scores).all() and (inverse.diagonal(dim1=1, dim2=2) > 0).all()):
            raise UserError(
                f"{self.key}.damping: with {self.damping:g} some scores are no numbers, or below 0; give a larger one, "
                "or lower model.optimization.learning_rate if the loss overflows"
            )
        return scores

    def _shares(self, layers: Mapping[str, CompressibleLinear]) -> list[dict[str, CompressibleLinear]]:
        """The layers in shares whose inverses fit into the memory together."""
        shares: list[dict[str, CompressibleLinear]] = [{}]
        budget, used = self.memory * 2**30, 0
        for name, layer in layers.items():
            needed = fisher.inverse_bytes(layer.weight.numel(), self.block_size, device=layer.weight.device.type)
            if needed > budget:
                raise UserError(
                    f"{self.key}.memory: {self.memory:g} GiB do not hold the inverse of {name!r}, "
                    f"{needed / 2**30:.3g} GiB; give more, or a smaller block_size"
                )
            if used + needed > budget:
                shares.append({})
                used = 0
            shares[-1][name] = layer
            used += needed
        return shares
