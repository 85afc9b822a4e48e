"""The dequantized weight of a packed linear, kept as long as the packed one lives: how CPUs multiply.

A CPU has no fast product of 8-bit numbers unless it is a recent one, but always one of fp32. So the weight is unpacked
at its first use and kept with the packed one, four bytes per element.
"""

import torch
from torch import Tensor
from torch.utils.weak import WeakIdKeyDictionary

from lit_compress.ops.reference import dense_values

__all__ = ["dequantized"]

# By identity and weakly: a weight that nobody uses any more takes its entry along.
_weights: WeakIdKeyDictionary = WeakIdKeyDictionary()


def dequantized(values: Tensor, w_scale: Tensor, columns: Tensor | None, offsets: Tensor | None, inputs: int) -> Tensor:
    """The fp32 weight ``(out_features, inputs)`` that packed values stand for.

    Made again when any of the tensors has been replaced or changed in place. A change that torch does not count
    (through ``.data`` or a NumPy view) goes unnoticed.
    """
    state = tuple(_state(tensor) for tensor in (values, w_scale, columns, offsets))
    known = _weights.get(values)
    if known is None or known[0] != state:
        with torch.inference_mode(False), torch.no_grad():
            weight = dense_values(values, columns, offsets, w_scale.shape[0], inputs) * w_scale.unsqueeze(1)
        known = _weights[values] = (state, weight)
    return known[1]


def _state(tensor: Tensor | None) -> tuple[int, int] | None:
    if tensor is None:
        return None
    # Tensors made in inference mode count no versions.
    return tensor.data_ptr(), -1 if tensor.is_inference() else tensor._version
