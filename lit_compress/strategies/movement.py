"""Movement pruning: a learned score for each weight says whether the weight moves away from 0 or towards it."""

from collections.abc import Sequence
from typing import Literal

from lit_compress.strategies.importance import Movement
from lit_compress.strategies.pruning import Pruning

__all__ = ["MovementPruning"]

# The paper's setting for SQuAD: 15 % of the weights remain.
_SPARSITY = 0.85


class MovementPruning(Pruning):
    """Prunes by learned scores while fine-tuning (Sanh et al. 2020, arXiv 2005.07683).

    The mask is made from the scores again and again, and a pruned weight may come back: it keeps its value until the
    masks are frozen. Then it becomes 0 and stays 0. Embeddings are frozen in the paper: add :class:`FreezeEmbeddings`.

    Args:
        method: ``hard`` keeps the weights with the highest scores, a number on a schedule; ``soft`` keeps those whose
            sigmoid of the score is above a threshold on a schedule, while ``ScorePenalty`` in ``LitPrunedStudent``
            pulls scores down.
        sparsity: of ``hard``: final fraction of pruned weights, in [0, 1); 0.85 when not given.
        initial_sparsity: of ``hard``: fraction at ``start``.
        threshold: of ``soft``: the final one, in (0, 1), growing from 0; 0.1 when not given. How much that prunes is
            learned, at most 99.5 % of a matrix.
        start: where the cubic schedule begins; scores learn from the first step on.
        end: where it reaches its final value.
        every: distance between updates of the masks.
        freeze_masks: the last update; from then on masks are fixed and what they prune is 0.
        scope: of ``hard``: every layer reaches the sparsity itself (``layer``), or all share one threshold.
        targets: globs or ``re:`` patterns; None takes every linear of the transformer layers.
        ignore: patterns to leave alone.

    """

    importance_option = None
    last_update_option = "freeze_masks"

    def __init__(
        self,
        method: Literal["hard", "soft"] = "hard",
        sparsity: float | None = None,
        initial_sparsity: float = 0.0,
        threshold: float | None = None,
        start: str = "10%",
        end: str = "80%",
        every: str = "1 steps",
        freeze_masks: str = "100%",
        scope: Literal["layer", "global"] = "layer",
        targets: Sequence[str] | None = None,
        ignore: Sequence[str] = (),
    ) -> None:
        super().__init__(
            importance=Movement(method, threshold),
            sparsity=_SPARSITY if sparsity is None and method == "hard" else sparsity,
            initial_sparsity=initial_sparsity,
            start=start,
            end=end,
            every=every,
            last_update=freeze_masks,
            scope=scope,
            targets=targets,
            ignore=ignore,
        )
