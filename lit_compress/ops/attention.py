"""Attention within sequences of different lengths that lie one behind the other, without padding."""

import torch
from torch import Tensor
from torch.nn import functional as F

from lit_compress.errors import UserError
from lit_compress.ops import reference
from lit_compress.ops.checks import require_eight_bits, require_relative
from lit_compress.ops.kernels_available import serves

__all__ = ["attention_varlen"]


def attention_varlen(
    qkv: Tensor,
    cu_seqlens: Tensor,
    max_seqlen: int,
    heads: int,
    scale: float,
    out_scale: Tensor | None = None,
    dtype: torch.dtype = torch.int8,
    bias: Tensor | None = None,
    positions: Tensor | None = None,
    window: int | None = None,
) -> Tensor:
    """``softmax(q @ k.T * scale + bias) @ v`` of every head, each token with the tokens of its own sequence.

    Rows behind the last sequence belong to none and are 0. A NaN or an infinity spoils its own sequence and no other;
    with ``out_scale`` it becomes 0 there.

    Args:
        qkv: ``(tokens, 3 * heads * head_dim)``: the queries of all heads, then the keys, then the values.
        cu_seqlens: int32 ``(sequences + 1,)``: the row where each sequence begins, and where the last one ends.
        max_seqlen: at least the length of the longest sequence.
        heads: number of heads; ``head_dim`` is at most 128 for the kernel.
        scale: of the scores, usually ``head_dim ** -0.5``.
        out_scale: fp32 ``(1,)``: the result is ``round(y / out_scale)``, saturating, NaN becomes 0.
        dtype: of the result with ``out_scale``; without effect otherwise.
        bias: fp32 ``(heads, 2 * reach + 1)``, what the scores of a head get for the distance of key and query:
            ``bias[head, position of key - position of query + reach]``. Beyond ``reach`` the outermost columns count.
        positions: int32 ``(tokens,)``, of each token in its sequence, ascending; None counts rows. They differ where
            padding lies between tokens. Only ``bias`` and ``window`` read them.
        window: a query sees only the keys at a distance of at most this many positions; None sees all.

    Returns:
        ``(tokens, heads * head_dim)``, in the type of ``qkv``, or 8-bit with ``out_scale``.

    Raises:
        UserError: columns that are not three times the heads, a bias for other heads, a negative window.

    Example:
        >>> qkv = torch.zeros(3, 3 * 16)
        >>> qkv[:, 32:] = torch.tensor([[1.0], [3.0], [7.0]])
        >>> attention_varlen(qkv, torch.tensor([0, 2, 3], dtype=torch.int32), 2, 1, 0.25)[:, 0].tolist()
        [2.0, 2.0, 7.0]

    """
    require_eight_bits(dtype)
    if qkv.shape[1] % (3 * heads):
        raise UserError(f"qkv: {qkv.shape[1]} columns for {heads} heads; there must be 3 * heads * head_dim")
    require_relative(heads, bias, window)
    return _attention_varlen(qkv, cu_seqlens, max_seqlen, heads, scale, out_scale, dtype, bias, positions, window)


@torch.library.custom_op("lit_compress::attention_varlen", mutates_args=())
def _attention_varlen(
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
) -> Tensor:
    return reference.attention_varlen(
        qkv, cu_seqlens, max_seqlen, heads, scale, out_scale, dtype, bias, positions, window
    )


@_attention_varlen.register_fake
def _(
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
) -> Tensor:
    return qkv.new_empty(qkv.shape[0], qkv.shape[1] // 3, dtype=qkv.dtype if out_scale is None else dtype)


@_attention_varlen.register_kernel("cuda")
@_attention_varlen.register_kernel("cpu")
def _(
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
) -> Tensor:
    if serves(qkv) and qkv.shape[1] // (3 * heads) <= 128:
        from lit_compress.ops.kernels.attention import attention_varlen as kernel

        return kernel(qkv, cu_seqlens, max_seqlen, heads, scale, out_scale, dtype, bias, positions, window)
    if not qkv.is_cpu:
        return reference.attention_varlen(
            qkv, cu_seqlens, max_seqlen, heads, scale, out_scale, dtype, bias, positions, window
        )
    out = _by_length(qkv, cu_seqlens, heads, scale, bias, positions, window)
    return out if out_scale is None else reference.round_to(out.float().mul_(out_scale.reciprocal()), dtype)


def _by_length(
    qkv: Tensor,
    cu_seqlens: Tensor,
    heads: int,
    scale: float,
    bias: Tensor | None,
    positions: Tensor | None,
    window: int | None,
) -> Tensor:
    """Sequences of the same length as one batch of torch's own attention, so that nothing is padded."""
    width = qkv.shape[1] // 3
    lengths = cu_seqlens.diff()
    out = qkv.new_zeros(qkv.shape[0], width)
    different = lengths.unique().tolist()
    for length in different:
        if not length:
            continue
        starts = cu_seqlens[:-1][lengths == length].long()
        rows = starts.unsqueeze(1) + torch.arange(length)
        added = None
        if bias is not None or window is not None:
            added = reference.added_scores(_places(rows, positions), bias, window).to(qkv.dtype)
        if len(different) == 1 and length * len(lengths) == len(qkv):
            return _batch(qkv, length, heads, scale, added)  # nothing to gather
        out[rows.flatten()] = _batch(qkv[rows.flatten()], length, heads, scale, added)
    return out


def _places(rows: Tensor, positions: Tensor | None) -> Tensor:
    """Positions of sequences ``(sequences, length)``; of one alone when the distances within all are the same."""
    count = torch.arange(rows.shape[1])
    if positions is None:
        return count.unsqueeze(0)
    found = positions[rows].long()
    return count.unsqueeze(0) if bool((found - found[:, :1] == count).all()) else found


def _batch(qkv: Tensor, length: int, heads: int, scale: float, added: Tensor | None) -> Tensor:
    q, k, v = qkv.reshape(-1, length, 3, heads, qkv.shape[1] // (3 * heads)).permute(2, 0, 3, 1, 4)
    context = F.scaled_dot_product_attention(q, k, v, attn_mask=added, scale=scale)
    return context.transpose(1, 2).reshape(qkv.shape[0], -1)
