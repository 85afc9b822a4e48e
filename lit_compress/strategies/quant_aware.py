"""Quantization-aware training: an encoder computes with values of integers while the loss still corrects it."""

from collections.abc import Sequence
from typing import Any, Literal

import torch
from lightning.pytorch import LightningModule, Trainer
from torch import nn

from lit_compress.errors import UserError
from lit_compress.models.attention import attention_modules
from lit_compress.nn.attention import ATTENTION_SLOTS, attention_quantizers, quantize_attention
from lit_compress.nn.compressible import CompressibleLinear
from lit_compress.nn.quantizers import (
    ActivationType,
    FakeQuantizer,
    MinMaxWeightQuantizer,
    MovingAverageQuantizer,
    TableQuantizer,
    input_quantizer,
    wrong_quantization,
)
from lit_compress.nn.replace_layers import make_tables_compressible, match_modules, matches
from lit_compress.strategies.strategy import Strategy, student_of
from lit_compress.strategies.window import parse_duration, to_steps
from lit_compress.training_steps import training_steps

__all__ = ["EMBEDDING_TABLES", "QuantAwareTraining"]

# Words, positions, token types; not the tables of relative positions, which some families read without a lookup.
EMBEDDING_TABLES = ("*embeddings.*", "*.word_embedding")

_CHOICES = {
    "embeddings": ("none", "uint8", "int8"),
    "attention": ("none", "inputs", "all"),
}


class QuantAwareTraining(Strategy):
    """Fake-quantizes linears from ``start`` on, with the straight-through gradient (Jacob et al. 2017, 1712.05877).

    On request embedding tables, the products inside attention and outputs as well. The weight is masked before it is
    quantized and 0 always has an integer, so sparsity survives. Train it in fp32.

    Args:
        start: when quantization begins: ``"60%"``, ``"2 epochs"`` or ``"500 steps"``; after pruning as a rule.
        freeze_observers: when all ranges stop moving while weights keep learning; None never.
        weight_bits: width of weight integers.
        per_channel: one weight scale per output channel (True) or per tensor (False, as in SparseML and Prune OFA).
        activations: integers of inputs: ``uint8`` affine or ``int8`` symmetric with a moving-average range, ``dynamic``
            int8 with a scale per token, ``none``.
        outputs: patterns of those targets whose output is quantized to ``uint8`` too.
        embeddings: integers of embedding tables: ``uint8`` affine per table, ``int8`` symmetric per row, ``none``.
        embedding_targets: patterns of tables; None takes words, positions and token types.
        attention: ``inputs`` quantizes the operands of both products inside attention (left ``uint8``, right
            ``int8``), ``all`` their results too, ``none`` neither.
        momentum: fraction of the newest batch in a moving-average range.
        targets: globs or ``re:`` patterns; None takes every linear of the transformer layers.
        ignore: patterns to leave alone.

    """

    def __init__(
        self,
        start: str = "60%",
        freeze_observers: str | None = "90%",
        weight_bits: int = 8,
        per_channel: bool = True,
        activations: ActivationType = "uint8",
        outputs: Sequence[str] = (),
        embeddings: Literal["none", "uint8", "int8"] = "none",
        embedding_targets: Sequence[str] | None = None,
        attention: Literal["none", "inputs", "all"] = "none",
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
        if wrong := wrong_quantization(weight_bits, activations):
            raise UserError(f"{owner}.{'weight_' if wrong[0] == 'bits' else ''}{': '.join(wrong)}")
        given = {"embeddings": embeddings, "attention": attention}
        for key, allowed in _CHOICES.items():
            if given[key] not in allowed:
                raise UserError(f"{owner}.{key}: {given[key]!r} must be one of {', '.join(allowed)}")
        if embedding_targets is not None and embeddings == "none":
            raise UserError(f"{owner}.embedding_targets: has no effect while embeddings is none; give uint8 or int8")
        if not 0 < momentum <= 1:
            raise UserError(f"{owner}.momentum: {momentum} must be in (0, 1]")
        self.weight_bits, self.per_channel = weight_bits, per_channel
        self.activations: ActivationType = activations
        self.outputs, self.momentum = list(outputs), momentum
        self.embeddings, self.embedding_targets, self.attention = embeddings, embedding_targets, attention
        self._quantizers: list[FakeQuantizer] = []
        self._window = (0, 0)

    def prepare(self, layers: dict[str, CompressibleLinear]) -> None:
        key = f"{type(self).__name__}.outputs"
        for pattern in self.outputs:
            if not any(matches(name, pattern, key) for name in layers):
                raise UserError(f"{key}: {pattern!r} matches none of the targets, such as {next(iter(layers))!r}")
        for name, layer in layers.items():
            requantized = any(matches(name, pattern, key) for pattern in self.outputs)
            slots = {
                "weight_quantizer": MinMaxWeightQuantizer(layer.out_features, self.weight_bits, self.per_channel),
                "input_quantizer": input_quantizer(self.activations, self.momentum),
                "output_quantizer": MovingAverageQuantizer(momentum=self.momentum) if requantized else None,
            }
            self._install("targets", name, layer, slots, layer.weight.device)

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        super().setup(trainer, pl_module, stage)
        student, owner = student_of(pl_module), type(self).__name__
        if self.embeddings != "none":
            names = list(self._match_tables(student))
            for name, table in make_tables_compressible(student, names, f"{owner}.embedding_targets").items():
                slots = {"weight_quantizer": TableQuantizer(table.num_embeddings, per_row=self.embeddings == "int8")}
                self._install("embedding_targets", name, table, slots, table.weight.device)
        if self.attention != "none":
            device = next(student.parameters()).device
            modules = attention_modules(student, f"{owner}.attention")
            for name, quantizers in quantize_attention(student, list(modules)).items():
                self._install("attention", name, quantizers, self._attention_slots(), device)
        if stage == "fit":
            self._steps(trainer)

    def end(self, trainer: Trainer) -> int:
        return self._steps(trainer)[0] + 1  # one quantized step, which has seen a range

    def amounts(self, pl_module: LightningModule) -> tuple[str, str]:
        return f"{self.weight_bits}-bit weights", "fp32 weights"

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        # Once per fit: matching names takes longer than switching, and the structure does not change any more.
        student = student_of(pl_module)
        owners: list[nn.Module] = list(self.layers(pl_module).values())
        if self.embeddings != "none":
            owners += self._match_tables(student).values()
        if self.attention != "none":
            owners += [quantizers for _, quantizers in attention_quantizers(student)]
        self._quantizers = [child for owner in owners for child in owner.children() if isinstance(child, FakeQuantizer)]
        self._window = self._steps(trainer)
        if trainer.global_step > self._window[0]:
            # Also where no batch follows: a run that is resumed at its end is evaluated and saved.
            _switch(self._quantizers, enabled=True, observing=False)

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        (start, freeze), step = self._window, trainer.global_step
        _switch(self._quantizers, enabled=step >= start, observing=start <= step < freeze)

    def _install(self, key: str, name: str, owner: nn.Module, slots: dict[str, Any], device: torch.device) -> None:
        """Fill empty slots with quantizers that are still off; the same ones a second time change nothing."""
        there = {slot: getattr(owner, slot) for slot in slots}
        if not any(there.values()):
            for slot, quantizer in slots.items():
                setattr(owner, slot, quantizer.to(device) if quantizer else None)
            _switch([quantizer for quantizer in slots.values() if quantizer], enabled=False, observing=False)
        elif any(_describe(there[slot]) != _describe(quantizer) for slot, quantizer in slots.items()):
            raise UserError(
                f"{type(self).__name__}.{key}: {name!r} is quantized already, in another way; "
                "give the two strategies different targets"
            )

    def _match_tables(self, student: nn.Module) -> dict[str, nn.Module]:
        key = f"{type(self).__name__}.embedding_targets"
        if self.embedding_targets is not None:
            return match_modules(student, self.embedding_targets, (), nn.Embedding, key)
        names = [name for name, module in student.named_modules() if isinstance(module, nn.Embedding)]
        usual = [glob for glob in EMBEDDING_TABLES if any(matches(name, glob, key) for name in names)]
        return match_modules(student, usual or EMBEDDING_TABLES, (), nn.Embedding, key)

    def _steps(self, trainer: Trainer) -> tuple[int, int]:
        owner, (total, _) = type(self).__name__, training_steps(trainer)
        start = to_steps(self.start, trainer, owner)
        if start >= total:
            raise UserError(f"{owner}.start: step {start} comes after training ends at step {total}; start earlier")
        freeze = to_steps(self.freeze, trainer, owner) if self.freeze else total
        if freeze <= start:
            raise UserError(
                f"{owner}.freeze_observers: step {freeze} leaves no step after start, step {start}, to see any data"
            )
        if freeze > total:
            raise UserError(
                f"{owner}.freeze_observers: step {freeze} comes after training ends at step {total}; freeze earlier, "
                "or give null"
            )
        return start, freeze

    def _attention_slots(self) -> dict[str, FakeQuantizer | None]:
        # As SparseML wraps both products: left operand and result affine, right operand symmetric.
        slots: dict[str, FakeQuantizer | None] = dict.fromkeys(ATTENTION_SLOTS)
        for slot in ATTENTION_SLOTS if self.attention == "all" else ("query", "key", "probabilities", "value"):
            slots[slot] = MovingAverageQuantizer(symmetric=slot in ("key", "value"), momentum=self.momentum)
        return slots


def _describe(quantizer: FakeQuantizer | None) -> object:
    return None if quantizer is None else (type(quantizer), quantizer.spec())


def _switch(quantizers: Sequence[FakeQuantizer], enabled: bool, observing: bool) -> None:
    for quantizer in quantizers:
        # Setting an attribute of a module costs more than reading it, and this runs before every step.
        if (quantizer.enabled, quantizer.observing) != (enabled, observing):
            quantizer.enabled, quantizer.observing = enabled, observing
