"""Shapes that a stock Hugging Face configuration cannot say, as JSON, and the way back.

A stock configuration has one feed-forward width for all layers, heads whose sizes add up to the hidden size, and whole
embedding tables. What differs from that is, each only when needed::

    {"heads": [2, 2, 3], "neurons": [512, 480, 512], "ranks": {"embeddings.word_embeddings": 128}}

heads and neurons of each stored layer, and the rank of factorised tables by their name inside the base model.
"""

from typing import Any

import torch
from torch import nn
from transformers import PretrainedConfig, PreTrainedModel

from lit_compress.errors import UserError
from lit_compress.models.heads_and_neurons import (
    KINDS,
    Groups,
    Kind,
    removable_groups,
    remove_from_layers,
    require_unpacked,
)
from lit_compress.models.layout import layout_of
from lit_compress.nn.factorized import FactorizedEmbedding, factorized_embeddings

__all__ = ["METHOD", "apply_shapes", "describe_shapes", "shapes_of", "update_config"]

# `quantization_config.quant_method` in config.json: whose entry it is.
METHOD = "lit_compress"

_WHERE = "config.json: quantization_config.shapes"


def describe_shapes(model: PreTrainedModel) -> dict[str, Any]:
    """What differs from the shapes that the model's configuration gives; empty when it is stock."""
    shapes: dict[str, Any] = {}
    for kind in KINDS:
        widths = [groups.count for groups in _groups(model, kind)]
        if any(width != _stock_width(model, kind) for width in widths):
            shapes[kind] = widths
    if ranks := {name: table.rank for name, table in factorized_embeddings(model.base_model)}:
        shapes["ranks"] = ranks
    return shapes


def apply_shapes(model: PreTrainedModel, shapes: Any) -> None:
    """Cut a model of stock shapes down to size, in place; the values are for loading.

    Nothing grows: a shape is refused unless it is inside what the stock configuration has, whoever wrote the file.

    Raises:
        UserError: not what :func:`describe_shapes` writes, or not for this model.

    """
    if not isinstance(shapes, dict) or (unknown := sorted(set(shapes) - {*KINDS, "ranks"})):
        wrong = unknown if isinstance(shapes, dict) else type(shapes).__name__
        raise UserError(f"{_WHERE}: {wrong} is unknown; it holds heads, neurons and ranks")
    for kind in KINDS:
        if kind in shapes:
            groups = removable_groups(model, kind, _WHERE)
            _check_widths(kind, shapes[kind], groups)
            # On the CPU also while Transformers builds a skeleton without values.
            selection = [
                (block, torch.arange(block.count, device="cpu") < width)
                for block, width in zip(groups, shapes[kind], strict=True)
                if width < block.count
            ]
            remove_from_layers(model, selection, f"{_WHERE}: {kind}")
    _apply_ranks(model, shapes.get("ranks", {}))


def shapes_of(config: PretrainedConfig) -> Any:
    """The shapes in a configuration; None when it has none of ours."""
    entry = getattr(config, "quantization_config", None)
    return entry.get("shapes") if isinstance(entry, dict) and entry.get("quant_method") == METHOD else None


def update_config(model: PreTrainedModel) -> None:
    """Make the configuration say which shapes the model has: in its own words where they suffice.

    Raises:
        UserError: it is packed, and its configuration says which linears are.

    """
    config: Any = model.config
    require_unpacked(model)
    widths = {groups.count for groups in _groups(model, "neurons")}
    if len(widths) == 1:
        setattr(config, layout_of(model).width_key, widths.pop())
    if shapes := describe_shapes(model):
        config.quantization_config = {"quant_method": METHOD, "shapes": shapes}
    elif shapes_of(config) is not None:
        del config.quantization_config


def _check_widths(kind: str, widths: Any, groups: list[Groups]) -> None:
    if not isinstance(widths, list) or len(widths) != len(groups):
        raise UserError(f"{_WHERE}: {kind} must be a list of {len(groups)} numbers, one of each layer")
    for number, (width, block) in enumerate(zip(widths, groups, strict=True)):
        if not _is_int(width) or not 1 <= width <= block.count:
            raise UserError(f"{_WHERE}: {kind} of layer {number} is {width!r} and must be from 1 to {block.count}")


def _apply_ranks(model: PreTrainedModel, ranks: Any) -> None:
    base = model.base_model
    if not isinstance(ranks, dict):
        raise UserError(f"{_WHERE}: ranks must be a mapping of names to numbers")
    if ranks and model.get_output_embeddings() is not None and getattr(model.config, "tie_word_embeddings", True):
        raise UserError(f"{_WHERE}: {type(model).__name__} ties its decoder to the word embedding, which is factorised")
    tables = {name: module for name, module in base.named_modules() if isinstance(module, nn.Embedding)}
    for name, rank in ranks.items():
        if name not in tables:
            raise UserError(f"{_WHERE}: {name!r} is not an embedding of {type(base).__name__}")
        most = min(tables[name].num_embeddings, tables[name].embedding_dim)
        if not _is_int(rank) or not 1 <= rank <= most:
            raise UserError(f"{_WHERE}: rank of {name!r} is {rank!r} and must be from 1 to {most}")
        base.set_submodule(name, FactorizedEmbedding.empty_like(tables[name], rank))


def _is_int(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _groups(model: PreTrainedModel, kind: Kind) -> list[Groups]:
    try:
        return removable_groups(model, kind)
    except UserError:  # nothing can have been removed from a family that does not allow it
        return []


def _stock_width(model: PreTrainedModel, kind: Kind) -> int:
    layout = layout_of(model)
    return getattr(model.config, layout.heads_key if kind == "heads" else layout.width_key)
