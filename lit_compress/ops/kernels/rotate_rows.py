"""Rotary positions: queries and keys of a row turned, values copied; some columns of a row per program."""

import torch
import triton
import triton.language as tl
from torch import Tensor

__all__ = ["rotate_rows", "rotate_rows_kernel"]

BLOCK = 1024


def rotate_rows(qkv: Tensor, cos: Tensor, sin: Tensor, heads: int) -> Tensor:
    """See :func:`lit_compress.ops.rotate_rows`."""
    qkv = qkv.contiguous()
    out = torch.empty(qkv.shape, dtype=qkv.dtype, device=qkv.device)
    width = qkv.shape[1] // 3
    if out.numel():
        with torch.cuda.device_of(qkv):
            rotate_rows_kernel[(qkv.shape[0], triton.cdiv(3 * width, BLOCK))](
                qkv, cos.contiguous(), sin.contiguous(), out, width, width // heads, BLOCK
            )
    return out


@triton.jit
def rotate_rows_kernel(qkv, cos, sin, out, width, HEAD: tl.constexpr, BLOCK: tl.constexpr):
    """Some columns of a row."""
    row = tl.program_id(0).to(tl.int64)
    column = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = column < 3 * width
    turned = column < 2 * width
    d = column % HEAD
    lower = d < HEAD // 2
    rows = qkv + row * 3 * width
    x = tl.load(rows + column, mask=inside, other=0.0)
    half = tl.load(rows + tl.where(lower, column + HEAD // 2, column - HEAD // 2), mask=turned, other=0.0)
    half = tl.where(lower, -half.to(tl.float32), half.to(tl.float32))
    c = tl.load(cos + row * HEAD + d, mask=turned, other=1.0).to(tl.float32)
    s = tl.load(sin + row * HEAD + d, mask=turned, other=0.0).to(tl.float32)
    y = tl.where(turned, x.to(tl.float32) * c + half * s, x.to(tl.float32))
    tl.store(out + row * 3 * width + column, y.to(out.dtype.element_ty), mask=inside)
