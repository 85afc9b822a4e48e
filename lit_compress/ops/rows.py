"""Operators on rows of numbers: to 8 bit with a scale per row, alone or right after LayerNorm, and rotated."""

import torch
from torch import Tensor

from lit_compress.errors import UserError
from lit_compress.ops import reference
from lit_compress.ops.checks import require_eight_bits
from lit_compress.ops.kernels_available import serves

__all__ = ["layernorm_quantize", "quantize_rows", "rotate_rows"]


def quantize_rows(x: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Rows as 8-bit numbers, each with its own scale, so that ``q * scale`` is ``x`` again.

    ``scale[m] = max(abs(x[m])) / largest``, at least 2^-102; ``q = round(x * (1 / scale))``, halves to even. A row
    that holds a NaN or an infinity has the scale NaN and only zeros: what is computed from it is NaN, other rows are as
    ever.

    Args:
        x: ``(rows, columns)``, fp32, fp16 or bf16.
        dtype: ``torch.int8`` or ``torch.float8_e4m3fn``.

    Returns:
        ``(q, scale)``: ``(rows, columns)`` of ``dtype`` and fp32 ``(rows,)``.

    Raises:
        UserError: another ``dtype``.

    Example:
        >>> q, scale = quantize_rows(torch.tensor([[127.0, -63.0], [0.0, 0.0]]), torch.int8)
        >>> q.tolist(), scale[0].item()
        ([[127, -63], [0, 0]], 1.0)

    """
    require_eight_bits(dtype)
    return _quantize_rows(x, dtype)


def layernorm_quantize(
    x: Tensor, residual: Tensor | None, weight: Tensor, bias: Tensor | None, eps: float, dtype: torch.dtype
) -> tuple[Tensor, Tensor, Tensor]:
    """LayerNorm of ``x + residual``, as floats and as 8-bit rows, in one pass over memory.

    Args:
        x: ``(rows, columns)``, fp32, fp16 or bf16.
        residual: the same shape, or None.
        weight: ``(columns,)``.
        bias: ``(columns,)``, or None.
        eps: added to the variance.
        dtype: ``torch.int8`` or ``torch.float8_e4m3fn``.

    Returns:
        ``(y, q, scale)``: ``y`` in the type of ``x``; ``q`` and ``scale`` as of :func:`quantize_rows`, from the fp32
        values before ``y`` is rounded to its type.

    Raises:
        UserError: another ``dtype``.

    Example:
        >>> x = torch.tensor([[1.0, -1.0]])
        >>> y, q, scale = layernorm_quantize(x, x, torch.ones(2), torch.zeros(2), 0.0, torch.int8)
        >>> y.tolist(), q.tolist()
        ([[1.0, -1.0]], [[127, -127]])

    """
    require_eight_bits(dtype)
    return _layernorm_quantize(x, residual, weight, bias, eps, dtype)


def rotate_rows(qkv: Tensor, cos: Tensor, sin: Tensor, heads: int) -> Tensor:
    """Queries and keys of every head turned by the angles of their positions (rotary positions); values as they are.

    ``y = x * cos + half(x) * sin``, where ``half`` puts minus the second half of a head before the first, in fp32.

    Args:
        qkv: ``(tokens, 3 * heads * head_dim)``, as of :func:`lit_compress.ops.attention_varlen`.
        cos: ``(tokens, head_dim)``, of the angles of each token.
        sin: ``(tokens, head_dim)``, of the same angles.
        heads: number of heads, with an even ``head_dim``.

    Returns:
        The shape and type of ``qkv``.

    Raises:
        UserError: angles that do not fit the rows.

    Example:
        >>> qkv = torch.tensor([[1.0, 2.0, 3.0, 4.0, 5.0, 6.0]])
        >>> rotate_rows(qkv, torch.zeros(1, 2), torch.ones(1, 2), 1).tolist()
        [[-2.0, 1.0, -4.0, 3.0, 5.0, 6.0]]

    """
    expected = (qkv.shape[0], qkv.shape[1] // (3 * heads))
    if cos.shape != expected or sin.shape != expected or expected[1] % 2 or qkv.shape[1] % (3 * heads):
        raise UserError(
            f"cos, sin: shapes {tuple(cos.shape)} and {tuple(sin.shape)} for qkv {tuple(qkv.shape)} of {heads} heads; "
            "both must be (tokens, head_dim), with an even head_dim"
        )
    return _rotate_rows(qkv, cos, sin, heads)


@torch.library.custom_op("lit_compress::quantize_rows", mutates_args=())
def _quantize_rows(x: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    return reference.quantize_rows(x, dtype)


@_quantize_rows.register_fake
def _(x: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    return x.new_empty(x.shape, dtype=dtype), x.new_empty(x.shape[:1], dtype=torch.float32)


@_quantize_rows.register_kernel("cuda")
@_quantize_rows.register_kernel("cpu")
def _(x: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    if serves(x):
        from lit_compress.ops.kernels.quantize_rows import quantize_rows as kernel

        return kernel(x, dtype)
    return reference.quantize_rows(x, dtype)


@torch.library.custom_op("lit_compress::layernorm_quantize", mutates_args=())
def _layernorm_quantize(
    x: Tensor, residual: Tensor | None, weight: Tensor, bias: Tensor | None, eps: float, dtype: torch.dtype
) -> tuple[Tensor, Tensor, Tensor]:
    return reference.layernorm_quantize(x, residual, weight, bias, eps, dtype)


@_layernorm_quantize.register_fake
def _(
    x: Tensor, residual: Tensor | None, weight: Tensor, bias: Tensor | None, eps: float, dtype: torch.dtype
) -> tuple[Tensor, Tensor, Tensor]:
    return x.new_empty(x.shape), x.new_empty(x.shape, dtype=dtype), x.new_empty(x.shape[:1], dtype=torch.float32)


@_layernorm_quantize.register_kernel("cuda")
@_layernorm_quantize.register_kernel("cpu")
def _(
    x: Tensor, residual: Tensor | None, weight: Tensor, bias: Tensor | None, eps: float, dtype: torch.dtype
) -> tuple[Tensor, Tensor, Tensor]:
    if serves(x):
        from lit_compress.ops.kernels.layernorm_quantize import layernorm_quantize as kernel

        return kernel(x, residual, weight, bias, eps, dtype)
    return reference.layernorm_quantize(x, residual, weight, bias, eps, dtype)


@torch.library.custom_op("lit_compress::rotate_rows", mutates_args=())
def _rotate_rows(qkv: Tensor, cos: Tensor, sin: Tensor, heads: int) -> Tensor:
    return reference.rotate_rows(qkv, cos, sin, heads)


@_rotate_rows.register_fake
def _(qkv: Tensor, cos: Tensor, sin: Tensor, heads: int) -> Tensor:
    return qkv.new_empty(qkv.shape)


@_rotate_rows.register_kernel("cuda")
@_rotate_rows.register_kernel("cpu")
def _(qkv: Tensor, cos: Tensor, sin: Tensor, heads: int) -> Tensor:
    if serves(qkv):
        from lit_compress.ops.kernels.rotate_rows import rotate_rows as kernel

        return kernel(qkv, cos, sin, heads)
    return reference.rotate_rows(qkv, cos, sin, heads)
