"""Movement: a learned score for each weight says whether a weight moves away from 0 or towards it."""

from typing import Literal

from torch import Tensor

from lit_compress.errors import UserError
from lit_compress.functional.movement import threshold_mask
from lit_compress.functional.patterns import Pattern
from lit_compress.models.heads_and_neurons import Kind
from lit_compress.nn.compressible import CompressibleLinear
from lit_compress.strategies.distributed_weights import full_tensor
from lit_compress.strategies.importance.importance import Importance, Sample
from lit_compress.strategies.units import Units

__all__ = ["Movement"]

# The paper's setting for SQuAD.
_THRESHOLD = 0.1


class Movement(Importance):
    """Learned scores (Sanh et al. 2020, arXiv 2005.07683).

    The scores are Parameters of the layers and learn from the first step on; the mask hands its gradient straight
    through to them. What is pruned keeps its value and may come back until the last update. Changes no other weight.

    Args:
        method: ``hard`` keeps the highest scores, a number on the schedule; ``soft`` keeps those whose sigmoid is above
            a threshold on the schedule, while ``ScorePenalty`` in ``LitPrunedStudent`` pulls scores down.
        threshold: of ``soft``: the final one, in (0, 1); 0.1 when not given.

    """

    learned = True

    def __init__(self, method: Literal["hard", "soft"] = "hard", threshold: float | None = None) -> None:
        self.method, self.given = method, threshold
        self.threshold = _THRESHOLD if threshold is None else threshold
        self.finds_sparsity = method == "soft"

    def check(self, pattern: Pattern | Kind) -> None:
        if self.method not in ("hard", "soft"):
            raise UserError(f"{self.key}.method: {self.method!r} must be one of hard, soft")
        if self.method == "hard" and self.given is not None:
            raise UserError(f"{self.key}.threshold: has no effect on method hard; leave it out")
        if not 0 < self.threshold < 1:
            raise UserError(f"{self.key}.threshold: {self.threshold} must be in (0, 1)")
        text = pattern.text if isinstance(pattern, Pattern) else pattern
        if self.method == "soft" and text != "unstructured":
            raise UserError(
                f"{self.key}.method: soft finds out weight by weight how much it prunes, which {text!r} does not leave "
                "open; use method hard"
            )

    def amount(self) -> str | None:
        return f"threshold {self.threshold:g}" if self.finds_sparsity else None

    def why_no_regrowth(self) -> str | None:
        return "with learned scores a pruned weight may always come back"

    def prepare(self, units: Units) -> None:
        for layer in units.layers.values():
            layer.add_mask_scores()

    def of_layer(self, name: str, layer: CompressibleLinear) -> Tensor:
        assert layer.mask_scores is not None
        return full_tensor(layer.mask_scores)

    def choose(self, units: Units, sparsity: float, sample: Sample) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        if self.method == "hard":
            return super().choose(units, sparsity, sample)
        # Here what the schedule says is a fraction of the final threshold.
        scores = self.scores(units, sample)
        return {name: threshold_mask(score, self.threshold * sparsity) for name, score in scores.items()}, {}
