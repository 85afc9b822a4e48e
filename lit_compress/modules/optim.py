"""AdamW with the parameter groups and the learning-rate schedules that encoders are fine-tuned with."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import nn

from lit_compress.errors import UserError
from lit_compress.modules.learning_rate import (
    Phase,
    Rewind,
    learning_rate_factor,
    parse_option,
    phase_factor,
    phase_steps,
    to_steps,
)

__all__ = ["Optimization", "parameter_groups"]


@dataclass(frozen=True, kw_only=True)
class Optimization:
    """How weights are learned: AdamW, warm-up, then a decay, once or again and again.

    Args:
        learning_rate: peak learning rate.
        weight_decay: decoupled decay; never on biases and normalisation weights.
        warmup: length of the linear warm-up: ``"10%"``, ``"500 steps"`` or ``"0.5 epochs"``.
        decay: shape after the warm-up; ``constant`` stays at the peak.
        final_learning_rate: where a decay ends.
        phases: decays one after the other, each from the peak, the last until the end of training; none means one
            decay.
        rewind: reset the rate at each mask update, as Prune Once for All does.
        betas: AdamW's averaging coefficients.
        epsilon: AdamW's denominator term.
        score_learning_rate: peak learning rate of movement pruning's scores, without weight decay; 1e-2 when not given.

    """

    learning_rate: float = 5e-5
    weight_decay: float = 0.01
    warmup: str = "10%"
    decay: Literal["linear", "cosine", "constant"] = "linear"
    final_learning_rate: float = 0.0
    phases: Sequence[Phase] = ()
    rewind: Rewind | None = None
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
        parse_option(self.warmup, "optimization.warmup")
        self._check_learning_rates()

    def _check_learning_rates(self) -> None:
        finals = {"final_learning_rate": self.final_learning_rate}
        for index, phase in enumerate(self.phases):
            finals[f"phases.{index}.final_learning_rate"] = phase.final_learning_rate or 0.0
        for key, final in finals.items():
            if not 0 <= final < self.learning_rate:
                raise UserError(f"optimization.{key}: {final} must be from 0 to below {self.learning_rate}, the peak")
        if self.decay == "constant" and (self.final_learning_rate or self.phases):
            key = "phases" if self.phases else "final_learning_rate"
            raise UserError(f"optimization.{key}: has no effect on a constant rate; use decay linear or cosine")
        if self.rewind and self.phases:
            raise UserError("optimization.rewind: does not go together with phases; give one of them")
        rewinds_from = {"decay": "linear", "final_learning_rate": 0.0}
        for key, value in rewinds_from.items():
            if self.rewind and getattr(self, key) != value:
                raise UserError(f"optimization.{key}: {getattr(self, key)!r} does not go with rewind; give {value}")

    def build(self, module: nn.Module, total_steps: int, steps_per_epoch: float, fused: bool = True) -> dict[str, Any]:
        """Optimizer and scheduler for Lightning's ``configure_optimizers``; one fused kernel unless told otherwise."""
        groups = parameter_groups(module, self.weight_decay) + self._score_group(module)
        optimizer = torch.optim.AdamW(groups, lr=self.learning_rate, betas=self.betas, eps=self.epsilon, fused=fused)
        scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, self._factor(total_steps, steps_per_epoch))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}

    def _factor(self, total_steps: int, steps_per_epoch: float) -> Callable[[int], float]:
        """Fraction of the peak rate at each optimizer step: a pure function, so a resumed run needs no state of it."""
        warmup = to_steps(self.warmup, "optimization.warmup", total_steps, steps_per_epoch)
        if self.rewind:
            return self.rewind.factor(warmup, total_steps, steps_per_epoch)
        peak, final = self.learning_rate, self.final_learning_rate
        if self.phases:
            phases = phase_steps(self.phases, peak, final, warmup, total_steps, steps_per_epoch)
            return lambda step: phase_factor(step, warmup, phases, self.decay)
        return lambda step: learning_rate_factor(step, warmup, total_steps, self.decay, final / peak)

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

    Scores of masks are in neither: they are not weights.
    """
    trainable = [p for name, p in module.named_parameters() if p.requires_grad and not _is_score(name)]
    return [
        {"params": [p for p in trainable if p.ndim >= 2], "weight_decay": weight_decay},
        {"params": [p for p in trainable if p.ndim < 2], "weight_decay": 0.0},
    ]


def _is_score(name: str) -> bool:
    return name.endswith("mask_scores")
