"""Activation, gate and rounding of one row per program: read once, written once in 8 bit."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from lit_compress.ops.kernels.numbers import activate, round_to, row_scale
from lit_compress.ops.launch import row_launch

__all__ = ["gate_quantize", "gate_quantize_kernel"]


def gate_quantize(x: Tensor, activation: str, dtype: torch.dtype, out_scale: Tensor | None) -> tuple[Tensor, Tensor]:
    """See :func:`lit_compress.ops.gate_quantize`."""
    x = x.contiguous()
    rows, columns = x.shape[0], x.shape[1] // 2
    q = torch.empty(rows, columns, dtype=dtype, device=x.device)
    scale = torch.empty(rows, dtype=torch.float32, device=x.device)
    if rows:
        shape = row_launch(columns)
        with torch.cuda.device_of(x):
            gate_quantize_kernel[(rows,)](
                x, q, scale, out_scale, columns, activation, shape.block, num_warps=shape.warps
            )
    return q, scale


@triton.jit
def gate_quantize_kernel(x, q, scale, out_scale, columns, ACTIVATION: tl.constexpr, BLOCK: tl.constexpr):
    """A row."""
    row = tl.program_id(0).to(tl.int64)
    lane = tl.arange(0, BLOCK)
    inside = lane < columns
    numbers = tl.load(x + row * 2 * columns + lane, mask=inside, other=0.0).to(tl.float32)
    gates = tl.load(x + row * 2 * columns + columns + lane, mask=inside, other=0.0).to(tl.float32)
    numbers = activate(numbers, ACTIVATION, x.dtype.element_ty == tl.float32) * gates
    if out_scale is None:
        step, inverse = row_scale(numbers, q.dtype.element_ty)
    else:
        step = tl.load(out_scale)
        inverse = tl.div_rn(1.0, step)
    tl.store(q + row * columns + lane, round_to(numbers * inverse, q.dtype.element_ty), mask=inside)
    tl.store(scale + row, step)
