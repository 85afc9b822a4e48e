"""AdamW with the parameter groups and the learning-rate schedules that encoders are fine-tuned with."""

import math
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import nn

from lit_compress.errors import UserError
from lit_compress.functional.schedules import Duration

__all__ = ["Optimization", "learning_rate_factor", "parameter_groups"]


@dataclass(frozen=True, kw_only=True)
class Optimization:
    """How weights are learned: AdamW, warm-up, then a decay to zero.

    Args:
        learning_rate: peak learning rate.
        weight_decay: decoupled decay; never on biases and normalisation weights.
        warmup: length of the linear warm-up: ``"10%"``, ``"500 steps"`` or ``"0.5 epochs"``.
        decay: shape after the warm-up; ``constant`` stays at the peak.
        betas: AdamW's averaging coefficients.
        epsilon: AdamW's denominator term.
        score_learning_rate: peak learning rate of movement pruning's scores, which never decay; 1e-2 when not given.

    """

    learning_rate: float = 5e-5
    weight_decay: float = 0.01
    warmup: str = "10%"
    decay: Literal["linear", "cosine", "constant"] = "linear"
    betas: tuple[float, float] = (0.9, 0.999)
    epsilon: float = 1e-8
    score_learning_rate: float | None = None

    def __post_init__(self) -> None:
        if not self.learning_rate > 0:
            raise UserError(f"optimization.learning_rate: {self.learning_rate} must be above 0")
        if self.score_learning_rate is not None and not self.score_learning_rate > 0:
            raise UserError(f"optimization.score_learning_rate: {self.score_learning_rate} must be above 0")
        if self.decay not in ("linear", "cosine", "constant"):
            raise UserError(f"optimization.decay: {self.decay!r} must be linear, cosine or constant")
        for key in ("weight_decay", "epsilon"):
            if not getattr(self, key) >= 0:
                raise UserError(f"optimization.{key}: {getattr(self, key)} must not be below 0")
        if not all(0 <= beta < 1 for beta in self.betas):
            raise UserError(f"optimization.betas: {self.betas} must both be in [0, 1)")
        try:
            Duration.parse(self.warmup)
        except ValueError as error:
            raise UserError(f"optimization.warmup: {error}") from error

    def build(self, module: nn.Module, total_steps: int, steps_per_epoch: float, fused: bool = True) -> dict[str, Any]:
        """Optimizer and scheduler for Lightning's ``configure_optimizers``; one fused kernel unless told otherwise."""
        groups = parameter_groups(module, self.weight_decay) + self._score_group(module)
        optimizer = torch.optim.AdamW(groups, lr=self.learning_rate, betas=self.betas, eps=self.epsilon, fused=fused)
        try:
            warmup_steps = Duration.parse(self.warmup).steps(total_steps, steps_per_epoch)
        except ValueError as error:
            raise UserError(f"optimization.warmup: {error}") from error
        scheduler = torch.optim.lr_scheduler.LambdaLR(
            optimizer, lambda step: learning_rate_factor(step, warmup_steps, total_steps, self.decay)
        )
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}

    def _score_group(self, module: nn.Module) -> list[dict[str, Any]]:
        scores = [p for name, p in module.named_parameters() if _is_score(name)]
        if not scores and self.score_learning_rate is not None:
            raise UserError(
                f"optimization.score_learning_rate: {self.score_learning_rate} has no effect, nothing learns scores; "
                "leave it out, or add MovementPruning to compression"
            )
        return [{"params": scores, "weight_decay": 0.0, "lr": self.score_learning_rate or 1e-2}] if scores else []


def parameter_groups(module: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Trainable parameters in two groups: matrices with weight decay, vectors (biases, normalisation) without.

    Scores of masks are in neither: they are no weights.
    """
    trainable = [p for name, p in module.named_parameters() if p.requires_grad and not _is_score(name)]
    return [
        {"params": [p for p in trainable if p.ndim >= 2], "weight_decay": weight_decay},
        {"params": [p for p in trainable if p.ndim < 2], "weight_decay": 0.0},
    ]


def _is_score(name: str) -> bool:
    return name.endswith("mask_scores")


def learning_rate_factor(step: int, warmup_steps: int, total_steps: int, decay: str) -> float:
    """Share of the peak learning rate at a step: linear warm-up, then the decay.

    Example:
        >>> [learning_rate_factor(s, 2, 10, "linear") for s in (0, 1, 2, 6, 10)]
        [0.0, 0.5, 1.0, 0.5, 0.0]

    """
    if step < warmup_steps:
        return step / warmup_steps
    progress = min((step - warmup_steps) / max(total_steps - warmup_steps, 1), 1.0)
    return {"linear": 1 - progress, "cosine": (1 + math.cos(math.pi * progress)) / 2, "constant": 1.0}[decay]
