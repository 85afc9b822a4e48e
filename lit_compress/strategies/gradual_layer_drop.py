"""Gradual layer dropping: the top layers close one after the other while the encoder is fine-tuned."""

import torch
from lightning.pytorch import LightningModule, Trainer

from lit_compress.errors import UserError
from lit_compress.functional.schedules import EqualParts
from lit_compress.models.layout import encoder_layers, layout_of
from lit_compress.nn.gates import add_layer_gate, layer_gate
from lit_compress.strategies.scheduled import Scheduled
from lit_compress.strategies.strategy import amount_of, check_amount, student_of, tell_if_little
from lit_compress.strategies.window import Window

__all__ = ["GradualLayerDropping"]


class GradualLayerDropping(Scheduled):
    """Closes layers from the top, one by one, as ROSITA prunes depth (Liu et al. 2021, arXiv 2103.11367).

    A closed layer passes its input on and learns nothing more. It is still computed, and physically gone in the folded
    model, which gives the same logits. To drop layers before training, and train faster, take ``LayerDropping``.

    Args:
        drop: number of layers that close, or a fraction in (0, 1) of the model's.
        start: where the first of ``drop`` equal stretches begins; at the end of each one layer closes. ``"10%"`` of
            training, ``"1 epochs"`` or ``"500 steps"``.
        end: where the last layer closes. With ``start`` and ``end`` at ``"0%"`` all close before the first step.

    """

    def __init__(self, drop: int | float, start: str = "0%", end: str = "20%") -> None:
        super().__init__()
        check_amount(drop, f"{type(self).__name__}.drop")
        self.drop = drop
        self.window = Window(type(self).__name__, start, end)

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        owner = type(self).__name__
        student = student_of(pl_module, owner)
        layout_of(student, f"compression: {owner} of model.pretrained").require("layers", f"{owner}.drop")
        layers = encoder_layers(student)
        drop = amount_of(self.drop, len(layers))
        if drop >= len(layers):
            raise UserError(
                f"{owner}.drop: {self.drop} leaves none of {len(layers)} layers; give at most {len(layers) - 1}"
            )
        for layer in layers[-drop:]:
            add_layer_gate(layer)
        if stage == "fit":
            tell_if_little(f"{owner}.drop", len(layers) - drop, len(layers), "layers")
            self.updates(trainer)  # a window that does not fit this run is an error now, not an hour later

    def updates(self, trainer: Trainer) -> EqualParts:
        window = super().updates(trainer)
        layers = encoder_layers(student_of(trainer.lightning_module))
        return EqualParts(window.start, window.end, amount_of(self.drop, len(layers)))

    def amounts(self, pl_module: LightningModule) -> tuple[str, str]:
        gates = [layer_gate(layer) for layer in encoder_layers(student_of(pl_module))]
        closed = sum(1 for gate in gates if gate is not None and not gate)
        return f"{amount_of(self.drop, len(gates))} layers dropped", f"{closed} layers dropped"

    @torch.no_grad()
    def update(self, trainer: Trainer, pl_module: LightningModule, progress: float) -> None:
        layers = encoder_layers(student_of(pl_module))
        for layer in layers[-round(progress * amount_of(self.drop, len(layers))) :]:
            gate = layer_gate(layer)
            assert gate is not None
            gate.fill_(False)
