"""Movement pruning: a score beside every weight learns whether the weight moves away from 0 or towards it."""

from collections.abc import Sequence
from typing import Any, Literal

import torch
from lightning.pytorch import LightningModule, Trainer
from torch import Tensor
from torch.distributed.tensor import DTensor

from lit_compress.errors import UserError
from lit_compress.functional.masks import global_masks, unstructured_mask
from lit_compress.functional.movement import threshold_mask
from lit_compress.functional.schedules import Cubic, due
from lit_compress.nn.compressible import CompressibleLinear
from lit_compress.strategies.strategy import (
    Strategy,
    Window,
    agreed,
    parse_duration,
    percent,
    set_mask,
    stepped,
    to_steps,
    zeros,
)

__all__ = ["MovementPruning"]

# The paper's settings for SQuAD: 15 % of the weights remain, or sigmoid(score) above 0.1.
_SPARSITY = 0.85
_THRESHOLD = 0.1


class MovementPruning(Strategy):
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
        super().__init__(targets, ignore)
        owner = type(self).__name__
        for key, value, allowed in (("method", method, ("hard", "soft")), ("scope", scope, ("layer", "global"))):
            if value not in allowed:
                raise UserError(f"{owner}.{key}: {value!r} must be one of {', '.join(allowed)}")
        others = (
            {"threshold": threshold is not None}
            if method == "hard"
            else {"sparsity": sparsity is not None, "initial_sparsity": initial_sparsity, "scope": scope == "global"}
        )
        for key, given in others.items():
            if given:
                raise UserError(f"{owner}.{key}: has no effect on method {method}; leave it out")
        sparsity = _SPARSITY if sparsity is None else sparsity
        threshold = _THRESHOLD if threshold is None else threshold
        if not 0 <= initial_sparsity <= sparsity < 1:
            raise UserError(
                f"{owner}.sparsity: {sparsity} must be in [0, 1) and not below initial_sparsity, {initial_sparsity}"
            )
        if not 0 < threshold < 1:
            raise UserError(f"{owner}.threshold: {threshold} must be in (0, 1)")
        self.window = Window(owner, start, end, every)
        self.freeze = parse_duration(freeze_masks, f"{owner}.freeze_masks")
        self.method, self.scope, self.threshold = method, scope, threshold
        self.schedule = Cubic(initial=initial_sparsity, final=sparsity)

    def prepare(self, layers: dict[str, CompressibleLinear]) -> None:
        for layer in layers.values():
            layer.add_mask_scores()

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        super().setup(trainer, pl_module, stage)
        if stage != "fit":
            return
        self._steps(trainer)
        penalties = getattr(pl_module, "penalties", {}).values()
        if self.method == "soft" and not any(getattr(penalty, "of_scores", False) for penalty in penalties):
            raise UserError(
                f"{type(self).__name__}.method: soft prunes nothing unless a penalty pulls scores down; "
                "use LitPrunedStudent with model.penalties: {scores: ScorePenalty}, or method hard"
            )

    def end(self, trainer: Trainer) -> int:
        return self._steps(trainer)[-1]

    def amounts(self, pl_module: LightningModule) -> tuple[str, str]:
        asked = percent(self.schedule.final) if self.method == "hard" else f"threshold {self.threshold:g}"
        return f"{asked}, fixed", f"{zeros(self.layers(pl_module).values())}, not fixed"

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.global_step == 0:
            self._update(trainer, pl_module)

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        if self.method == "soft":
            pressure = Cubic(final=1.0)(self._progress(trainer))
            for layer in self.layers(pl_module).values():
                layer.score_pressure = pressure

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if stepped(trainer, batch_idx):
            self._update(trainer, pl_module)

    @torch.no_grad()
    def _update(self, trainer: Trainer, pl_module: LightningModule) -> None:
        start, _, every, freeze = self._steps(trainer)
        step = trainer.global_step
        if not due(step, start, freeze, every):
            return
        layers = self.layers(pl_module)
        for name, mask in self._masks(layers, self._progress(trainer)).items():
            if step == freeze:
                set_mask(layers[name], mask, trainer)
            else:
                # The mask alone: a weight under it must be there when it comes back.
                buffer = layers[name].weight_mask
                assert buffer is not None
                buffer.copy_(agreed(mask))

    def _masks(self, layers: dict[str, CompressibleLinear], progress: float) -> dict[str, Tensor]:
        scores = {name: _full_scores(layer) for name, layer in layers.items()}
        if self.method == "soft":
            threshold = self.threshold * Cubic(final=1.0)(progress)
            return {name: threshold_mask(score, threshold) for name, score in scores.items()}
        sparsity = self.schedule(progress)
        if self.scope == "global":
            return dict(zip(scores, global_masks(list(scores.values()), sparsity), strict=True))
        return {name: unstructured_mask(score, sparsity) for name, score in scores.items()}

    def _progress(self, trainer: Trainer) -> float:
        start, end, _, _ = self._steps(trainer)
        return 1.0 if trainer.global_step >= end else (trainer.global_step - start) / (end - start)

    def _steps(self, trainer: Trainer) -> tuple[int, int, int, int]:
        """Start, end, distance and freezing in optimizer steps of this run."""
        owner = type(self).__name__
        start, end, every = self.window.steps(trainer)
        freeze = to_steps(self.freeze, trainer, owner)
        total = to_steps(parse_duration("100%", owner), trainer, owner)
        if not end <= freeze <= total:
            raise UserError(
                f"{owner}.freeze_masks: step {freeze} must come after end, step {end}, and not after training, "
                f"step {total}"
            )
        return start, end, every, freeze


def _full_scores(layer: CompressibleLinear) -> Tensor:
    assert layer.mask_scores is not None
    scores = layer.mask_scores.detach()
    return scores.full_tensor() if isinstance(scores, DTensor) else scores
