"""Weights that are stored as a bit per element and the elements that are not zero."""

import torch
from torch import Tensor

from lit_compress.ops import reference
from lit_compress.ops.kernel_choice import serves

__all__ = ["expand_bitmap"]


def expand_bitmap(bits: Tensor, values: Tensor, starts: Tensor, columns: int) -> Tensor:
    """The dense weight that a bitmap stands for; done once, when a model is loaded.

    Args:
        bits: uint8 ``(rows, ceil(columns / 8))``; bit ``j`` of byte ``b``, counted from the least significant, says
            whether column ``8 * b + j`` is stored.
        values: 8-bit ``(stored,)``, row after row.
        starts: int32 ``(rows + 1,)``: where each row begins in ``values``, and where the last one ends.
        columns: of the result.

    Returns:
        ``(rows, columns)``, in the type of ``values``.

    Example:
        >>> bits, starts = torch.tensor([[0b101], [0b010]], dtype=torch.uint8), torch.tensor([0, 2, 3])
        >>> expand_bitmap(bits, torch.tensor([7, 8, 9], dtype=torch.int8), starts.int(), 3).tolist()
        [[7, 0, 8], [0, 9, 0]]

    """
    return _expand_bitmap(bits, values, starts, columns)


@torch.library.custom_op("lit_compress::expand_bitmap", mutates_args=())
def _expand_bitmap(bits: Tensor, values: Tensor, starts: Tensor, columns: int) -> Tensor:
    return reference.expand_bitmap(bits, values, starts, columns)


@_expand_bitmap.register_fake
def _(bits: Tensor, values: Tensor, starts: Tensor, columns: int) -> Tensor:
    return values.new_empty(bits.shape[0], columns)


@_expand_bitmap.register_kernel("cuda")
@_expand_bitmap.register_kernel("cpu")
def _(bits: Tensor, values: Tensor, starts: Tensor, columns: int) -> Tensor:
    if serves(bits):
        from lit_compress.ops.kernels.expand_bitmap import expand_bitmap as kernel

        return kernel(bits, values, starts, columns)
    return reference.expand_bitmap(bits, values, starts, columns)
