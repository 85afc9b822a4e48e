"""Gradual magnitude pruning: the lowest weights go, more and more of them, while the rest keeps learning."""

from collections.abc import Callable, Sequence
from typing import Literal

from torch import Tensor

from lit_compress.functional.importance import magnitude
from lit_compress.strategies.importance import Function
from lit_compress.strategies.pruning import Pruning

__all__ = ["MagnitudePruning"]


class MagnitudePruning(Pruning):
    """Prunes the weights with the lowest scores on a schedule (Zhu & Gupta 2017, arXiv 1710.01878).

    Updates happen after the optimizer step: at ``start``, every ``every`` after it, and at ``end``, where the final
    sparsity is exact. A pruned weight stays pruned: it is 0, and 0 is the lowest magnitude there is. With ``regrowth``
    it keeps its value behind the mask until the last update, as in Prune Once for All (Zafrir et al. 2021, 2111.05754).

    Args:
        sparsity: final fraction of pruned weights (of blocks, when pruning blocks), in [0, 1).
        initial_sparsity: fraction at ``start``.
        schedule: how sparsity grows from initial to final; ``constant`` prunes all of it at ``start``.
        start: first update: ``"10%"`` of training, ``"1 epochs"`` or ``"500 steps"``.
        end: when the final sparsity is reached; later steps recover at constant sparsity.
        every: distance between updates.
        regrowth: a pruned weight may become active again at a later update, when the weights that were kept have become
            smaller.
        last_update: with ``regrowth``, masks are chosen again at the final sparsity until then; None means ``end``.
        pattern: ``unstructured``; ``"N:M"`` keeps N of M consecutive inputs (``"2:4"``: quote it in YAML); ``"RxC"``
            prunes blocks of R outputs by C inputs (``"1x4"``); ``"RxC/N"`` keeps equally many in every row of blocks,
            the multiple of N nearest to the sparsity; ``tall_blocks`` is ``"128x32/4"``, which kernels skip.
        scope: every layer reaches the sparsity itself (``layer``), or all layers share one threshold (``global``).
        criterion: function from a weight to scores of the same shape, as an import path; :class:`Pruning` has more.
        permute_neurons: with ``"RxC/N"``, before training, put feed-forward neurons next to each other that read and
            write alike, so that whole blocks have low scores; the model computes the same as before.
        targets: globs or ``re:`` patterns; None takes every linear of the transformer layers.
        ignore: patterns to leave alone.

    """

    importance_option = "criterion"

    def __init__(
        self,
        sparsity: float = 0.8,
        initial_sparsity: float = 0.0,
        schedule: Literal["constant", "linear", "cubic", "cosine"] = "cubic",
        start: str = "0%",
        end: str = "60%",
        every: str = "2%",
        regrowth: bool = False,
        last_update: str | None = None,
        pattern: str = "unstructured",
        scope: Literal["layer", "global"] = "layer",
        criterion: Callable[[Tensor], Tensor] = magnitude,
        permute_neurons: bool = False,
        targets: Sequence[str] | None = None,
        ignore: Sequence[str] = (),
    ) -> None:
        super().__init__(
            importance=Function(criterion),
            pattern=pattern,
            sparsity=sparsity,
            initial_sparsity=initial_sparsity,
            schedule=schedule,
            start=start,
            end=end,
            every=every,
            regrowth=regrowth,
            last_update=last_update,
            scope=scope,
            permute_neurons=permute_neurons,
            targets=targets,
            ignore=ignore,
        )
