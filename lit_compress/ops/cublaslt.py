"""The 8-bit product of cuBLASLt, through ``torch._scaled_mm``, where it was measured to be faster than ours.

It multiplies dense fp8 weights, scales rows and outputs and adds a bias; so it stands for products that nothing else
follows, such as queries, keys and values. With GELU, a residual or rounding behind it, a pass of its own costs more
than it gains.
"""

from functools import cache

import torch
from torch import Tensor

from lit_compress.ops import measured
from lit_compress.ops.dispatch import device_name, row_bucket
from lit_compress.ops.linear import LinearArguments

__all__ = ["is_faster", "library_product"]


def is_faster(of: LinearArguments) -> bool:
    """Whether the library computes the same, and took less time on this GPU: :mod:`lit_compress.ops.measured`."""
    plain = of.residual is None and of.out_scale is None and of.activation == "none" and of.columns is None
    if not plain or of.q.dtype != torch.float8_e4m3fn or of.out_dtype != torch.bfloat16:
        return False
    (rows, outputs), inputs = of.shape, of.q.shape[1]
    if not rows or outputs % 16 or inputs % 16:
        return False
    return _is_faster(row_bucket(rows), outputs, inputs, of.q.device.type, of.q.device.index)


def library_product(of: LinearArguments) -> Tensor:
    """See :func:`lit_compress.ops.quantized_linear`; only what :func:`is_faster` can answer yes to.

    Args:
        of: fp8 rows and a dense fp8 weight, a result in bf16, both sides multiples of 16.

    """
    rows = of.q.shape[0]
    return torch._scaled_mm(  # type: ignore[reportPrivateImportUsage]  (the public way to cuBLASLt)
        of.q.contiguous(),
        of.values.T,
        of.q_scale.reshape(-1, 1).expand(rows, 1).contiguous(),
        of.w_scale.reshape(1, -1),
        bias=None if of.bias is None else of.bias.to(torch.bfloat16),
        out_dtype=torch.bfloat16,
        use_fast_accum=True,
    )


@cache
def _is_faster(rows: int, outputs: int, inputs: int, kind: str, index: int | None) -> bool:
    shape = measured.Shape(device_name(kind, index), "dense", "fp8", outputs, inputs, rows)
    figures = measured.times(shape, 1.0)
    return figures is not None and figures.library_us is not None and figures.library_us < figures.kernel_us
