"""Parts of kernels: rounding to 8 bit, the scale of a row, activations."""

import triton
import triton.language as tl

from lit_compress.ops.kernels_available import INTERPRETED

__all__ = ["activate", "round_to", "row_scale"]

_INTERPRETED: tl.constexpr = tl.constexpr(INTERPRETED)


@triton.jit
def round_to(y, dtype: tl.constexpr):
    """fp32 to int8 or fp8: halves to even, saturating, NaN becomes 0."""
    y = tl.where(y == y, y, 0.0)
    if dtype == tl.int8:
        # Above 2^23 fp32 holds integers only, so that adding 1.5 * 2^23 rounds, and the low byte is the number; the
        # conversion instruction has a quarter of an addition's rate, and wraps around.
        y = tl.clamp(y, -127.0, 127.0) + 12582912.0
        return y.to(tl.int32, bitcast=True).to(tl.int8)
    y = tl.clamp(y, -448.0, 448.0)
    if _INTERPRETED:
        # Triton's interpreter does not carry into the exponent when it rounds, as GPUs do.
        y = _rounded_to_fp8(y)
    return y.to(dtype)


@triton.jit
def _rounded_to_fp8(y):
    bits = y.to(tl.int32, bitcast=True)
    normal = ((bits + 0x7FFFF + ((bits >> 20) & 1)) & -0x100000).to(tl.float32, bitcast=True)
    # Below 2^-6 fp8 has steps of 2^-9.
    small = (y + 24576.0) - 24576.0
    return tl.where(tl.abs(y) < 0.015625, small, normal)


@triton.jit
def row_scale(x, dtype: tl.constexpr):
    """``(scale, 1 / scale)`` of a row ``(columns,)`` of fp32; both are NaN for a row with a NaN or an infinity."""
    # Without the sign, bits of floats are in the order of the numbers, and NaN is above infinity: an integer maximum
    # finds all three in one pass, while a maximum of floats would lose NaN.
    bits = x.to(tl.int32, bitcast=True) & 0x7FFFFFFF
    top = tl.max(bits, 0)
    finite = top < 0x7F800000
    top = tl.where(finite, top, 0).to(tl.float32, bitcast=True)
    largest: tl.constexpr = 127.0 if dtype == tl.int8 else 448.0
    # 2^-102, MIN_SCALE of the reference.
    scale = tl.maximum(tl.div_rn(top, largest), 1.9721522630525295e-31)
    scale = tl.where(finite, scale, float("nan"))
    return scale, tl.div_rn(1.0, scale)


@triton.jit
def activate(y, activation: tl.constexpr, exact: tl.constexpr):
    """ReLU or one of two GELUs; anything else is none.

    GELU with the error function is that function where ``exact``; elsewhere it is off by at most 2.6e-5, which 8 and 16
    bits do not show, and costs two instructions more than the tanh form instead of three times as many.
    """
    if activation == "relu":
        # Not a maximum: NaN has to stay NaN.
        y = tl.where(y < 0.0, 0.0, y)
    elif activation == "gelu" and exact:
        y = 0.5 * y * (1.0 + tl.erf(y * 0.7071067811865476))
    elif activation == "gelu":
        # x * Phi(x) = x / (1 + exp(-x * p(x^2))); p of degree 2 has the least largest error that a reweighted
        # least-squares fit finds, the tanh form is one of degree 1. Beyond 30 p would fall. Times -log2(e).
        t = tl.minimum(y * y, 30.0)
        y = y / (1.0 + tl.exp2(y * (-2.301121345 + t * (-0.1067757295 + t * 0.001014263603))))
    elif activation == "gelu_tanh":
        # x * (1 + tanh(u)) / 2 = x / (1 + exp(-2 * u)), and exp2 is one instruction; -2 * log2(e) * sqrt(2 / pi).
        y = y / (1.0 + tl.exp2(-2.302208198144325 * (y + 0.044715 * y * y * y)))
    return y
