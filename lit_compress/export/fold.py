"""Training form to plain model."""

import copy
from collections.abc import Mapping

from torch import nn
from transformers import PreTrainedModel

from lit_compress.models.groups import remove_pruned
from lit_compress.models.shapes import update_config
from lit_compress.models.shrink import drop_closed_layers
from lit_compress.nn.attention import restore_attention
from lit_compress.nn.factorized import factorized_embeddings
from lit_compress.nn.gates import gated_layers
from lit_compress.nn.surgery import compressible_layers, compressible_tables
from lit_compress.storage.weight import QuantizedWeight

__all__ = ["fold", "fold_in_place", "shrink_in_place", "shrunk"]


def fold(model: nn.Module) -> nn.Module:
    """A copy of ``model`` in which every compressible layer or table is a plain one with its effective weight.

    Weights are exact: pruned ones are 0, quantized ones lie on their grid. Layers whose gate is closed are removed.
    Quantizers of inputs, outputs and attention have no place in a plain model and are left out; their ranges are in
    :func:`lit_compress.export.manifest_file.quantization_scales`. Without them the logits of both forms are equal, bit
    for bit, as long as nothing is cut out of a layer; pruned heads, neurons and columns of factorised embeddings are,
    and then sums are shorter and logits differ by rounding (about 1e-6 of their size in fp32).
    """
    return fold_in_place(shrunk(model))


def fold_in_place(model: nn.Module, weights: Mapping[str, QuantizedWeight] | None = None) -> nn.Module:
    """The model of :func:`shrunk` itself, with plain layers and tables; a weight at a time is in memory twice.

    Args:
        model: changed in place.
        weights: integers of its layers, by name, where they are known already.

    """
    for name, layer in list(compressible_layers(model)):
        model.set_submodule(name, layer.to_linear((weights or {}).get(name)))
    for name, table in list(compressible_tables(model)):
        model.set_submodule(name, table.to_embedding())
    restore_attention(model)
    return model


def shrunk(model: nn.Module) -> nn.Module:
    """A copy of ``model`` without what is pruned as a whole, still in its training form; its configuration says so."""
    return shrink_in_place(copy.deepcopy(model))


def shrink_in_place(model: nn.Module) -> nn.Module:
    """The model itself, as a copy of it is in :func:`shrunk`."""
    if isinstance(model, PreTrainedModel) and any(gated_layers(model)):
        drop_closed_layers(model)
    remove_pruned(model)
    for _, table in factorized_embeddings(model):
        table.to_rank(table.kept_rank())
    if isinstance(model, PreTrainedModel):
        update_config(model)
    return model
