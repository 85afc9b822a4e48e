"""Disentangled attention within sequences of different lengths: scores that the distance of two tokens adds to."""

from typing import Any

import torch
from torch import Tensor

from lit_compress.errors import UserError
from lit_compress.ops import reference
from lit_compress.ops.checks import require_eight_bits
from lit_compress.ops.kernels_available import serves

__all__ = ["attention_relative"]


def attention_relative(
    qkv: Tensor,
    cu_seqlens: Tensor,
    max_seqlen: int,
    heads: int,
    scale: float,
    columns: Tensor,
    by_query: Tensor | None = None,
    by_key: Tensor | None = None,
    positions: Tensor | None = None,
    out_scale: Tensor | None = None,
    dtype: torch.dtype = torch.int8,
) -> Tensor:
    """``softmax((q @ k.T + c2p + p2c) * scale) @ v`` of every head (DeBERTa, arXiv:2006.03654, equation 4).

    Token ``n`` at the distance ``d``, its position less that of token ``m``, adds to the score of ``m`` what
    ``c = columns[d + reach]`` selects: ``c2p = by_query[head, m, c]`` and ``p2c = by_key[head, n, c]``. These two are
    products of queries with the keys of positions, and of keys with the queries of positions.

    Args:
        qkv: as of :func:`lit_compress.ops.attention_varlen`.
        cu_seqlens: as of :func:`lit_compress.ops.attention_varlen`.
        max_seqlen: as of :func:`lit_compress.ops.attention_varlen`.
        heads: as of :func:`lit_compress.ops.attention_varlen`.
        scale: of all scores.
        columns: int32 ``(2 * reach + 1,)``; beyond ``reach`` the outermost ones count.
        by_query: ``(heads, tokens, width)``, above every column; None adds nothing.
        by_key: ``(heads, tokens, width)``, above every column; None adds nothing.
        positions: as of :func:`lit_compress.ops.attention_varlen`.
        out_scale: as of :func:`lit_compress.ops.attention_varlen`.
        dtype: as of :func:`lit_compress.ops.attention_varlen`.

    Returns:
        ``(tokens, heads * head_dim)``, in the type of ``qkv``, or 8-bit with ``out_scale``.

    Raises:
        UserError: shapes that do not fit.

    Example:
        >>> qkv = torch.zeros(2, 3 * 16)
        >>> qkv[:, 32:] = torch.tensor([[1.0], [3.0]])
        >>> only_the_next = torch.tensor([[[0.0, 99.0], [99.0, 0.0]]])
        >>> starts, columns = torch.tensor([0, 2], dtype=torch.int32), torch.tensor([0, 0, 1], dtype=torch.int32)
        >>> attention_relative(qkv, starts, 2, 1, 1.0, columns, only_the_next)[:, 0].tolist()
        [3.0, 2.0]

    """
    require_eight_bits(dtype)
    if qkv.shape[1] % (3 * heads):
        raise UserError(f"qkv: {qkv.shape[1]} columns for {heads} heads; there must be 3 * heads * head_dim")
    if columns.ndim != 1 or columns.shape[0] % 2 == 0:
        raise UserError(f"columns: shape {tuple(columns.shape)} must be (2 * reach + 1,)")
    tables = [table for table in (by_query, by_key) if table is not None]
    if any(table.shape != (heads, qkv.shape[0], tables[0].shape[-1]) for table in tables):
        raise UserError(
            f"by_query, by_key: shapes {[tuple(table.shape) for table in tables]} for {heads} heads and "
            f"{qkv.shape[0]} tokens; they must be alike, (heads, tokens, width)"
        )
    return _attention_relative(
        qkv, cu_seqlens, max_seqlen, heads, scale, columns, by_query, by_key, positions, out_scale, dtype
    )


@torch.library.custom_op("lit_compress::attention_relative", mutates_args=())
def _attention_relative(
    qkv: Tensor,
    cu_seqlens: Tensor,
    max_seqlen: int,
    heads: int,
    scale: float,
    columns: Tensor,
    by_query: Tensor | None,
    by_key: Tensor | None,
    positions: Tensor | None,
    out_scale: Tensor | None,
    dtype: torch.dtype,
) -> Tensor:
    if serves(qkv) and qkv.shape[1] // (3 * heads) <= 128:
        from lit_compress.ops.kernels.attention import attention_varlen as kernel

        distances = (None, positions, None, columns, by_query, by_key)
        return kernel(qkv, cu_seqlens, max_seqlen, heads, scale, out_scale, dtype, *distances)
    return reference.attention_relative(
        qkv, cu_seqlens, max_seqlen, heads, scale, columns, by_query, by_key, positions, out_scale, dtype
    )


@_attention_relative.register_fake
def _(qkv: Tensor, *given: Any) -> Tensor:
    *_, out_scale, dtype = given
    return qkv.new_empty(qkv.shape[0], qkv.shape[1] // 3, dtype=qkv.dtype if out_scale is None else dtype)
