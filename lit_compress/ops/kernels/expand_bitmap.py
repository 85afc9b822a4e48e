"""One row of a bitmap per program; the bits before a column, counted, say where its value is."""

import torch
import triton
import triton.language as tl
from torch import Tensor

__all__ = ["expand_bitmap", "kernel"]

BLOCK = 1024


def expand_bitmap(bits: Tensor, values: Tensor, starts: Tensor, columns: int) -> Tensor:
    """See :func:`lit_compress.ops.expand_bitmap`."""
    bits = bits.contiguous()
    out = torch.empty(bits.shape[0], columns, dtype=values.dtype, device=values.device)
    if out.numel():
        with torch.cuda.device_of(bits):
            # As bytes: they are moved, not computed with.
            kernel[(bits.shape[0],)](
                bits, values.contiguous().view(torch.int8), starts.contiguous(), out.view(torch.int8),
                bits.shape[1], columns, BLOCK,
            )  # fmt: skip
    return out


@triton.jit
def kernel(bits, values, starts, out, row_bytes, columns, BLOCK: tl.constexpr):
    """A row."""
    row = tl.program_id(0).to(tl.int64)
    before = tl.load(starts + row)
    for first in range(0, columns, BLOCK):
        column = first + tl.arange(0, BLOCK)
        inside = column < columns
        byte = tl.load(bits + row * row_bytes + column // 8, mask=inside, other=0).to(tl.int32)
        present = (byte >> (column % 8)) & 1
        place = before + tl.cumsum(present, 0) - 1
        value = tl.load(values + place, mask=present != 0, other=0)
        tl.store(out + row * columns + column, value, mask=inside)
        before += tl.sum(present, 0)
