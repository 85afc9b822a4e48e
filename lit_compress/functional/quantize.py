"""Uniform integer quantization: scale and zero point, quantize, dequantize, and their straight-through composition.

Real zero always has an integer, exactly, so pruned weights stay zero through every function here.
"""

from typing import Any

import torch
from torch import Tensor

__all__ = ["asymmetric_qparams", "dequantize", "fake_quantize", "quantize", "symmetric_qparams"]

# A range narrower than this (an all-zero channel) would give a scale of zero and a division by it.
_MIN_SCALE = torch.finfo(torch.float32).tiny * 2**24


def symmetric_qparams(max_abs: Tensor, qmax: int = 127) -> Tensor:
    """Scale of symmetric integers ``-qmax..qmax`` with zero point 0: ``max_abs / qmax``.

    Args:
        max_abs: largest magnitude per tensor ``()`` or per channel ``(out_features,)``.
        qmax: largest integer; 127 for int8, so that the range is symmetric and -128 is never used.

    Example:
        >>> symmetric_qparams(torch.tensor(12.7)).item()  # doctest: +ELLIPSIS
        0.1...

    """
    return (max_abs / qmax).clamp_min(_MIN_SCALE)


def asymmetric_qparams(low: Tensor, high: Tensor, qmin: int = 0, qmax: int = 255) -> tuple[Tensor, Tensor]:
    """Scale and zero point of affine integers whose range covers ``[low, high]`` and holds 0 exactly.

    Args:
        low: smallest value seen, shape ``()``.
        high: largest value seen, shape ``()``.
        qmin: smallest integer (0 for uint8).
        qmax: largest integer (255 for uint8).

    Returns:
        ``(scale, zero_point)``: float and int32, shape ``()``.

    Example:
        >>> scale, zero_point = asymmetric_qparams(torch.tensor(-1.0), torch.tensor(1.55))
        >>> round(scale.item(), 4), zero_point.item()
        (0.01, 100)

    """
    low, high = low.clamp_max(0), high.clamp_min(0)
    scale = ((high - low) / (qmax - qmin)).clamp_min(_MIN_SCALE)
    zero_point = (qmin - low / scale).round().clamp(qmin, qmax).to(torch.int32)
    return scale, zero_point


def quantize(x: Tensor, scale: Tensor, zero_point: Tensor | int, qmin: int, qmax: int) -> Tensor:
    """Integers: ``clamp(round(x / scale) + zero_point, qmin, qmax)``, int32, halves to even.

    Args:
        x: any shape.
        scale: broadcastable to ``x``.
        zero_point: broadcastable to ``x``.
        qmin: smallest integer.
        qmax: largest integer.

    Example:
        >>> quantize(torch.tensor([0.0, 0.26, 9.0]), torch.tensor(0.1), 0, -127, 127).tolist()
        [0, 3, 90]

    """
    # Multiplying by the reciprocal, as fake_quantize does: the two must agree on every tie.
    return ((x * (1.0 / scale)).round() + zero_point).clamp(qmin, qmax).to(torch.int32)


def dequantize(q: Tensor, scale: Tensor, zero_point: Tensor | int) -> Tensor:
    """Back to floats: ``(q - zero_point) * scale``.

    Example:
        >>> dequantize(torch.tensor([3]), torch.tensor(0.5), 1).tolist()
        [1.0]

    """
    return (q - zero_point) * scale


def fake_quantize(
    x: Tensor, scale: Tensor, zero_point: Tensor, qmin: int, qmax: int, channel_dim: int | None = None
) -> Tensor:
    """``dequantize(quantize(x))`` with the straight-through gradient: identity inside the range, zero where clamped.

    Args:
        x: any shape.
        scale: ``()``, or ``(channels,)`` with ``channel_dim``.
        zero_point: int32, same shape as ``scale``.
        qmin: smallest integer.
        qmax: largest integer.
        channel_dim: dimension of ``x`` that has its own scale per index; None for one scale.

    Returns:
        Values of the integers, same shape and dtype as ``x``.

    Example:
        >>> fake_quantize(torch.tensor([0.26]), torch.tensor(0.5), torch.tensor(0, dtype=torch.int32), 0, 255).item()
        0.5

    """
    if channel_dim is not None:
        shape = [-1 if dim == channel_dim % x.ndim else 1 for dim in range(x.ndim)]
        scale, zero_point = scale.reshape(shape), zero_point.reshape(shape)
    return _FakeQuantize.apply(x, scale, zero_point, qmin, qmax)


class _FakeQuantize(torch.autograd.Function):
    """The same values as torch's fake-quantize operators, several times faster than those are on a CPU."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, scale: Tensor, zero_point: Tensor, qmin: int, qmax: int) -> Tensor:
        q = (x * (1.0 / scale)).round_().add_(zero_point)
        ctx.save_for_backward((q >= qmin) & (q <= qmax))
        return q.clamp_(qmin, qmax).sub_(zero_point).mul_(scale)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        (inside,) = ctx.saved_tensors
        return gradients[0] * inside, None, None, None, None
