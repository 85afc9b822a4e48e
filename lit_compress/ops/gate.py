"""The gated activation between two products, to 8 bit."""

import torch
from torch import Tensor

from lit_compress.errors import UserError
from lit_compress.ops import reference
from lit_compress.ops.checks import Activation, require_activation, require_eight_bits
from lit_compress.ops.kernels_available import serves

__all__ = ["gate_quantize"]


def gate_quantize(
    x: Tensor, activation: Activation, dtype: torch.dtype, out_scale: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """``activation(a) * b`` of rows ``[a, b]``, as 8-bit rows, in one pass over memory.

    Args:
        x: ``(rows, 2 * columns)``, fp32, fp16 or bf16.
        activation: of the first half; ``"gelu"`` is on a GPU within 2.6e-5 times the second half.
        dtype: ``torch.int8`` or ``torch.float8_e4m3fn``.
        out_scale: fp32 ``(1,)``, of all rows: saturating, NaN becomes 0. None gives each row its own.

    Returns:
        ``(q, scale)``: ``(rows, columns)`` of ``dtype`` and fp32 ``(rows,)``, as of
        :func:`lit_compress.ops.quantize_rows`.

    Raises:
        UserError: another ``dtype``, an unknown activation, an odd number of columns.

    Example:
        >>> q, scale = gate_quantize(torch.tensor([[2.0, -1.0, 3.0, 5.0]]), "relu", torch.int8)
        >>> q.tolist(), round(scale.item() * 127, 4)
        ([[127, 0]], 6.0)

    """
    require_activation(activation)
    require_eight_bits(dtype)
    if x.shape[1] % 2:
        raise UserError(f"x: {x.shape[1]} columns; half of them are gates, so there must be an even number")
    return _gate_quantize(x, activation, dtype, out_scale)


@torch.library.custom_op("lit_compress::gate_quantize", mutates_args=())
def _gate_quantize(x: Tensor, activation: str, dtype: torch.dtype, out_scale: Tensor | None) -> tuple[Tensor, Tensor]:
    return reference.gate_quantize(x, activation, dtype, out_scale)


@_gate_quantize.register_fake
def _(x: Tensor, activation: str, dtype: torch.dtype, out_scale: Tensor | None) -> tuple[Tensor, Tensor]:
    rows, columns = x.shape[0], x.shape[1] // 2
    return x.new_empty(rows, columns, dtype=dtype), x.new_empty(rows, dtype=torch.float32)


@_gate_quantize.register_kernel("cuda")
@_gate_quantize.register_kernel("cpu")
def _(x: Tensor, activation: str, dtype: torch.dtype, out_scale: Tensor | None) -> tuple[Tensor, Tensor]:
    if serves(x):
        from lit_compress.ops.kernels.gate_quantize import gate_quantize as kernel

        return kernel(x, activation, dtype, out_scale)
    return reference.gate_quantize(x, activation, dtype, out_scale)
