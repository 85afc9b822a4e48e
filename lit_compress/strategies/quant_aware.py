"""Quantization-aware training: weights and inputs of linears on integer grids while the loss still corrects them."""

from collections.abc import Sequence
from typing import Any, Literal

from lightning.pytorch import LightningModule, Trainer

from lit_compress.errors import UserError
from lit_compress.nn.compressible import CompressibleLinear
from lit_compress.nn.quantizers import (
    DynamicTokenQuantizer,
    FakeQuantizer,
    MinMaxWeightQuantizer,
    MovingAverageQuantizer,
)
from lit_compress.run_length import run_length
from lit_compress.strategies.strategy import Strategy, parse_duration, to_steps

__all__ = ["QuantAwareTraining"]


class QuantAwareTraining(Strategy):
    """Fake-quantizes linears from ``start`` on, with the straight-through gradient (Jacob et al. 2017, 1712.05877).

    The weight is masked before it is quantized and 0 is always on the grid, so sparsity survives. Train it in fp32.

    Args:
        start: when quantization begins: ``"60%"``, ``"2 epochs"`` or ``"500 steps"``; after pruning as a rule.
        freeze_observers: when all ranges stop moving while weights go on; None never.
        weight_bits: width of weight integers.
        per_channel: one weight scale per output channel (True) or per tensor (False, as in SparseML and Prune OFA).
        activations: input grids: ``uint8`` affine or ``int8`` symmetric with a moving-average range, ``dynamic``
            int8 with a scale per token, ``none``.
        momentum: share of the newest batch in a moving-average range.
        targets: globs or ``re:`` patterns; None takes every linear of the transformer layers.
        ignore: patterns to leave alone.

    """

    def __init__(
        self,
        start: str = "60%",
        freeze_observers: str | None = "90%",
        weight_bits: int = 8,
        per_channel: bool = True,
        activations: Literal["uint8", "int8", "dynamic", "none"] = "uint8",
        momentum: float = 0.01,
        targets: Sequence[str] | None = None,
        ignore: Sequence[str] = (),
    ) -> None:
        super().__init__(targets, ignore)
        owner = type(self).__name__
        self.start = parse_duration(start, f"{owner}.start")
        self.freeze = parse_duration(freeze_observers, f"{owner}.freeze_observers") if freeze_observers else None
        if self.freeze and self.freeze.unit == self.start.unit and self.freeze.value < self.start.value:
            raise UserError(f"{owner}.freeze_observers: {freeze_observers!r} comes before start {start!r}")
        if activations not in ("uint8", "int8", "dynamic", "none"):
            raise UserError(f"{owner}.activations: {activations!r} must be uint8, int8, dynamic or none")
        if not 2 <= weight_bits <= 8:
            raise UserError(f"{owner}.weight_bits: {weight_bits} must be from 2 to 8")
        if not 0 < momentum <= 1:
            raise UserError(f"{owner}.momentum: {momentum} must be in (0, 1]")
        self.weight_bits, self.per_channel = weight_bits, per_channel
        self.activations, self.momentum = activations, momentum

    def prepare(self, layers: dict[str, CompressibleLinear]) -> None:
        for name, layer in layers.items():
            ours = (
                MinMaxWeightQuantizer(layer.out_features, self.weight_bits, self.per_channel),
                self._input_quantizer(),
            )
            there = layer.weight_quantizer, layer.input_quantizer
            if there == (None, None):
                device = layer.weight.device
                layer.weight_quantizer, layer.input_quantizer = (q.to(device) if q else None for q in ours)
                _switch(layer, enabled=False, observing=False)
            elif [_describe(q) for q in there] != [_describe(q) for q in ours]:
                raise UserError(
                    f"{type(self).__name__}.targets: {name!r} is quantized already, in another way; "
                    "give the two strategies different targets"
                )

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        super().setup(trainer, pl_module, stage)
        if stage == "fit":
            self._steps(trainer)

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        start, freeze = self._steps(trainer)
        step = trainer.global_step
        for layer in self.layers(pl_module).values():
            _switch(layer, enabled=step >= start, observing=start <= step < freeze)

    def _steps(self, trainer: Trainer) -> tuple[int, int]:
        owner, (total, _) = type(self).__name__, run_length(trainer)
        start = to_steps(self.start, trainer, owner)
        if start >= total:
            raise UserError(f"{owner}.start: step {start} comes after training ends at step {total}; start earlier")
        freeze = to_steps(self.freeze, trainer, owner) if self.freeze else total
        if freeze <= start:
            raise UserError(
                f"{owner}.freeze_observers: step {freeze} leaves no step after start, step {start}, to see any data"
            )
        return start, freeze

    def _input_quantizer(self) -> FakeQuantizer | None:
        if self.activations == "none":
            return None
        if self.activations == "dynamic":
            return DynamicTokenQuantizer()
        return MovingAverageQuantizer(symmetric=self.activations == "int8", momentum=self.momentum)


def _describe(quantizer: FakeQuantizer | None) -> object:
    return None if quantizer is None else (type(quantizer), quantizer.spec())


def _switch(layer: CompressibleLinear, enabled: bool, observing: bool) -> None:
    for quantizer in (layer.weight_quantizer, layer.input_quantizer):
        if quantizer is not None:
            quantizer.enabled, quantizer.observing = enabled, observing
