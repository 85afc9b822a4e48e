"""Residual, LayerNorm and rounding of one row per program: two reads, three writes, nothing in between."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from lit_compress.ops.kernels.numbers import round_to, row_scale
from lit_compress.ops.launch import row_launch

__all__ = ["layernorm_quantize"]


def layernorm_quantize(
    x: Tensor, residual: Tensor | None, weight: Tensor, bias: Tensor | None, eps: float, dtype: torch.dtype
) -> tuple[Tensor, Tensor, Tensor]:
    """See :func:`lit_compress.ops.layernorm_quantize`."""
    x = x.contiguous()
    residual = None if residual is None else residual.contiguous()
    bias = None if bias is None else bias.contiguous()
    rows, columns = x.shape
    y = torch.empty(rows, columns, dtype=x.dtype, device=x.device)
    q = torch.empty(rows, columns, dtype=dtype, device=x.device)
    scale = torch.empty(rows, dtype=torch.float32, device=x.device)
    if rows:
        shape = row_launch(columns)
        with torch.cuda.device_of(x):
            layernorm_quantize_kernel[(rows,)](
                x, residual, weight.contiguous(), bias, y, q, scale, columns, eps, shape.block,
                num_warps=shape.warps,
            )  # fmt: skip
    return y, q, scale


@triton.jit
def layernorm_quantize_kernel(x, residual, weight, bias, y, q, scale, columns, eps, BLOCK: tl.constexpr):
    """A row."""
    row = tl.program_id(0).to(tl.int64)
    lane = tl.arange(0, BLOCK)
    inside = lane < columns
    total = tl.load(x + row * columns + lane, mask=inside, other=0.0).to(tl.float32)
    if residual is not None:
        total += tl.load(residual + row * columns + lane, mask=inside, other=0.0).to(tl.float32)
    # Two passes over registers: the difference of two large sums would lose what is left of fp32.
    centered = tl.where(inside, total - tl.sum(total, 0) / columns, 0.0)
    deviation = tl.sqrt_rn(tl.sum(centered * centered, 0) / columns + eps)
    gain = tl.load(weight + lane, mask=inside, other=0.0).to(tl.float32)
    normal = centered * tl.div_rn(1.0, deviation) * gain
    if bias is not None:
        normal += tl.load(bias + lane, mask=inside, other=0.0).to(tl.float32)
    tl.store(y + row * columns + lane, normal.to(y.dtype.element_ty), mask=inside)
    step, inverse = row_scale(normal, q.dtype.element_ty)
    tl.store(q + row * columns + lane, round_to(normal * inverse, q.dtype.element_ty), mask=inside)
    tl.store(scale + row, step)
