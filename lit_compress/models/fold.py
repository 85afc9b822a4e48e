"""Training form to plain model."""

import copy
from collections.abc import Mapping

from torch import nn
from transformers import PreTrainedModel

from lit_compress.models.drop_layers import drop_closed_layers
from lit_compress.models.heads_and_neurons import remove_pruned
from lit_compress.models.manifest_file import manifest_with_scales, quantized_weights
from lit_compress.models.shapes import update_config
from lit_compress.nn.attention import restore_attention
from lit_compress.nn.factorized import factorized_embeddings
from lit_compress.nn.gates import gated_layers
from lit_compress.nn.manifest import Manifest
from lit_compress.nn.replace_layers import compressible_layers, compressible_tables
from lit_compress.storage.weight import QuantizedWeight

__all__ = ["fold", "fold_in_place"]


def fold(model: nn.Module) -> nn.Module:
    """A copy of ``model`` in which every compressible layer or table is a plain one with its effective weight.

    Weights are exact: pruned ones are 0, quantized ones are rounded. Layers whose gate is closed are removed.
    Quantizers of inputs, outputs and attention have no place in a plain model and are left out; their ranges are in
    :func:`lit_compress.models.manifest_file.manifest_with_scales`. Without them the logits of both forms are equal, bit
    for bit, as long as nothing is cut out of a layer; pruned heads, neurons and columns of factorised embeddings are,
    and then sums are shorter and logits differ by rounding (about 1e-6 of their size in fp32).
    """
    model = copy.deepcopy(model)
    _shrink(model)
    _make_plain(model, {})
    return model


def fold_in_place(model: nn.Module) -> tuple[Manifest, dict[str, QuantizedWeight]]:
    """Fold the model itself; a weight at a time is in memory twice.

    Returns:
        The manifest with scales, and the integers of what is quantized, by module name: a plain layer has neither.

    """
    _shrink(model)  # scales and sparsity are those of what is left
    weights = quantized_weights(model)  # while there are quantizers to ask
    manifest = manifest_with_scales(model, weights)
    _make_plain(model, weights)
    return manifest, weights


def _shrink(model: nn.Module) -> None:
    """Cut out what is pruned as a whole; the model stays in its training form, and its configuration says so."""
    if isinstance(model, PreTrainedModel) and any(gated_layers(model)):
        drop_closed_layers(model)
    remove_pruned(model)
    for _, table in factorized_embeddings(model):
        table.to_rank(table.kept_rank())
    if isinstance(model, PreTrainedModel):
        update_config(model)


def _make_plain(model: nn.Module, weights: Mapping[str, QuantizedWeight]) -> None:
    for name, layer in list(compressible_layers(model)):
        model.set_submodule(name, layer.to_linear(weights.get(name)))
    for name, table in list(compressible_tables(model)):
        model.set_submodule(name, table.to_embedding())
    restore_attention(model)
