"""One row per program, held in registers: read once, written once."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from lit_compress.ops.kernels.numbers import round_to, row_scale
from lit_compress.ops.launch import row_launch

__all__ = ["quantize_rows"]


def quantize_rows(x: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """See :func:`lit_compress.ops.quantize_rows`."""
    x = x.contiguous()
    rows, columns = x.shape
    q = torch.empty(rows, columns, dtype=dtype, device=x.device)
    scale = torch.empty(rows, dtype=torch.float32, device=x.device)
    if rows and columns:
        shape = row_launch(columns)
        with torch.cuda.device_of(x):
            quantize_rows_kernel[(rows,)](x, q, scale, columns, shape.block, num_warps=shape.warps)
    return q, scale.fill_(0) if not columns else scale


@triton.jit
def quantize_rows_kernel(x, q, scale, columns, BLOCK: tl.constexpr):
    """A row."""
    row = tl.program_id(0).to(tl.int64)
    lane = tl.arange(0, BLOCK)
    inside = lane < columns
    numbers = tl.load(x + row * columns + lane, mask=inside, other=0.0).to(tl.float32)
    step, inverse = row_scale(numbers, q.dtype.element_ty)
    tl.store(q + row * columns + lane, round_to(numbers * inverse, q.dtype.element_ty), mask=inside)
    tl.store(scale + row, step)
