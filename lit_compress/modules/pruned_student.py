"""A student whose loss itself asks for sparsity."""

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from lit_compress.errors import UserError
from lit_compress.functional.movement import score_penalty
from lit_compress.init_args import KeepsInitArgs
from lit_compress.modules.distillation import Distillation, named_terms
from lit_compress.modules.saved_arguments import made_again
from lit_compress.modules.student import LitStudent
from lit_compress.nn.replace_layers import compressible_layers
from lit_compress.tasks import Batch

__all__ = ["L1Penalty", "LitPrunedStudent", "Penalty", "ScorePenalty"]


class Penalty(KeepsInitArgs, nn.Module):
    """Base of differentiable sparsity penalties: subclass it and return a scalar from ``forward``.

    Args:
        weight: factor of the penalty in the loss; None is that of the class, 1 unless it says another.

    Attributes:
        of_scores: whether it pulls the scores of movement pruning down, which its soft method cannot do without; its
            ``forward`` then also gets ``factors``: for each layer a factor of its penalty at this step, from 0 to 1.

    """

    weight: float = 1.0
    of_scores: bool = False

    def __init__(self, weight: float | None = None) -> None:
        super().__init__()
        if weight is not None:
            self.weight = weight

    def forward(self, student: nn.Module) -> Tensor:
        """Penalty of the student's current weights."""
        raise NotImplementedError(f"{type(self).__name__} must define forward(student)")


class L1Penalty(Penalty):
    """Mean magnitude of the compressible layers' weights: pulls unimportant ones to 0 before they are pruned.

    Args:
        weight: factor of the penalty; the mean magnitude of a pretrained encoder is about 0.03.

    """

    def __init__(self, weight: float = 1.0) -> None:
        super().__init__(weight)

    def forward(self, student: nn.Module) -> Tensor:
        magnitudes = [layer.weight.abs().mean() for _, layer in compressible_layers(student)]
        if not magnitudes:
            raise UserError("model.penalties: the student has no compressible layer; add a strategy to compression")
        return sum(magnitudes[1:], magnitudes[0]) / len(magnitudes)


class ScorePenalty(Penalty):
    """Mean over layers of ``sum(sigmoid(scores)) / size``: what soft movement pruning (arXiv 2005.07683) prunes with.

    It grows with the threshold, from 0 to ``weight`` when that is final, as in the authors' code.

    Args:
        weight: final factor of the penalty; 400 for SQuAD at a threshold of 0.1 (the authors' README).

    """

    of_scores = True

    def __init__(self, weight: float = 400.0) -> None:
        super().__init__(weight)

    def forward(self, student: nn.Module, factors: Mapping[str, float] = {}) -> Tensor:
        terms = [
            factors[name] * score_penalty(layer.mask_scores)
            for name, layer in compressible_layers(student)
            if layer.mask_scores is not None and name in factors
        ]
        if not terms:
            raise UserError(
                "model.penalties: no layer has scores to pull down; add MovementPruning with method soft to compression"
            )
        return sum(terms[1:], terms[0]) / len(terms)


class LitPrunedStudent(LitStudent):
    """A :class:`LitStudent` with penalties on its weights, added to the loss and logged by name.

    Args:
        pretrained: pretrained model of the student; usually the teacher's own folder.
        teacher: hub name or folder of the fine-tuned teacher; None trains on the labels alone.
        distillation: terms by name; with a teacher and no terms, ``{"kd": LogitDistillation()}``.
        penalties: penalties by name; None is ``{"l1": L1Penalty()}``.
        options: see :class:`LitStudent`.

    """

    def __init__(
        self,
        pretrained: str,
        teacher: str | None = None,
        distillation: dict[str, Distillation] | None = None,
        penalties: dict[str, Penalty] | None = None,
        **options: Any,
    ) -> None:
        super().__init__(pretrained, teacher, distillation, **options)
        penalties = made_again(penalties, dict[str, Penalty], "model.penalties")
        penalties = penalties if penalties is not None else {"l1": L1Penalty()}
        self.penalties = named_terms(penalties, "model.penalties", taken=self.distillation.keys())

    def losses(self, batch: Batch) -> dict[str, Tensor]:
        """The student's parts and each penalty."""
        parts = super().losses(batch)
        for name, penalty in self.penalties.items():
            assert isinstance(penalty, Penalty)
            parts[name] = penalty(self.student, self._score_factors()) if penalty.of_scores else penalty(self.student)
            parts["loss"] = parts["loss"] + penalty.weight * parts[name]
        return parts

    def _score_factors(self) -> dict[str, float]:
        """Factors of the penalty at this step, by layer, from each strategy that learns scores."""
        callbacks: Any = self._trainer.callbacks if self._trainer is not None else ()  # type: ignore[attr-defined]
        found = [
            callback.score_factors(self.trainer, self) for callback in callbacks if hasattr(callback, "score_factors")
        ]
        return {name: factor for factors in found for name, factor in factors.items()}
