"""Attention heads and feed-forward neurons: which linears they are made of, and how to take some away."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from lit_compress.errors import UserError
from lit_compress.models.layout import Layout, encoder_layers, layout_of
from lit_compress.nn.compressible import CompressibleLinear
from lit_compress.nn.packed import PackedLinear
from lit_compress.nn.slicing import keep_columns, keep_inputs, keep_outputs

__all__ = [
    "KINDS",
    "Groups",
    "Kind",
    "column_mask",
    "permute_groups",
    "removable_groups",
    "remove_from_layers",
    "remove_groups",
    "remove_heads",
    "remove_neurons",
    "remove_pruned",
    "require_unpacked",
    "row_mask",
]

Kind = Literal["heads", "neurons"]
KINDS: tuple[Kind, ...] = ("heads", "neurons")


@dataclass(frozen=True)
class Groups:
    """The heads, or the neurons, of one layer: equal groups of features between some linears and the one after them.

    Args:
        kind: ``heads`` or ``neurons``.
        consumer: name of the linear that reads them: the attention's output projection or the second matrix.
        producers: names of those that make them: query, key and value, or the first matrix.
        attention: name of the module that counts the heads.
        count: number of heads or neurons.
        size: features of each; 1 for neurons.
        table: name of a table with a column for each of them, which all layers read: they have the same ones.

    """

    kind: Kind
    consumer: str
    producers: tuple[str, ...]
    attention: str
    count: int
    size: int
    table: str | None = None


def removable_groups(model: nn.Module, kind: Kind, key: str = "model.pretrained") -> list[Groups]:
    """Heads or neurons of each stored transformer layer, from the first to the last.

    Args:
        model: Hugging Face encoder, with any head.
        kind: ``heads`` or ``neurons``.
        key: config key named in the error.

    Raises:
        UserError: the family computes them in a way that does not let single ones go.

    """
    layout = layout_of(model, key)
    layout.require(kind, key)
    names = {id(module): name for name, module in model.named_modules()}
    table = None
    if kind == "heads" and layout.head_table is not None:
        table = names[id(getattr(model, "base_model", model).get_submodule(layout.head_table))]
    return [_groups_of_layer(layout, layer, names[id(layer)], kind, table) for layer in encoder_layers(model)]


def _groups_of_layer(layout: Layout, layer: nn.Module, prefix: str, kind: Kind, table: str | None) -> Groups:
    attention: Any = layer.get_submodule(layout.attention)
    if kind == "heads":
        consumer, size = layout.attention_output, getattr(attention, layout.head_size)
        candidates = (layout.query, layout.key, layout.value, *layout.head_linears, *layout.fused_head_linears)
    else:
        consumer, size, candidates = layout.feed_forward_out, 1, (layout.feed_forward_in,)
    assert consumer is not None
    modules = dict(layer.named_modules())
    return Groups(
        kind=kind,
        consumer=f"{prefix}.{consumer}",
        producers=tuple(f"{prefix}.{name}" for name in candidates if name in modules),
        attention=f"{prefix}.{layout.attention}",
        count=_linear(layer, consumer).in_features // size,
        size=size,
        table=table,
    )


def column_mask(groups: Groups, kept: Tensor) -> Tensor:
    """Which inputs of the consumer are kept, bool ``(count * size,)``, from which groups are, bool ``(count,)``."""
    return kept.repeat_interleave(groups.size)


def row_mask(groups: Groups, kept: Tensor, rows: int) -> Tensor:
    """Which of the ``rows`` outputs of a producer are kept.

    A producer that makes several things at once (query, key and value; a value and its gate) has them one after the
    other, so the pattern repeats.
    """
    return column_mask(groups, kept).repeat(rows // (groups.count * groups.size))


def remove_groups(model: nn.Module, groups: Groups, kept: Tensor) -> None:
    """Cut all but the kept heads or neurons out of a layer, in place: weights, biases, masks, per-channel scales.

    What is left computes the same as the model in which the consumer's columns of the others are zero, up to the
    order of summation: logits differ by about 1e-6 of their size in fp32.

    Args:
        model: plain, or in its training form.
        groups: one entry of :func:`removable_groups`.
        kept: bool ``(count,)``; at least one is True.

    Raises:
        UserError: all layers of this family have the same heads, and there are more of them.

    """
    remove_from_layers(model, [(groups, kept)])


def remove_from_layers(
    model: nn.Module, selection: Sequence[tuple[Groups, Tensor]], key: str = "model.pretrained"
) -> None:
    """:func:`remove_groups` of several layers, one after the other; where they share a table, it loses its columns.

    Args:
        model: plain, or in its training form.
        selection: entries of :func:`removable_groups`, each once, with what is kept of them.
        key: config key named in the error.

    Raises:
        UserError: what layers with the same heads lose is not the same, or not lost by all of them.

    """
    tied = [(groups.table, kept) for groups, kept in selection if groups.table is not None]
    uneven = any(not torch.equal(kept, tied[0][1]) for _, kept in tied)
    if tied and (uneven or len(tied) != len(encoder_layers(model))):
        layout_of(model).require("uneven_heads", key)
    for groups, kept in selection:
        _remove(model, groups, kept)
    for name, kept in tied[:1]:
        table = model.get_submodule(name)
        assert isinstance(table, nn.Embedding)
        keep_columns(table, kept.nonzero().reshape(-1))


def _remove(model: nn.Module, groups: Groups, kept: Tensor) -> None:
    consumer = _linear(model, groups.consumer)
    keep_inputs(consumer, column_mask(groups, kept).nonzero().reshape(-1))
    for name in groups.producers:
        producer = _linear(model, name)
        keep_outputs(producer, row_mask(groups, kept, producer.out_features).nonzero().reshape(-1))
    if isinstance(consumer, CompressibleLinear):
        consumer.kept_groups = consumer.group_scores = None
    if groups.kind == "heads":
        attention: Any = model.get_submodule(groups.attention)
        if (count := layout_of(model).head_count) is not None:
            setattr(attention, count, consumer.in_features // groups.size)
        if hasattr(attention, "all_head_size"):
            attention.all_head_size = consumer.in_features


@torch.no_grad()
def permute_groups(model: nn.Module, groups: Groups, order: Tensor) -> None:
    """Put the heads or neurons of a layer in another order, in place; Parameters stay the same objects.

    The layer computes the same, up to the order of summation. Masks, per-channel scales and scores move along.

    Args:
        model: plain, or in its training form.
        groups: one entry of :func:`removable_groups`, of no table.
        order: int64 ``(count,)``, which one comes at each place.

    """
    assert groups.table is None
    inputs = (order.unsqueeze(1) * groups.size + torch.arange(groups.size, device=order.device)).flatten()
    consumer = _linear(model, groups.consumer)
    _reorder([consumer.weight, *_per_weight(consumer)], inputs, dim=1)
    if isinstance(consumer, CompressibleLinear) and consumer.kept_groups is not None:
        _reorder([consumer.kept_groups, consumer.group_scores], order, dim=0)
    for name in groups.producers:
        producer = _linear(model, name)
        starts = range(0, producer.out_features, len(inputs))
        outputs = torch.cat([inputs + start for start in starts])
        scales = [getattr(producer, "weight_quantizer", None)]
        per_row = [scale for q in scales if q is not None and (scale := getattr(q, "scale", None)) is not None]
        tensors = [producer.weight, producer.bias, *_per_weight(producer), *(s for s in per_row if s.ndim)]
        _reorder(tensors, outputs, dim=0)


def _per_weight(linear: nn.Linear) -> tuple[Tensor | None, ...]:
    """What a layer has for each of its weights."""
    return (linear.weight_mask, linear.mask_scores) if isinstance(linear, CompressibleLinear) else ()


def _reorder(tensors: Iterable[Tensor | None], index: Tensor, dim: int) -> None:
    for tensor in tensors:
        if tensor is not None:
            tensor.copy_(tensor.index_select(dim, index.to(tensor.device)))


def remove_heads(model: nn.Module, layer: int | None, kept: Tensor) -> None:
    """Keep some attention heads of a layer, bool ``(heads,)``; see :func:`remove_groups`.

    With None for the layer, every layer keeps these: MPNet's have the same heads and cannot lose others.
    """
    _remove_kind(model, "heads", layer, kept)


def remove_neurons(model: nn.Module, layer: int | None, kept: Tensor) -> None:
    """Keep some feed-forward neurons of a layer, bool ``(neurons,)``, or with None of every layer."""
    _remove_kind(model, "neurons", layer, kept)


def _remove_kind(model: nn.Module, kind: Kind, layer: int | None, kept: Tensor) -> None:
    require_unpacked(model)
    every = removable_groups(model, kind)
    chosen = every if layer is None else [every[layer]]
    for groups in chosen:
        if len(kept) != groups.count or not bool(kept.any()):
            raise UserError(
                f"remove_{kind}: {kept.tolist()} must say of {groups.count} {kind} which stay, and of one or more so"
            )
    remove_from_layers(model, [(groups, kept) for groups in chosen], f"remove_{kind}")


def remove_pruned(model: nn.Module) -> None:
    """Cut out, in place, every head and neuron that structured pruning has marked in ``kept_groups``."""
    marked = {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, CompressibleLinear) and module.kept_groups is not None
    }
    selection = [
        (groups, kept)
        for groups in (_all_groups(model) if marked else ())
        if (consumer := marked.get(groups.consumer)) is not None and (kept := consumer.kept_groups) is not None
    ]
    remove_from_layers(model, selection)
    for groups, _ in selection:
        for name in (groups.consumer, *groups.producers):
            _drop_full_mask(model.get_submodule(name))


def require_unpacked(model: nn.Module) -> None:
    """Raise a ``UserError`` for a packed model, whose linears cannot be cut."""
    if any(isinstance(module, PackedLinear) for module in model.modules()):
        raise UserError("a packed model keeps its shape; change the one that it was made from, and pack that")


def _drop_full_mask(layer: nn.Module) -> None:
    # What the mask was there for is gone; a layer of which nothing else is pruned is not a sparse layer.
    if isinstance(layer, CompressibleLinear) and layer.weight_mask is not None and layer.weight_mask.all():
        layer.weight_mask = None


def _all_groups(model: nn.Module) -> Iterator[Groups]:
    for kind in KINDS:
        try:
            found = removable_groups(model, kind)
        except UserError:  # a family may have one kind and not the other
            continue
        yield from found


def _linear(model: nn.Module, name: str) -> nn.Linear:
    linear = model.get_submodule(name)
    assert isinstance(linear, nn.Linear)
    return linear
