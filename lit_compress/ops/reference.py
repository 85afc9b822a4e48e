"""Every operator in plain PyTorch: the specification that kernels are tested against, and what other devices run.

Same names and arguments as in :mod:`lit_compress.ops`, whose docstrings say what is computed. Here nothing is fast.

8-bit numbers are ``torch.int8`` (symmetric, -127..127) or ``torch.float8_e4m3fn`` (largest 448, saturating).
"""

from itertools import pairwise

import torch
from torch import Tensor
from torch.nn import functional as F

__all__ = [
    "MIN_SCALE",
    "activate",
    "added_scores",
    "attention_relative",
    "attention_varlen",
    "dense_values",
    "dynamic_linear",
    "gate_quantize",
    "gather_rows",
    "largest",
    "layernorm_quantize",
    "quantize_rows",
    "quantized_linear",
    "rotate_rows",
    "round_to",
]

# A row of zeros would give a scale of zero and a division by it; the reciprocal of this one is finite in fp32.
MIN_SCALE = torch.finfo(torch.float32).tiny * 2**24


def largest(dtype: torch.dtype) -> float:
    """Largest number of an 8-bit type: 127 for int8, 448 for float8_e4m3fn.

    Example:
        >>> largest(torch.int8), largest(torch.float8_e4m3fn)
        (127.0, 448.0)

    """
    return 127.0 if dtype == torch.int8 else torch.finfo(dtype).max


def round_to(x: Tensor, dtype: torch.dtype) -> Tensor:
    """fp32 numbers to 8 bit: halves to even, saturating, NaN becomes 0.

    Example:
        >>> round_to(torch.tensor([0.5, 1.5, -1000.0, float("nan")]), torch.int8).tolist()
        [0, 2, -127, 0]

    """
    top = largest(dtype)
    x = x.nan_to_num(nan=0.0, posinf=top, neginf=-top).clamp(-top, top)
    return (x if dtype.is_floating_point else x.round()).to(dtype)


def activate(x: Tensor, activation: str) -> Tensor:
    """``"none"``, ``"relu"``, ``"gelu"`` (error function) or ``"gelu_tanh"`` of ``x``."""
    if activation == "relu":
        return F.relu(x)
    if activation == "none":
        return x
    return F.gelu(x, approximate="tanh" if activation == "gelu_tanh" else "none")


def quantize_rows(x: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """See :func:`lit_compress.ops.quantize_rows`."""
    x = x.float()
    top = x.abs().amax(1)
    scale = (top / largest(dtype)).clamp_min(MIN_SCALE)
    scale = scale.where(top.isfinite(), torch.nan)
    return round_to(x * scale.reciprocal().unsqueeze(1), dtype), scale


def gate_quantize(x: Tensor, activation: str, dtype: torch.dtype, out_scale: Tensor | None) -> tuple[Tensor, Tensor]:
    """See :func:`lit_compress.ops.gate_quantize`."""
    numbers, gates = x.float().chunk(2, dim=1)
    y = activate(numbers, activation) * gates
    if out_scale is None:
        return quantize_rows(y, dtype)
    return round_to(y * out_scale.reciprocal(), dtype), out_scale.expand(x.shape[0]).clone()


def layernorm_quantize(
    x: Tensor, residual: Tensor | None, weight: Tensor, bias: Tensor | None, eps: float, dtype: torch.dtype
) -> tuple[Tensor, Tensor, Tensor]:
    """See :func:`lit_compress.ops.layernorm_quantize`."""
    total = x.float() if residual is None else x.float() + residual.float()
    y = F.layer_norm(total, (x.shape[1],), weight.float(), None if bias is None else bias.float(), eps)
    return y.to(x.dtype), *quantize_rows(y, dtype)


def quantized_linear(
    q: Tensor,
    q_scale: Tensor,
    values: Tensor,
    w_scale: Tensor,
    columns: Tensor | None,
    offsets: Tensor | None,
    bias: Tensor | None,
    residual: Tensor | None,
    activation: str,
    out_dtype: torch.dtype,
    out_scale: Tensor | None,
) -> Tensor:
    """See :func:`lit_compress.ops.quantized_linear`."""
    weight = dense_values(values, columns, offsets, w_scale.shape[0], q.shape[1])
    # Exact for int8, whatever the order of summation: 2^53 holds the sum of 5 * 10^11 products.
    total = (q.double() @ weight.double().T).float()
    y = total * q_scale.unsqueeze(1) * w_scale
    y = activate(y if bias is None else y + bias.float(), activation)
    if residual is not None:
        y = y + residual.float()
    return y.to(out_dtype) if out_scale is None else round_to(y * out_scale.reciprocal(), q.dtype)


def dense_values(values: Tensor, columns: Tensor | None, offsets: Tensor | None, outputs: int, inputs: int) -> Tensor:
    """The 8-bit weight of :func:`quantized_linear` without its packing: fp32 ``(outputs, inputs)``, not yet scaled."""
    if columns is None or offsets is None:
        return values.float()
    chunks, rows, chunk = values.shape
    blocks = columns.shape[1]
    width = chunk // blocks
    tiles = offsets.shape[0] - 1
    tile = torch.repeat_interleave(offsets.diff(), output_size=chunks)
    weight = torch.zeros(tiles, inputs // width, rows, width, device=values.device)
    # Added, not assigned: a tile is filled up with blocks of zeros at column 0, where a real block may be.
    weight.index_put_(
        (tile.unsqueeze(1), columns[:chunks].long()),
        values.float().reshape(chunks, rows, blocks, width).transpose(1, 2),
        accumulate=True,
    )
    return weight.transpose(1, 2).reshape(tiles * rows, inputs)[:outputs]


def dynamic_linear(
    x: Tensor, values: Tensor, w_scale: Tensor, columns: Tensor | None, offsets: Tensor | None, bias: Tensor | None
) -> Tensor:
    """See :func:`lit_compress.ops.dynamic_linear`."""
    q, scale = quantize_rows(x.reshape(-1, x.shape[-1]), values.dtype)
    y = quantized_linear(q, scale, values, w_scale, columns, offsets, bias, None, "none", x.dtype, None)
    return y.reshape(*x.shape[:-1], w_scale.shape[0])


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
) -> Tensor:
    """See :func:`lit_compress.ops.attention_varlen`."""
    tokens, width = qkv.shape[0], qkv.shape[1] // 3
    out = torch.zeros(tokens, width, dtype=torch.float32, device=qkv.device)
    starts = cu_seqlens.tolist()
    places = torch.arange(tokens, device=qkv.device) if positions is None else positions.long()
    for start, end in pairwise(starts):
        q, k, v = qkv[start:end].float().reshape(end - start, 3, heads, width // heads).permute(1, 2, 0, 3)
        score = q @ k.transpose(1, 2) * scale + added_scores(places[start:end], bias, window)
        out[start:end] = (torch.softmax(score, -1) @ v).transpose(0, 1).reshape(end - start, width)
    return out.to(qkv.dtype) if out_scale is None else round_to(out * out_scale.reciprocal(), dtype)


def attention_relative(
    qkv: Tensor,
    cu_seqlens: Tensor,
    max_seqlen: int,
    heads: int,
    scale: float,
    columns: Tensor,
    by_query: Tensor | None,
    by_key: Tensor | None,
    positions: Tensor | None = None,
    out_scale: Tensor | None = None,
    dtype: torch.dtype = torch.int8,
) -> Tensor:
    """See :func:`lit_compress.ops.attention_relative`."""
    tokens, width = qkv.shape[0], qkv.shape[1] // 3
    out = torch.zeros(tokens, width, dtype=torch.float32, device=qkv.device)
    places = torch.arange(tokens, device=qkv.device) if positions is None else positions.long()
    reach = columns.shape[0] // 2
    for start, end in pairwise(cu_seqlens.tolist()):
        q, k, v = qkv[start:end].float().reshape(end - start, 3, heads, width // heads).permute(1, 2, 0, 3)
        mine = places[start:end]
        column = columns.long()[(mine - mine.unsqueeze(1)).clamp(-reach, reach) + reach].expand(heads, -1, -1)
        score = q @ k.transpose(1, 2)
        if by_query is not None:
            score = score + by_query[:, start:end].float().gather(2, column)
        if by_key is not None:
            score = score + by_key[:, start:end].float().gather(2, column.transpose(1, 2)).transpose(1, 2)
        context = torch.softmax(score * scale, -1) @ v
        out[start:end] = context.transpose(0, 1).reshape(end - start, width)
    return out.to(qkv.dtype) if out_scale is None else round_to(out * out_scale.reciprocal(), dtype)


def added_scores(positions: Tensor, bias: Tensor | None, window: int | None) -> Tensor:
    """What the distance of two tokens adds to their score: the bias, and minus infinity outside the window.

    Args:
        positions: ``(..., tokens)``, int64.
        bias: as of :func:`lit_compress.ops.attention_varlen`.
        window: as of :func:`lit_compress.ops.attention_varlen`.

    Returns:
        fp32 ``(..., heads, queries, keys)``, with 1 for the heads without a bias.

    """
    distance = positions.unsqueeze(-2) - positions.unsqueeze(-1)
    if bias is None:
        added = torch.zeros(distance.shape, device=distance.device).unsqueeze(-3)
    else:
        reach = bias.shape[1] // 2
        added = bias.float()[:, distance.clamp(-reach, reach) + reach].movedim(0, -3)
    return added if window is None else added.masked_fill((distance.abs() > window).unsqueeze(-3), -torch.inf)


def rotate_rows(qkv: Tensor, cos: Tensor, sin: Tensor, heads: int) -> Tensor:
    """See :func:`lit_compress.ops.rotate_rows`."""
    x = qkv.reshape(qkv.shape[0], 3, heads, qkv.shape[1] // (3 * heads))
    turned = x[:, :2].float()
    first, second = turned.chunk(2, dim=-1)
    cos, sin = cos.float()[:, None, None], sin.float()[:, None, None]
    turned = turned * cos + torch.cat([-second, first], dim=-1) * sin
    return torch.cat([turned.to(qkv.dtype), x[:, 2:]], dim=1).reshape(qkv.shape)


def gather_rows(x: Tensor, index: Tensor) -> Tensor:
    """See :func:`lit_compress.ops.gather_rows`."""
    rows = torch.cat([x, x.new_zeros(1, x.shape[1])])
    return rows.index_select(0, index.long().where(index >= 0, x.shape[0]))
