"""Second-order pruning: what the loss would miss least goes, and the remaining weights compensate for it."""

from collections.abc import Sequence
from typing import Literal

from lit_compress.strategies.importance import Fisher
from lit_compress.strategies.pruning import Pruning

__all__ = ["SecondOrderPruning"]


class SecondOrderPruning(Pruning):
    """Prunes by the Optimal BERT Surgeon (oBERT: Kurtic et al. 2022, arXiv 2203.07259) on a schedule.

    At each update gradients of the task loss (no distillation, no dropout) give a block-diagonal Fisher matrix. Its
    inverse says how much the loss would rise without a weight, and how the remaining weights compensate for it.
    Updates happen after the optimizer step, as in :class:`Pruning`; each costs ``recomputations * gradients``
    forward and backward passes.

    Args:
        sparsity: final fraction of pruned weights (of groups, when pruning groups), in [0, 1).
        initial_sparsity: fraction at ``start``; oBERT begins at 0.7, and at 0.3 with 3 or 6 layers.
        schedule: how sparsity grows from initial to final; ``constant`` prunes all of it at ``start``.
        start: first update: ``"10%"`` of training, ``"1 epochs"`` or ``"500 steps"``.
        end: last update; later steps recover at constant sparsity.
        every: distance between updates.
        pattern: ``unstructured``, ``"1xC"`` for groups of C consecutive inputs (``"1x4"``: oBERT's 4-block), or another
            one of :class:`Pruning`.
        scope: one threshold for all layers (``global``), or every layer reaches the sparsity itself (``layer``).
        gradients: m, the mini-batches whose gradients make the Fisher matrix.
        gradient_batch_size: examples of such a mini-batch on each device.
        damping: lambda, added to the diagonal; too large is magnitude pruning, too small unstable.
        block_size: B, the weights that know of each other; memory grows with it.
        recomputations: parts that an update is made in, each with fresh gradients, equal steps of sparsity apart.
        memory: GiB that inverses may take on the device, in addition to model and activations. What does not fit is
            divided among the layers, at the price of sampling the gradients again for each part.
        targets: globs or ``re:`` patterns; None takes every linear of the transformer layers.
        ignore: patterns to leave alone.

    """

    importance_option = None

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
            importance=Fisher(gradients, gradient_batch_size, damping, block_size, recomputations, memory),
            pattern=pattern,
            sparsity=sparsity,
            initial_sparsity=initial_sparsity,
            schedule=schedule,
            start=start,
            end=end,
            every=every,
            scope=scope,
            targets=targets,
            ignore=ignore,
        )
