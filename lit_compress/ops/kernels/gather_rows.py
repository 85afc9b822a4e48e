"""Rows by index, one program each; zeros where there is none."""

import torch
import triton
import triton.language as tl
from torch import Tensor

__all__ = ["gather_rows", "gather_rows_kernel"]

BLOCK = 1024


def gather_rows(x: Tensor, index: Tensor) -> Tensor:
    """See :func:`lit_compress.ops.gather_rows`."""
    x = x.contiguous()
    out = torch.empty(index.shape[0], x.shape[1], dtype=x.dtype, device=x.device)
    if out.numel():
        with torch.cuda.device_of(x):
            gather_rows_kernel[(index.shape[0], triton.cdiv(x.shape[1], BLOCK))](
                x, index.contiguous(), out, x.shape[1], BLOCK
            )
    return out


@triton.jit
def gather_rows_kernel(x, index, out, width, BLOCK: tl.constexpr):
    """Some columns of a row."""
    row = tl.program_id(0).to(tl.int64)
    column = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    source = tl.load(index + row).to(tl.int64)
    numbers = tl.load(x + source * width + column, mask=column < tl.where(source < 0, 0, width), other=0)
    tl.store(out + row * width + column, numbers, mask=column < width)
