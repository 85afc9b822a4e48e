"""Training form to plain model."""

import copy

from torch import nn

from lit_compress.nn.attention import restore_attention
from lit_compress.nn.surgery import compressible_layers, compressible_tables

__all__ = ["fold"]


def fold(model: nn.Module) -> nn.Module:
    """A copy of ``model`` in which every compressible layer or table is a plain one with its effective weight.

    Weights are exact: pruned ones are 0, quantized ones lie on their grid. Quantizers of inputs, outputs and attention
    have no place in a plain model and are left out; their ranges are in
    :func:`lit_compress.export.hf.quantization_scales`. Without them the logits of both forms are equal, bit for bit.
    """
    folded = copy.deepcopy(model)
    for name, layer in list(compressible_layers(folded)):
        folded.set_submodule(name, layer.to_linear())
    for name, table in list(compressible_tables(folded)):
        folded.set_submodule(name, table.to_embedding())
    restore_attention(folded)
    return folded
