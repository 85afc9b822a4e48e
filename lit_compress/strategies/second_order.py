"""Second-order pruning: what the loss would miss least goes, and the weights beside it make up for it."""

from collections.abc import Sequence
from typing import Literal

import torch
from lightning.pytorch import LightningModule, Trainer
from torch import Tensor

from lit_compress.errors import UserError
from lit_compress.functional import fisher, masks
from lit_compress.nn.compressible import CompressibleLinear
from lit_compress.strategies.gradients import sample_gradients
from lit_compress.strategies.magnitude import MagnitudePruning
from lit_compress.strategies.strategy import full_weight, set_mask, write_weight

__all__ = ["SecondOrderPruning"]


class SecondOrderPruning(MagnitudePruning):
    """Prunes by the Optimal BERT Surgeon (oBERT: Kurtic et al. 2022, arXiv 2203.07259) on a schedule.

    At each update gradients of the task loss (no distillation, no dropout) give a block-diagonal Fisher matrix. Its
    inverse says how much the loss would rise without a weight, and how the weights beside it make up for the loss.
    Updates happen after the optimizer step, as in :class:`MagnitudePruning`; each costs ``recomputations * gradients``
    forward and backward passes.

    Args:
        sparsity: final fraction of pruned weights (of groups, when pruning groups), in [0, 1).
        initial_sparsity: fraction at ``start``; oBERT begins at 0.7, and at 0.3 with 3 or 6 layers.
        schedule: how sparsity grows from initial to final; ``constant`` prunes all of it at ``start``.
        start: first update: ``"10%"`` of training, ``"1 epochs"`` or ``"500 steps"``.
        end: last update; later steps recover at constant sparsity.
        every: distance between updates.
        pattern: ``unstructured``, or ``"1xC"`` for groups of C consecutive inputs (``"1x4"``: oBERT's 4-block).
        scope: one threshold for all layers (``global``), or every layer reaches the sparsity itself (``layer``).
        gradients: m, the mini-batches whose gradients make the Fisher matrix.
        gradient_batch_size: rows of such a mini-batch on each device.
        damping: lambda, added to the diagonal; too large is magnitude pruning, too small unstable.
        block_size: B, the weights that know of each other; memory grows with it.
        recomputations: parts that an update is made in, each with fresh gradients, equal steps of sparsity apart.
        memory: GiB that inverses may take on the device, beside model and activations. What does not fit is divided
            among the layers, at the price of sampling the gradients again for each part.
        targets: globs or ``re:`` patterns; None takes every linear of the transformer layers.
        ignore: patterns to leave alone.

    """

    def __init__(
        self,
        sparsity: float = 0.9,
        initial_sparsity: float = 0.0,
        schedule: Literal["constant", "linear", "cubic", "cosine"] = "cubic",
        start: str = "5%",
        end: str = "85%",
        every: str = "10%",
        pattern: str = "unstructured",
        scope: Literal["layer", "global"] = "global",
        gradients: int = 1024,
        gradient_batch_size: int = 16,
        damping: float = 1e-7,
        block_size: int = 50,
        recomputations: int = 1,
        memory: float = 20.0,
        targets: Sequence[str] | None = None,
        ignore: Sequence[str] = (),
    ) -> None:
        super().__init__(
            sparsity=sparsity,
            initial_sparsity=initial_sparsity,
            schedule=schedule,
            start=start,
            end=end,
            every=every,
            pattern=pattern,
            scope=scope,
            targets=targets,
            ignore=ignore,
        )
        owner = type(self).__name__
        if self.kind in ("n:m", "balanced") or (self.kind == "block" and self.shape[0] > 1):
            raise UserError(f"{owner}.pattern: {pattern!r} must be unstructured or groups such as '1x4'")
        self.group = self.shape[1]
        counts = {"gradients": gradients, "gradient_batch_size": gradient_batch_size, "block_size": block_size}
        for key, value in (counts | {"recomputations": recomputations}).items():
            if value < 1:
                raise UserError(f"{owner}.{key}: {value} must be 1 or more")
        # The inverse begins as 1 / damping, a number that fp32 has.
        for key, value, least in (("damping", damping, 1e-30), ("memory", memory, 1e-6)):
            if not value >= least:
                raise UserError(f"{owner}.{key}: {value} must be {least:g} or more")
        if block_size % self.group:
            raise UserError(
                f"{owner}.block_size: {block_size} is no multiple of the {self.group} weights of a group; "
                f"give {block_size // self.group * self.group or self.group}"
            )
        self.gradients, self.gradient_batch_size, self.damping = gradients, gradient_batch_size, damping
        self.block_size, self.recomputations, self.memory = block_size, recomputations, memory

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        super().setup(trainer, pl_module, stage)
        if stage == "fit":
            self._shares(self.layers(pl_module))

    @torch.no_grad()
    def prune(self, trainer: Trainer, pl_module: LightningModule, sparsity: float) -> None:
        layers = self.layers(pl_module)
        existing = [_mask(layer).flatten() for layer in layers.values()]
        pools = [torch.cat(existing)] if self.scope == "global" else existing
        reached = min(masks.sparsity(pool) for pool in pools)
        if sparsity <= reached:
            return  # nothing to prune; a thousand gradients saved
        for part in range(self.recomputations):
            share = (part + 1) / self.recomputations
            self._prune_once(trainer, pl_module, layers, (1 - share) * reached + share * sparsity, part)

    def _prune_once(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        layers: dict[str, CompressibleLinear],
        sparsity: float,
        part: int,
    ) -> None:
        shares = self._shares(layers)
        scores: dict[str, Tensor] = {}
        inverses: dict[str, Tensor] = {}
        for share in shares:
            self._fill(inverses, trainer, pl_module, share, part)
            scores |= {name: self._saliency(layer, inverses[name]) for name, layer in share.items()}
        wanted = {name: mask & _mask(layers[name]) for name, mask in self.masks(scores, sparsity).items()}
        values: dict[str, Tensor] = {}
        # The inverses of the last share are still there. No weight is written before the last gradient is sampled.
        for share in reversed(shares):
            if inverses.keys() != share.keys():
                self._fill(inverses, trainer, pl_module, share, part)
            for name, layer in share.items():
                pruned = _mask(layer) & ~wanted[name]
                values[name] = fisher.compensate(full_weight(layer), inverses.pop(name), pruned, self.group)
        for name, layer in layers.items():
            write_weight(layer, values[name])
            set_mask(layer, wanted[name], trainer)

    def _fill(
        self,
        inverses: dict[str, Tensor],
        trainer: Trainer,
        pl_module: LightningModule,
        layers: dict[str, CompressibleLinear],
        part: int,
    ) -> None:
        """Put the inverses of some layers, and no others, into a dict; the old ones go first, for their memory."""
        inverses.clear()
        weights = [layer.weight for layer in layers.values()]
        together = min(fisher.GRADIENTS_PER_UPDATE, self.gradients)
        buffers = {}
        for name, weight in zip(layers, weights, strict=True):
            inverses[name] = fisher.damped_inverse(weight.numel(), self.block_size, self.damping, weight.device)
            buffers[name] = inverses[name].new_empty(len(inverses[name]), together, self.block_size)
        samples = sample_gradients(trainer, pl_module, weights, self.gradients, self.gradient_batch_size, part)
        for number, sample in enumerate(samples):
            row = number % together
            for buffer, gradient in zip(buffers.values(), sample, strict=True):
                buffer[:, row] = fisher.to_blocks(gradient, self.block_size)
            if row + 1 == together or number + 1 == self.gradients:
                for name, buffer in buffers.items():
                    fisher.add_gradients_(inverses[name], buffer[:, : row + 1], self.gradients)

    def _saliency(self, layer: CompressibleLinear, inverse: Tensor) -> Tensor:
        scores = fisher.saliency(full_weight(layer), inverse, self.group)
        if not torch.isfinite(scores).all():
            raise UserError(
                f"{type(self).__name__}.damping: with {self.damping:g} some scores are no numbers; give a larger one, "
                "or lower model.optimization.learning_rate if the loss overflows"
            )
        return scores.masked_fill(~_mask(layer), -torch.inf)

    def _shares(self, layers: dict[str, CompressibleLinear]) -> list[dict[str, CompressibleLinear]]:
        """The layers in shares whose inverses fit into the memory together."""
        shares: list[dict[str, CompressibleLinear]] = [{}]
        budget, used = self.memory * 2**30, 0
        for name, layer in layers.items():
            needed = fisher.inverse_bytes(layer.weight.numel(), self.block_size, device=layer.weight.device.type)
            if needed > budget:
                raise UserError(
                    f"{type(self).__name__}.memory: {self.memory:g} GiB do not hold the inverse of {name!r}, "
                    f"{needed / 2**30:.3g} GiB; give more, or a smaller block_size"
                )
            if used + needed > budget:
                shares.append({})
                used = 0
            shares[-1][name] = layer
            used += needed
        return shares


def _mask(layer: CompressibleLinear) -> Tensor:
    assert layer.weight_mask is not None
    return layer.weight_mask
