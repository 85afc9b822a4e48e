"""Attention heads and feed-forward neurons: which linears they are made of, and how to take some away."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from lit_compress.errors import UserError
from lit_compress.models.layout import encoder_layers
from lit_compress.nn.compressible import CompressibleLinear
from lit_compress.nn.slicing import keep_inputs, keep_outputs

__all__ = [
    "KINDS",
    "Groups",
    "column_mask",
    "removable_groups",
    "remove_groups",
    "remove_heads",
    "remove_neurons",
    "remove_pruned",
    "row_mask",
]

KINDS = ("heads", "neurons")
_HEAD_COUNTS = ("num_attention_heads", "n_heads", "num_heads")
_HEAD_SIZES = ("attention_head_size", "head_dim")

_ATTENTION = (
    ("attention.output.dense", ("attention.self.query", "attention.self.key", "attention.self.value")),
    ("attention.output.dense", ("attention.self.query_proj", "attention.self.key_proj", "attention.self.value_proj")),
    ("attention.out_lin", ("attention.q_lin", "attention.k_lin", "attention.v_lin")),
    ("attn.Wo", ("attn.Wqkv",)),
)
_FEED_FORWARD = (
    ("output.dense", ("intermediate.dense",)),
    ("ffn.lin2", ("ffn.lin1",)),
    ("mlp.Wo", ("mlp.Wi",)),
    ("ff.layer_2", ("ff.layer_1",)),
)
# Projections of relative positions, which DeBERTa-v2 may have beside those of tokens.
_POSITIONS = ("attention.self.pos_key_proj", "attention.self.pos_query_proj")


@dataclass(frozen=True)
class Groups:
    """The heads, or the neurons, of one layer: equal groups of features between some linears and the one after them.

    Args:
        kind: ``heads`` or ``neurons``.
        consumer: name of the linear that reads them: the attention's output projection or the second matrix.
        producers: names of those that make them: query, key and value, or the first matrix.
        count: number of heads or neurons.
        size: features of each; 1 for neurons.

    """

    kind: str
    consumer: str
    producers: tuple[str, ...]
    count: int
    size: int


def removable_groups(model: nn.Module, kind: str, key: str = "model.pretrained") -> list[Groups]:
    """Heads or neurons of each transformer layer, from the first layer to the last.

    Args:
        model: Hugging Face encoder, with any head.
        kind: ``heads`` or ``neurons``.
        key: config key named in the error.

    Raises:
        UserError: the family computes them in a way that does not let single ones go.

    """
    layers = encoder_layers(model)
    prefix = next(name for name, module in model.named_modules() if module is layers)
    return [_groups_of_layer(layer, f"{prefix}.{index}", kind, key) for index, layer in enumerate(layers)]


def _groups_of_layer(layer: nn.Module, prefix: str, kind: str, key: str) -> Groups:
    modules = dict(layer.named_modules())
    for consumer, producers in _ATTENTION if kind == "heads" else _FEED_FORWARD:
        if all(name in modules for name in (consumer, *producers)):
            width = _linear(layer, consumer).in_features
            size = 1 if kind == "neurons" else _head_size(modules[producers[0].rpartition(".")[0]])
            positions = [name for name in _POSITIONS if kind == "heads" and name in modules]
            names = tuple(f"{prefix}.{name}" for name in (*producers, *positions))
            return Groups(kind, f"{prefix}.{consumer}", names, width // size, size)
    raise UserError(f"{key}: {type(layer).__name__} has no {kind} that can be removed one by one; leave {kind} alone")


def _head_size(attention: Any) -> int:
    return next(getattr(attention, name) for name in _HEAD_SIZES if hasattr(attention, name))


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

    """
    consumer = _linear(model, groups.consumer)
    keep_inputs(consumer, column_mask(groups, kept).nonzero().reshape(-1))
    for name in groups.producers:
        producer = _linear(model, name)
        keep_outputs(producer, row_mask(groups, kept, producer.out_features).nonzero().reshape(-1))
    if isinstance(consumer, CompressibleLinear):
        consumer.kept_groups = consumer.group_scores = None
    if groups.kind == "heads":
        attention: Any = model.get_submodule(groups.producers[0].rpartition(".")[0])
        heads = consumer.in_features // groups.size
        for name in _HEAD_COUNTS:
            if hasattr(attention, name):
                setattr(attention, name, heads)
        if hasattr(attention, "all_head_size"):
            attention.all_head_size = consumer.in_features


def remove_heads(model: nn.Module, layer: int, kept: Tensor) -> None:
    """Keep some attention heads of a layer, bool ``(heads,)``; see :func:`remove_groups`."""
    remove_groups(model, removable_groups(model, "heads")[layer], kept)


def remove_neurons(model: nn.Module, layer: int, kept: Tensor) -> None:
    """Keep some feed-forward neurons of a layer, bool ``(neurons,)``; see :func:`remove_groups`."""
    remove_groups(model, removable_groups(model, "neurons")[layer], kept)


def remove_pruned(model: nn.Module) -> None:
    """Cut out, in place, every head and neuron that structured pruning has marked in ``kept_groups``."""
    marked = {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, CompressibleLinear) and module.kept_groups is not None
    }
    for groups in _all_groups(model) if marked else ():
        consumer = marked.get(groups.consumer)
        if consumer is not None and consumer.kept_groups is not None:
            remove_groups(model, groups, consumer.kept_groups)
            for name in (groups.consumer, *groups.producers):
                _drop_full_mask(model.get_submodule(name))


def _drop_full_mask(layer: nn.Module) -> None:
    # What the mask was there for is gone; a layer of which nothing else is pruned is no sparse layer.
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
