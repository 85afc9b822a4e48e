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

    Made again when any of the tensors has been replaced or changed in place, and at each call for tensors that were
    made in inference mode, whose changes torch does not count. One through ``.data`` or a NumPy view goes unnoticed.
    """
    others = (w_scale, columns, offsets)
    tensors = [tensor for tensor in (values, *others) if tensor is not None]
    if any(tensor.is_inference() for tensor in tensors):
        return _made(values, w_scale, columns, offsets, inputs)
    state = (inputs, *((tensor.data_ptr(), tensor._version) for tensor in tensors))
    known = _weights.get(values)
    # The others are kept, too: a new one could have the address of one that is gone.
    if known is None or known[1] != state or any(a is not b for a, b in zip(known[0], others, strict=True)):
        known = _weights[values] = (others, state, _made(values, w_scale, columns, offsets, inputs))
    return known[2]


def _made(values: Tensor, w_scale: Tensor, columns: Tensor | None, offsets: Tensor | None, inputs: int) -> Tensor:
    with torch.inference_mode(False), torch.no_grad():
        return dense_values(values, columns, offsets, w_scale.shape[0], inputs) * w_scale.unsqueeze(1)
