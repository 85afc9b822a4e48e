"""A student whose loss itself asks for sparsity."""

from torch import Tensor, nn

from lit_compress.errors import UserError
from lit_compress.functional.movement import score_penalty
from lit_compress.modules.cached_teacher import CacheDtype
from lit_compress.modules.distillation import Distillation, named_terms
from lit_compress.modules.optim import Optimization
from lit_compress.modules.student import LitStudent
from lit_compress.nn.surgery import compressible_layers

__all__ = ["L1Penalty", "LitPrunedStudent", "Penalty", "ScorePenalty"]


class Penalty(nn.Module):
    """Base of differentiable sparsity penalties: subclass it and return a scalar from ``forward``.

    Attributes:
        weight: factor of the penalty in the loss.
        of_scores: whether it pulls the scores of movement pruning down, which its soft method cannot do without.

    """

    weight: float = 1.0
    of_scores: bool = False

    def forward(self, student: nn.Module) -> Tensor:
        """Penalty of the student's current weights."""
        raise NotImplementedError(f"{type(self).__name__} must define forward(student)")


class L1Penalty(Penalty):
    """Mean magnitude of the compressible layers' weights: pulls unimportant ones to 0 before they are pruned.

    Args:
        weight: factor of the penalty; the mean magnitude of a pretrained encoder is about 0.03.

    """

    def __init__(self, weight: float = 1.0) -> None:
        super().__init__()
        self.weight = weight

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
        super().__init__()
        self.weight = weight

    def forward(self, student: nn.Module) -> Tensor:
        terms = [
            layer.score_pressure * score_penalty(layer.mask_scores)
            for _, layer in compressible_layers(student)
            if layer.mask_scores is not None and layer.score_pressure is not None
        ]
        if not terms:
            raise UserError(
                "model.penalties: no layer has scores to pull down; add MovementPruning with method soft to compression"
            )
        return sum(terms[1:], terms[0]) / len(terms)


class LitPrunedStudent(LitStudent):
    """A :class:`LitStudent` with penalties on its weights, added to the loss and logged by name.

    Args:
        pretrained: as in :class:`LitStudent`.
        teacher: likewise.
        distillation: likewise.
        penalties: penalties by name; None is ``{"l1": L1Penalty()}``.
        labels: as in :class:`LitStudent`.
        tokenizer: likewise.
        optimization: likewise.
        compile: likewise.
        task: likewise.
        teachers: likewise.
        teacher_cache: likewise.
        teacher_cache_dtype: likewise.
        label_map: likewise.

    """

    def __init__(
        self,
        pretrained: str,
        teacher: str | None = None,
        distillation: dict[str, Distillation] | None = None,
        penalties: dict[str, Penalty] | None = None,
        labels: list[str] | None = None,
        tokenizer: str | None = None,
        optimization: Optimization = Optimization(),  # noqa: B008 (frozen)
        compile: bool = False,
        task: str | None = None,
        teachers: dict[str, str] | None = None,
        teacher_cache: str | None = None,
        teacher_cache_dtype: CacheDtype = "float32",
        label_map: dict[str, str | int] | None = None,
    ) -> None:
        super().__init__(
            pretrained,
            teacher,
            distillation,
            labels,
            tokenizer,
            optimization,
            compile,
            task,
            teachers,
            teacher_cache,
            teacher_cache_dtype,
            label_map,
        )
        penalties = penalties if penalties is not None else {"l1": L1Penalty()}
        self.penalties = named_terms(penalties, "model.penalties", taken=self.distillation.keys())

    def losses(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """The student's parts and each penalty."""
        parts = super().losses(batch)
        for name, penalty in self.penalties.items():
            assert isinstance(penalty, Penalty)
            parts[name] = penalty(self.student)
            parts["loss"] = parts["loss"] + penalty.weight * parts[name]
        return parts
