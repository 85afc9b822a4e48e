"""What removing parts of a model costs, measured: how far its answers move from its own."""

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from lightning.fabric.utilities import move_data_to_device
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle
from transformers import PreTrainedModel

from lit_compress.functional.importance import taylor
from lit_compress.functional.masks import group_mask
from lit_compress.models.drop_layers import depth
from lit_compress.models.heads_and_neurons import KINDS, Groups, Kind, column_mask, removable_groups
from lit_compress.models.layer_similarity import evaluating
from lit_compress.models.layout import encoder_layers, layout_of
from lit_compress.modules.distillation import LogitDistillation
from lit_compress.modules.embedding_distillation import EmbeddingDistillation
from lit_compress.planning.plan import Losses
from lit_compress.progress import counted
from lit_compress.strategies.units import group_scores, scored_linears
from lit_compress.tasks import Batch, EmbeddingTask, Task

__all__ = ["measure_losses"]

# What is left of a layer's heads and of its neurons when it is measured; 0 is a single one.
_SHARES: dict[Kind, tuple[float, ...]] = {"heads": (1 / 2, 1 / 4, 0), "neurons": (1 / 2, 1 / 4, 1 / 8, 1 / 16, 1 / 32)}


@dataclass(frozen=True)
class _Removal:
    """A part that goes, as a hook on a module of one layer."""

    layer: int
    kind: Kind | None  # None: the layer
    left: int
    install: Callable[[], RemovableHandle]


def measure_losses(model: PreTrainedModel, batches: Iterable[Batch], task: Task) -> Losses:
    """How far the answers of a model move on real rows when a part of it goes, one part at a time.

    Of each layer only its most important heads stay (a half, a quarter, one), or its most important neurons (a half, a
    quarter, and so on to a thirty-second), or the whole layer is skipped. Importance is weight times gradient of the
    task, as in :class:`~lit_compress.StructuredPruning`. What is measured is the divergence ``KL(dense || pruned)`` of
    what the head says, for a regression the squared difference, for vectors one minus the cosine: it needs no labels
    and is 0 for the model itself.

    With fewer of its parts a layer never loses less. Nothing of the model changes; the same batches give the same
    losses.

    Args:
        model: encoder with the head of the task, in floating point; its layers may be uneven already.
        batches: labeled rows, as the data module makes them.
        task: of this data module.

    Raises:
        UserError: a family that is not in the table of layouts.

    """
    rows = [move_data_to_device(batch, model.device) for batch in batches]
    with evaluating(model):
        removals = _removals(model, rows, task)
        measured = _measure(model, rows, task, removals)
    widths: dict[Kind, list[dict[int, float]]] = {
        kind: [{full: 0.0} for full in _full_widths(model, kind)] for kind in KINDS
    }
    layers = [math.inf] * depth(model)
    for removal, loss in zip(removals, measured, strict=True):
        if removal.kind is None:
            layers[removal.layer] = loss
        else:
            known = widths[removal.kind][removal.layer]
            known[removal.left] = max(loss, *known.values())
    return Losses(
        heads=tuple(widths["heads"]),
        neurons=tuple(widths["neurons"]),
        layers=tuple(layers),
        same_heads="uneven_heads" in layout_of(model).unsupported,
    )


def _full_widths(model: PreTrainedModel, kind: Kind) -> list[int]:
    """How many heads or neurons each layer has."""
    layout = layout_of(model)
    if kind in layout.unsupported:
        return [getattr(model.config, {"heads": layout.heads_key, "neurons": layout.width_key}[kind])] * depth(model)
    counts = [groups.count for groups in removable_groups(model, kind)]
    return counts[:1] * depth(model) if layout.shared else counts


def _removals(model: PreTrainedModel, rows: Sequence[Batch], task: Task) -> list[_Removal]:
    """What is measured, in the order of the layers; of the parts of a layer the fewest come last."""
    layout = layout_of(model)
    if layout.shared:  # one stored layer is all of them: none can be another than the others
        return []
    groups = [
        (layer, one)
        for kind in KINDS
        if kind not in layout.unsupported
        for layer, one in enumerate(removable_groups(model, kind))
    ]
    scores = _importance(model, rows, task, [one for _, one in groups])
    found: list[_Removal] = []
    for layer, one in groups:
        consumer = model.get_submodule(one.consumer)
        lefts = sorted({max(1, int(one.count * share)) for share in _SHARES[one.kind]} - {one.count}, reverse=True)
        for left in lefts:
            kept = column_mask(one, group_mask(scores[one.consumer], left))
            found.append(_Removal(layer, one.kind, left, partial(_mask_inputs, consumer, kept)))
    for index, layer in enumerate(encoder_layers(model)):
        if index > 0 or "first_layer" not in layout.unsupported:
            found.append(_Removal(index, None, 0, partial(layer.register_forward_hook, _pass_on)))
    return sorted(found, key=lambda removal: removal.layer)


def _mask_inputs(linear: nn.Module, kept: Tensor) -> RemovableHandle:
    return linear.register_forward_pre_hook(lambda _, args: (args[0] * kept, *args[1:]))


def _pass_on(layer: nn.Module, args: tuple[Any, ...], output: Any) -> Any:
    return (args[0], *output[1:]) if isinstance(output, tuple) else args[0]


def _importance(
    model: PreTrainedModel, rows: Sequence[Batch], task: Task, groups: Sequence[Groups]
) -> dict[str, Tensor]:
    """Scores ``(count,)`` of the heads and neurons, by the name of the linear that reads them."""
    weights = {name: model.get_parameter(f"{name}.weight") for one in groups for name in scored_linears(one)}
    totals = {name: torch.zeros_like(weight) for name, weight in weights.items()}
    for batch in rows:
        with torch.enable_grad():
            loss = task.loss(model(**batch.inputs), batch)
            gradients = torch.autograd.grad(loss, list(weights.values()), materialize_grads=True)
        for total, gradient in zip(totals.values(), gradients, strict=True):
            total += gradient.abs()
    scores = {name: taylor(weight, totals[name]) for name, weight in weights.items()}
    of_groups = {one.consumer: group_scores(one, [scores[name] for name in scored_linears(one)]) for one in groups}
    if tied := [one.consumer for one in groups if one.table is not None]:
        # Layers that lose the same heads lose those that are least important to all of them together.
        of_groups |= dict.fromkeys(tied, torch.stack([of_groups[name] for name in tied]).sum(0))
    return of_groups


@torch.no_grad()
def _measure(model: PreTrainedModel, rows: Sequence[Batch], task: Task, removals: Sequence[_Removal]) -> list[float]:
    """The mean divergence from the model itself after each removal."""
    divergence = (
        EmbeddingDistillation() if isinstance(task, EmbeddingTask) else LogitDistillation(hardness=1.0, temperature=1.0)
    )
    divergence.prepare(model.config, [model.config])
    layers = list(encoder_layers(model))
    totals, count = [0.0] * len(removals), 0
    with counted("Measuring the loss without each part", len(rows) * len(removals), "forward passes") as tell:
        for number, batch in enumerate(rows):
            expected, outputs = _recorded(model, layers, batch)
            for index, removal in enumerate(removals):
                with removal.install(), _replayed(layers[: removal.layer], outputs):
                    answer = model(**batch.inputs)
                totals[index] += float(divergence(answer, expected, batch)) * task.count(batch)
                tell(number * len(removals) + index + 1)
            count += task.count(batch)
    return [max(0.0, total / max(count, 1)) for total in totals]


def _recorded(model: PreTrainedModel, layers: Sequence[nn.Module], batch: Batch) -> tuple[Any, list[Any]]:
    """What the model answers, and what each layer gives."""
    outputs: list[Any] = []
    with ExitStack() as hooks:
        for layer in layers:
            hooks.enter_context(layer.register_forward_hook(lambda _, __, output: outputs.append(output)))
        return model(**batch.inputs), outputs


@contextmanager
def _replayed(layers: Sequence[nn.Module], outputs: Sequence[Any]) -> Iterator[None]:
    """The first layers give what they gave before, without computing it: nothing has changed up to there."""
    for layer, output in zip(layers, outputs, strict=False):
        layer.forward = lambda *_, output=output, **__: output
    try:
        yield
    finally:
        for layer in layers:
            del layer.forward
