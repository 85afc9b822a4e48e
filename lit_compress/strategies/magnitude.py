"""Gradual magnitude pruning: the lowest weights go, more and more of them, while the rest keeps learning."""

import re
from collections.abc import Callable, Sequence
from typing import Any, Literal

import torch
from lightning.pytorch import LightningModule, Trainer
from torch import Tensor, nn

from lit_compress.errors import UserError
from lit_compress.functional import masks
from lit_compress.functional.importance import magnitude
from lit_compress.functional.permutation import neuron_order
from lit_compress.functional.schedules import Constant, Cosine, Cubic, Linear, due
from lit_compress.models.groups import permute_groups, removable_groups
from lit_compress.nn.compressible import CompressibleLinear
from lit_compress.run_length import run_length
from lit_compress.strategies.strategy import (
    Strategy,
    Window,
    full_weight,
    parse_duration,
    percent,
    set_mask,
    stepped,
    student_of,
    to_steps,
    zeros,
)

__all__ = ["MagnitudePruning"]

_SCHEDULES = {"linear": Linear, "cubic": Cubic, "cosine": Cosine}


class MagnitudePruning(Strategy):
    """Prunes the weights with the lowest scores on a schedule (Zhu & Gupta 2017, arXiv 1710.01878).

    Updates happen after the optimizer step: at ``start``, every ``every`` after it, and at ``end``, where the final
    sparsity is exact. A pruned weight stays pruned: it is 0, and 0 is the lowest magnitude there is. With ``revive`` it
    keeps its value behind the mask until the last update, as in Prune Once for All (Zafrir et al. 2021, 2111.05754).

    Args:
        sparsity: final fraction of pruned weights (of blocks, when pruning blocks), in [0, 1).
        initial_sparsity: fraction at ``start``.
        schedule: how sparsity grows from initial to final; ``constant`` prunes all of it at ``start``.
        start: first update: ``"10%"`` of training, ``"1 epochs"`` or ``"500 steps"``.
        end: when the final sparsity is reached; later steps recover at constant sparsity.
        every: distance between updates.
        revive: a pruned weight may come back at a later update, when those that were kept have become smaller.
        last_update: with ``revive``, masks are chosen anew at the final sparsity until then; None means ``end``.
        pattern: ``unstructured``; ``"N:M"`` keeps N of M consecutive inputs (``"2:4"``: quote it in YAML); ``"RxC"``
            prunes blocks of R outputs by C inputs (``"1x4"``); ``"RxC/N"`` keeps equally many in every row of blocks,
            the multiple of N nearest to the sparsity; ``tall_blocks`` is ``"128x32/4"``, which kernels skip.
        scope: every layer reaches the sparsity itself (``layer``), or all layers share one threshold (``global``).
        criterion: function from a weight to scores of the same shape, as an import path.
        permute_neurons: with ``"RxC/N"``, before training, put feed-forward neurons beside each other that read and
            write alike, so that whole blocks have low scores; the model computes the same as before.
        targets: globs or ``re:`` patterns; None takes every linear of the transformer layers.
        ignore: patterns to leave alone.

    """

    def __init__(
        self,
        sparsity: float = 0.8,
        initial_sparsity: float = 0.0,
        schedule: Literal["constant", "linear", "cubic", "cosine"] = "cubic",
        start: str = "0%",
        end: str = "60%",
        every: str = "2%",
        revive: bool = False,
        last_update: str | None = None,
        pattern: str = "unstructured",
        scope: Literal["layer", "global"] = "layer",
        criterion: Callable[[Tensor], Tensor] = magnitude,
        permute_neurons: bool = False,
        targets: Sequence[str] | None = None,
        ignore: Sequence[str] = (),
    ) -> None:
        super().__init__(targets, ignore)
        for key, value in (("sparsity", sparsity), ("initial_sparsity", initial_sparsity)):
            if not 0 <= value < 1:
                raise UserError(f"{type(self).__name__}.{key}: {value} must be in [0, 1)")
        if initial_sparsity > sparsity:
            raise UserError(
                f"{type(self).__name__}.initial_sparsity: {initial_sparsity} is above sparsity {sparsity}; "
                "a pruned weight does not come back"
            )
        for key, value, allowed in (
            ("schedule", schedule, ("constant", *_SCHEDULES)),
            ("scope", scope, ("layer", "global")),
        ):
            if value not in allowed:
                raise UserError(f"{type(self).__name__}.{key}: {value!r} must be one of {', '.join(allowed)}")
        if schedule == "constant" and initial_sparsity:
            raise UserError(
                f"{type(self).__name__}.initial_sparsity: {initial_sparsity} has no effect on a constant schedule; "
                "leave it out"
            )
        if last_update is not None and not revive:
            raise UserError(
                f"{type(self).__name__}.last_update: {last_update!r} has no effect without revive: "
                "a mask chosen anew at the same sparsity is the same mask; leave it out"
            )
        self.window = Window(type(self).__name__, start, end, every)
        self.revive, self.last_update = revive, None
        if last_update is not None:
            self.last_update = parse_duration(last_update, f"{type(self).__name__}.last_update")
        self.schedule = (
            Constant(final=sparsity)
            if schedule == "constant"
            else _SCHEDULES[schedule](initial=initial_sparsity, final=sparsity)
        )
        self.kind, self.shape, self.multiple = _parse_pattern(pattern, type(self).__name__)
        self.pattern, self.scope, self.criterion = pattern, scope, criterion
        self.sparsity, self.permute_neurons = sparsity, permute_neurons
        self._check_pattern()

    def prepare(self, layers: dict[str, CompressibleLinear]) -> None:
        # A last row of blocks may be smaller where all have equally many.
        rows, columns = self.shape if self.kind == "block" else (1, self.shape[1])
        for name, layer in layers.items():
            if layer.out_features % rows or layer.in_features % columns:
                raise UserError(
                    f"{type(self).__name__}.pattern: {self.pattern!r} does not divide {name!r} of shape "
                    f"{layer.out_features} x {layer.in_features}; choose another pattern or add the layer to ignore"
                )
            if self.kind == "balanced" and layer.in_features // columns <= self.multiple:
                raise UserError(
                    f"{type(self).__name__}.pattern: {self.pattern!r} can prune nothing of {name!r}, whose "
                    f"{layer.in_features} inputs are {layer.in_features // columns} blocks; add the layer to ignore"
                )
            layer.add_mask()

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        super().setup(trainer, pl_module, stage)
        if stage == "fit":
            self._last_update(trainer)  # a window that does not fit this run is an error now, not an hour later
            if self.permute_neurons:
                # Before the optimizer exists. Weights that a resumed run loads over these were permuted already.
                self._permute(student_of(pl_module))

    def end(self, trainer: Trainer) -> int:
        # What prunes everything at the start has nothing left to do but to choose anew.
        at_once = self.schedule(0.0) == self.sparsity and not self.revive
        return self.window.steps(trainer)[0] if at_once else self._last_update(trainer)

    def amounts(self, pl_module: LightningModule) -> tuple[str, str]:
        fixed = (", fixed", ", not fixed") if self.revive else ("", "")
        return percent(self.sparsity) + fixed[0], zeros(self.layers(pl_module).values()) + fixed[1]

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.global_step == 0:
            self._update(trainer, pl_module)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if stepped(trainer, batch_idx):
            self._update(trainer, pl_module)

    def masks(self, scores: dict[str, Tensor], sparsity: float) -> dict[str, Tensor]:
        """Masks of the layers at a sparsity; pure, and what a subclass overrides for another pattern."""
        if self.scope == "layer":
            return {name: self._mask(score, sparsity) for name, score in scores.items()}
        if self.kind == "block":
            means = [masks.block_means(score, self.shape) for score in scores.values()]
            pooled = [masks.expand_blocks(mask, self.shape) for mask in masks.global_masks(means, sparsity)]
        else:
            pooled = masks.global_masks(list(scores.values()), sparsity)
        return dict(zip(scores, pooled, strict=True))

    def _scores(self, layer: CompressibleLinear) -> Tensor:
        # What is pruned stays pruned, whatever the criterion says about a zero.
        return self.criterion(full_weight(layer)).masked_fill(~self._available(layer), -torch.inf)

    def _available(self, layer: CompressibleLinear) -> Tensor:
        """What a mask may keep: what it keeps now, and with ``revive`` every weight that still has a value."""
        assert layer.weight_mask is not None
        return layer.weight_mask | (full_weight(layer) != 0) if self.revive else layer.weight_mask

    def _mask(self, scores: Tensor, sparsity: float) -> Tensor:
        if self.kind == "block":
            return masks.block_mask(scores, sparsity, self.shape)
        if self.kind == "balanced":
            return masks.balanced_block_mask(scores, sparsity, self.shape, self.multiple)
        if self.kind == "n:m":
            # On the way to N:M whole zeros per group: as many as the schedule has reached, rounded down.
            group = self.shape[1]
            return masks.nm_mask(scores, group - int(sparsity * group + 1e-9), group)
        return masks.unstructured_mask(scores, sparsity)

    @torch.no_grad()
    def prune(self, trainer: Trainer, pl_module: LightningModule, sparsity: float) -> None:
        """Bring the layers to a sparsity; what a subclass overrides that looks at more than the weights."""
        layers, last = self.layers(pl_module), self._last_update(trainer)
        scores = {name: self._scores(layer) for name, layer in layers.items()}
        for name, mask in self.masks(scores, sparsity).items():
            # Never back: a pattern locked before, or a schedule that starts below it, must not revive a weight.
            allowed = mask & self._available(layers[name])
            set_mask(layers[name], allowed, trainer, keep_values=self.revive and trainer.global_step < last)

    def _last_update(self, trainer: Trainer) -> int:
        _, end, _ = self.window.steps(trainer)
        if self.last_update is None:
            return end
        owner, (total, _) = type(self).__name__, run_length(trainer)
        last = to_steps(self.last_update, trainer, owner)
        if not end <= last <= total:
            raise UserError(
                f"{owner}.last_update: step {last} must not come before end, step {end}, "
                f"nor after training ends at step {total}"
            )
        return last

    def _update(self, trainer: Trainer, pl_module: LightningModule) -> None:
        start, end, every = self.window.steps(trainer)
        step, last = trainer.global_step, self._last_update(trainer)
        if due(step, start, end, every) or (step > end and due(step, end, last, every)):
            self.prune(trainer, pl_module, self.schedule(1.0 if step >= end else (step - start) / (end - start)))

    @torch.no_grad()
    def _permute(self, student: nn.Module) -> None:
        targets, key = self._match(student), f"{type(self).__name__}.permute_neurons"
        for groups in removable_groups(student, "neurons", key):
            up, down = (targets.get(name) for name in (groups.producers[0], groups.consumer))
            order = neuron_order(
                None if up is None else self.criterion(full_weight(up)),
                None if down is None else self.criterion(full_weight(down)),
                neurons=groups.count,
                sparsity=self.sparsity,
                block=self.shape,
                multiple=self.multiple,
            )
            if order is not None:
                permute_groups(student, groups, order)

    def _check_pattern(self) -> None:
        owner, (keep, group) = type(self).__name__, self.shape
        if self.kind == "n:m" and abs(self.sparsity - (1 - keep / group)) > 1e-6:
            raise UserError(
                f"{owner}.sparsity: {self.sparsity} does not go with pattern {self.pattern!r}; "
                f"it must be {1 - keep / group:g}"
            )
        if self.kind in ("n:m", "balanced") and self.scope == "global":
            raise UserError(f"{owner}.scope: global has no meaning for {self.pattern!r}; use layer")
        if self.permute_neurons and self.kind != "balanced":
            raise UserError(
                f"{owner}.permute_neurons: has no effect on pattern {self.pattern!r}; choose one such as tall_blocks, "
                "or leave it out"
            )


def _parse_pattern(pattern: str, owner: str) -> tuple[str, tuple[int, int], int]:
    """Kind, the two numbers of its shape, and how many blocks go together."""
    if pattern == "unstructured":
        return "unstructured", (1, 1), 1
    if match := re.fullmatch(r"(\d+)\s*x\s*(\d+)\s*/\s*(\d+)", "128x32/4" if pattern == "tall_blocks" else pattern):
        rows, columns, multiple = int(match[1]), int(match[2]), int(match[3])
        if rows * columns * multiple > 0:
            return "balanced", (rows, columns), multiple
    if match := re.fullmatch(r"(\d+)\s*:\s*(\d+)", pattern):
        keep, group = int(match[1]), int(match[2])
        if 0 < keep < group:
            return "n:m", (keep, group), 1
    if match := re.fullmatch(r"(\d+)\s*x\s*(\d+)", pattern):
        rows, columns = int(match[1]), int(match[2])
        if rows * columns > 0:
            return "block", (rows, columns), 1
    raise UserError(
        f"{owner}.pattern: {pattern!r} is not a pattern; "
        "write unstructured, a quoted '2:4' (N of M kept), '1x4' (blocks) or tall_blocks"
    )
