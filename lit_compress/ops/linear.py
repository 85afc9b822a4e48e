"""Products with packed 8-bit weights: the integers and everything after them, or from floats to floats."""

from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from lit_compress.ops import reference
from lit_compress.ops.checks import Activation, require_activation, require_columns
from lit_compress.ops.kernels_available import serves
from lit_compress.ops.weight_cache import dequantized

__all__ = ["LinearArguments", "dynamic_linear", "quantized_linear"]


class LinearArguments(NamedTuple):
    """What :func:`quantized_linear` is given, in its order."""

    q: Tensor
    q_scale: Tensor
    values: Tensor
    w_scale: Tensor
    columns: Tensor | None
    offsets: Tensor | None
    bias: Tensor | None
    residual: Tensor | None
    activation: str
    out_dtype: torch.dtype
    out_scale: Tensor | None

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and outputs of the result."""
        return self.q.shape[0], self.w_scale.shape[0]

    @property
    def result_dtype(self) -> torch.dtype:
        """Type of the result."""
        return self.out_dtype if self.out_scale is None else self.q.dtype


def quantized_linear(
    q: Tensor,
    q_scale: Tensor,
    values: Tensor,
    w_scale: Tensor,
    columns: Tensor | None = None,
    offsets: Tensor | None = None,
    bias: Tensor | None = None,
    residual: Tensor | None = None,
    activation: Activation = "none",
    out_dtype: torch.dtype = torch.float32,
    out_scale: Tensor | None = None,
) -> Tensor:
    """``activation((q @ w.T) * q_scale * w_scale + bias) + residual``, in one launch.

    Sums are int32 for int8 and fp32 for fp8. A row whose scale is NaN gives NaN, or 0 where the output has 8 bits;
    8-bit outputs saturate. On a CPU the sums are those of an fp32 product of dequantized numbers, which are off by at
    most ``K * 2^-24 * sum(abs(q * q_scale) * abs(w * w_scale))``, usually a thousandth of that.

    Args:
        q: ``(M, K)``, int8 or float8_e4m3fn.
        q_scale: fp32, ``(M,)`` or ``(1,)``.
        values: the weight in the type of ``q``: ``(N, K)``, or in tiles ``(chunks, rows, chunk)`` as of
            ``lit_compress.storage.tiles.Tiles``.
        w_scale: fp32 ``(N,)``.
        columns: int32 ``(chunks + 1, blocks)``, of tiles; None for a dense weight.
        offsets: int32 ``(tiles + 1,)``, of tiles; None for a dense weight.
        bias: ``(N,)``.
        residual: ``(M, N)``, added after the activation.
        activation: ``"gelu"`` is the one with the error function, on a GPU within 2.6e-5 where the result has 8 or 16
            bits; ``"gelu_tanh"`` the other usual form, which differs from it by up to 4.8e-4.
        out_dtype: of the result; without effect when ``out_scale`` is given.
        out_scale: fp32 ``(1,)``: the result is ``round(y / out_scale)`` in the type of ``q``.

    Returns:
        ``(M, N)``.

    Raises:
        UserError: a weight that does not fit, or an unknown activation.

    Example:
        >>> q, w = torch.tensor([[1, 2]], dtype=torch.int8), torch.tensor([[3, 4]], dtype=torch.int8)
        >>> quantized_linear(q, torch.tensor([0.5]), w, torch.tensor([2.0])).item()
        11.0

    """
    require_activation(activation)
    require_columns(q.shape[1], values, columns, offsets)
    return _quantized_linear(
        q, q_scale, values, w_scale, columns, offsets, bias, residual, activation, out_dtype, out_scale
    )


def dynamic_linear(
    x: Tensor,
    values: Tensor,
    w_scale: Tensor,
    columns: Tensor | None = None,
    offsets: Tensor | None = None,
    bias: Tensor | None = None,
) -> Tensor:
    """``x @ w.T + bias`` with a packed weight: rows of ``x`` are rounded to 8 bit, each with its own scale.

    Differentiable with respect to ``x``: the gradient is that of a product with the dequantized weight, as if nothing
    had been rounded. Weight, scales and bias are constants.

    Args:
        x: ``(..., K)``, fp32, fp16 or bf16.
        values: as of :func:`quantized_linear`, with the other three.
        w_scale: fp32 ``(N,)``.
        columns: of a weight in tiles.
        offsets: of a weight in tiles.
        bias: ``(N,)``.

    Returns:
        ``(..., N)``, in the type of ``x``.

    Raises:
        UserError: a weight that does not fit.

    Example:
        >>> w = torch.tensor([[127, 0], [0, 127]], dtype=torch.int8)
        >>> dynamic_linear(torch.tensor([[[2.0, 2.0]]]), w, torch.full((2,), 1 / 127)).shape
        torch.Size([1, 1, 2])

    """
    require_columns(x.shape[-1], values, columns, offsets)
    return _dynamic_linear(x, values, w_scale, columns, offsets, bias)


_quantized_linear = torch.library.custom_op(
    "lit_compress::quantized_linear", reference.quantized_linear, mutates_args=()
)


@_quantized_linear.register_fake
def _(*given: Any) -> Tensor:
    of = LinearArguments(*given)
    return of.q.new_empty(of.shape, dtype=of.result_dtype)


@_quantized_linear.register_kernel("cuda")
@_quantized_linear.register_kernel("cpu")
def _(*given: Any) -> Tensor:
    of = LinearArguments(*given)
    if serves(of.q, of.q.dtype):
        return _product(of)
    if not of.q.is_cpu:
        return reference.quantized_linear(*given)
    weight = dequantized(of.values, of.w_scale, of.columns, of.offsets, of.q.shape[1])
    y = F.linear(of.q.float().mul_(of.q_scale.unsqueeze(1)), weight, None if of.bias is None else of.bias.float())
    y = reference.activate(y, of.activation)
    if of.residual is not None:
        y = y.add_(of.residual)
    if of.out_scale is None:
        return y.to(of.out_dtype)
    return reference.round_to(y.mul_(of.out_scale.reciprocal()), of.q.dtype)


_dynamic_linear = torch.library.custom_op("lit_compress::dynamic_linear", reference.dynamic_linear, mutates_args=())


@_dynamic_linear.register_fake
def _(x: Tensor, values: Tensor, w_scale: Tensor, *_: Any) -> Tensor:
    return x.new_empty(*x.shape[:-1], w_scale.shape[0])


@_dynamic_linear.register_kernel("cuda")
@_dynamic_linear.register_kernel("cpu")
def _(
    x: Tensor, values: Tensor, w_scale: Tensor, columns: Tensor | None, offsets: Tensor | None, bias: Tensor | None
) -> Tensor:
    if x.is_cpu and not serves(x, values.dtype):
        return _on_cpu(x, values, w_scale, columns, offsets, bias)
    rows = x.reshape(-1, x.shape[-1])
    if not serves(x, values.dtype):
        return reference.dynamic_linear(x, values, w_scale, columns, offsets, bias)
    from lit_compress.ops.kernels.quantize_rows import quantize_rows as quantize

    q, scale = quantize(rows, values.dtype)
    y = _product(LinearArguments(q, scale, values, w_scale, columns, offsets, bias, None, "none", x.dtype, None))
    return y.reshape(*x.shape[:-1], w_scale.shape[0])


def _product(of: LinearArguments) -> Tensor:
    """By our kernel, or by the library where that was measured to be faster."""
    from lit_compress.ops.cublaslt import is_faster, library_product

    if is_faster(of):
        return library_product(of)
    from lit_compress.ops.kernels.quantized_linear import quantized_linear as kernel

    return kernel(of)


def _on_cpu(
    x: Tensor, values: Tensor, w_scale: Tensor, columns: Tensor | None, offsets: Tensor | None, bias: Tensor | None
) -> Tensor:
    """The rows are rounded to values that 8 bits hold, but stay floats: fewer passes over memory."""
    rows = x.float()
    top = rows.abs().amax(dim=-1, keepdim=True)  # several times faster than aminmax
    scale = (top / reference.largest(values.dtype)).clamp_min(reference.MIN_SCALE)
    scale = scale.where(top.isfinite(), torch.nan)
    rows = rows * scale.reciprocal()
    rows = rows.to(values.dtype).float() if values.dtype.is_floating_point else rows.round_()
    weight = dequantized(values, w_scale, columns, offsets, x.shape[-1])
    return F.linear(rows.mul_(scale), weight, None if bias is None else bias.float()).to(x.dtype)


def _remember(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    x, values, w_scale, columns, offsets, _ = inputs
    ctx.save_for_backward(values, w_scale, columns, offsets)
    ctx.inputs = x.shape[-1]


def _backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
    values, w_scale, columns, offsets = ctx.saved_tensors
    weight = reference.dense_values(values, columns, offsets, w_scale.shape[0], ctx.inputs) * w_scale.unsqueeze(1)
    return gradient @ weight.to(gradient.dtype), None, None, None, None, None


_dynamic_linear.register_autograd(_backward, setup_context=_remember)
