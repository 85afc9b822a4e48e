"""Attention of one head and one block of queries per program, keys and values passing by: scores are never stored."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from lit_compress.ops.kernels.numbers import round_to
from lit_compress.ops.launch import attention_launch

__all__ = ["attention_varlen", "attention_varlen_kernel"]


def attention_varlen(
    qkv: Tensor,
    cu_seqlens: Tensor,
    max_seqlen: int,
    heads: int,
    scale: float,
    out_scale: Tensor | None,
    dtype: torch.dtype,
    bias: Tensor | None = None,
    positions: Tensor | None = None,
    window: int | None = None,
    columns: Tensor | None = None,
    by_query: Tensor | None = None,
    by_key: Tensor | None = None,
) -> Tensor:
    """See :func:`lit_compress.ops.attention_varlen`; the last three: :func:`lit_compress.ops.attention_relative`."""
    qkv = qkv.contiguous()
    tokens, width = qkv.shape[0], qkv.shape[1] // 3
    head_dim = width // heads
    out = torch.empty(tokens, width, dtype=qkv.dtype if out_scale is None else dtype, device=qkv.device)
    if not tokens:
        return out
    launch = attention_launch(max_seqlen, head_dim, qkv.element_size(), qkv.device)
    found = by_query if by_key is None else by_key
    by_distance = columns if bias is None else bias
    reach = 0 if by_distance is None else by_distance.shape[-1] // 2
    # One more sequence than there are: rows that belong to none.
    grid = (triton.cdiv(max(max_seqlen, 1), launch.block_m), heads, cu_seqlens.shape[0])
    with torch.cuda.device_of(qkv):
        attention_varlen_kernel[grid](
            qkv, cu_seqlens.contiguous(), out, out_scale,
            None if bias is None else bias.float().contiguous(),
            None if positions is None else positions.contiguous(),
            None if columns is None else columns.contiguous(),
            None if by_query is None else by_query.contiguous(),
            None if by_key is None else by_key.contiguous(),
            tokens, heads, scale * 1.4426950408889634, reach, window, 0 if found is None else found.shape[2],
            head_dim, launch.block_d, launch.block_m, launch.block_n,
            num_warps=launch.warps, num_stages=launch.stages,
        )  # fmt: skip
    return out


@triton.jit(do_not_specialize=["tokens"])
def attention_varlen_kernel(
    qkv, cu_seqlens, out, out_scale, bias, positions, columns, by_query, by_key,
    tokens, heads, log2_scale, reach, window, found,
    HEAD: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    """``BLOCK_M`` queries of a head of a sequence."""
    block = tl.program_id(0)
    head = tl.program_id(1)
    sequence = tl.program_id(2)
    width = heads * HEAD
    d = tl.arange(0, BLOCK_D)
    m = block * BLOCK_M + tl.arange(0, BLOCK_M)
    start = tl.load(cu_seqlens + sequence)
    if sequence == tl.num_programs(2) - 1:
        for row in range(start + block * BLOCK_M, tokens, tl.num_programs(0) * BLOCK_M):
            left = row + tl.arange(0, BLOCK_M)
            at = left.to(tl.int64)[:, None] * width + head * HEAD + d[None, :]
            zero = tl.zeros((BLOCK_M, BLOCK_D), tl.float32).to(out.dtype.element_ty)
            tl.store(out + at, zero, mask=(left[:, None] < tokens) & (d[None, :] < HEAD))
    else:
        length = tl.load(cu_seqlens + sequence + 1) - start
        if block * BLOCK_M < length:
            # The scores' dot rounds fp32 to fewer bits unless told not to.
            precision: tl.constexpr = "ieee" if qkv.dtype.element_ty == tl.float32 else "tf32"
            rows = qkv + start.to(tl.int64) * 3 * width + head * HEAD
            q_mask = (m[:, None] < length) & (d[None, :] < HEAD)
            q = tl.load(rows + m[:, None] * (3 * width) + d[None, :], mask=q_mask, other=0.0)
            top = tl.full((BLOCK_M,), float("-inf"), tl.float32)
            weight = tl.zeros((BLOCK_M,), tl.float32)
            total = tl.zeros((BLOCK_M, BLOCK_D), tl.float32)
            first, end = _keys(block, length, window, BLOCK_M, BLOCK_N)
            place_m = _places(positions, start, m, length)
            for key in range(first, end, BLOCK_N):
                n = key + tl.arange(0, BLOCK_N)
                at = rows + n[:, None] * (3 * width) + d[None, :]
                mask = (n[:, None] < length) & (d[None, :] < HEAD)
                k = tl.load(at + width, mask=mask, other=0.0)
                v = tl.load(at + 2 * width, mask=mask, other=0.0)
                score = tl.dot(q, tl.trans(k), input_precision=precision) * log2_scale
                seen = n[None, :] < length
                if bias is not None or window is not None or columns is not None:
                    distance = _places(positions, start, n, length)[None, :] - place_m[:, None]
                    if columns is not None:
                        column = tl.load(columns + tl.minimum(tl.maximum(distance, -reach), reach) + reach)
                        skipped = (head.to(tl.int64) * tokens + start) * found
                        inside = seen & (m[:, None] < length)
                        score += _selected(by_query, skipped + m[:, None] * found + column, inside) * log2_scale
                        score += _selected(by_key, skipped + n[None, :] * found + column, inside) * log2_scale
                    score, seen = _by_distance(score, seen, distance, bias, head, reach, window)
                score = tl.where(seen, score, float("-inf"))
                higher = tl.maximum(top, tl.max(score, 1))
                # A query may have seen no key of its window yet: the difference of two infinities would be NaN.
                taken = higher if window is None else tl.where(higher == float("-inf"), 0.0, higher)
                p = tl.exp2(score - taken[:, None])
                shrink = tl.exp2(top - taken)
                weight = weight * shrink + tl.sum(p, 1)
                total = tl.dot(p.to(v.dtype), v, total * shrink[:, None], input_precision=precision)
                top = higher
            y = total / weight[:, None]
            if out_scale is not None:
                y = round_to(y * tl.div_rn(1.0, tl.load(out_scale)), out.dtype.element_ty)
            place = out + (start + m).to(tl.int64)[:, None] * width + head * HEAD + d[None, :]
            tl.store(place, y.to(out.dtype.element_ty), mask=q_mask)


@triton.jit
def _keys(block, length, window, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr):
    """The first key and the one behind the last that a block of queries sees."""
    first = 0
    end = length
    if window is not None:
        # Between two rows there are no fewer positions than rows.
        first = tl.maximum(block * BLOCK_M - window, 0) // BLOCK_N * BLOCK_N
        end = tl.minimum(length, (block + 1) * BLOCK_M + window)
    return first, end


@triton.jit
def _places(positions, start, rows, length):
    """Positions of some rows of a sequence."""
    places = rows
    if positions is not None:
        places = tl.load(positions + start + rows, mask=rows < length, other=0)
    return places


@triton.jit
def _selected(table, at, inside):
    """Numbers of a table; nothing of none."""
    found = 0.0
    if table is not None:
        found = tl.load(table + at, mask=inside, other=0.0).to(tl.float32)
    return found


@triton.jit
def _by_distance(score, seen, distance, bias, head, reach, window):
    """Scores with what their distance adds, and which of them are seen."""
    if bias is not None:
        column = tl.minimum(tl.maximum(distance, -reach), reach) + reach
        score += tl.load(bias + head * (2 * reach + 1) + column) * 1.4426950408889634
    if window is not None:
        seen = seen & (tl.abs(distance) <= window)
    return score, seen
