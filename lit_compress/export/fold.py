"""Training form to plain model."""

import copy

from torch import nn

from lit_compress.nn.surgery import compressible_layers

__all__ = ["fold"]


def fold(model: nn.Module) -> nn.Module:
    """A copy of ``model`` in which every compressible layer is an ``nn.Linear`` with its effective weight.

    Weights are exact: pruned ones are 0, quantized ones lie on their grid. Input quantizers have no place in a plain
    model and are left out; their ranges are in :func:`lit_compress.export.hf.quantization_scales`. Without them the
    logits of both forms are equal, bit for bit.
    """
    folded = copy.deepcopy(model)
    for name, layer in list(compressible_layers(folded)):
        folded.set_submodule(name, layer.to_linear())
    return folded
