"""One layer of an encoder on rows of real tokens: four matrix products, attention and two norms, each one launch."""

from collections.abc import Mapping
from dataclasses import dataclass
from types import ModuleType
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lit_compress import ops
from lit_compress.models.sequences import Sequences
from lit_compress.nn.packed import PackedLinear
from lit_compress.nn.packed_buffers import Precision
from lit_compress.ops import reference
from lit_compress.ops.checks import Activation
from lit_compress.ops.dispatch import Choice, choose

__all__ = ["LayerSteps", "Rows", "density", "launches", "precision", "rows_for", "run_layer"]


class Rows(NamedTuple):
    """Real tokens, one after the other, as floats, as 8-bit numbers, or as both.

    Attributes:
        y: ``(rows, width)``; None when only the 8-bit form exists.
        q: the same in 8 bit; None when what reads it multiplies floats.
        scale: of ``q``, fp32: ``(rows,)``, or ``(1,)`` when it was known beforehand.

    """

    y: Tensor | None
    q: Tensor | None = None
    scale: Tensor | None = None


@dataclass(frozen=True, eq=False, kw_only=True)
class LayerSteps:
    """What a layer consists of, in the order in which it runs.

    Args:
        qkv: product of the queries, keys and values of all heads.
        heads: their number.
        scale: of the scores.
        out: product after attention.
        attention_norm: norm of the layer's input plus that.
        up: first product of the feed-forward part.
        activation: after it.
        down: second product.
        feed_forward_norm: norm of what went into ``up`` plus that.

    """

    qkv: PackedLinear
    heads: int
    scale: float
    out: PackedLinear
    attention_norm: nn.LayerNorm
    up: PackedLinear
    activation: Activation
    down: PackedLinear
    feed_forward_norm: nn.LayerNorm


def run_layer(steps: LayerSteps, rows: Rows, sequences: Sequences, following: PackedLinear | None) -> Rows:
    """A layer's output, in the form that the first product of the following layer reads.

    Args:
        steps: of this layer.
        rows: its input, ``(rows, width)``, in the form that ``steps.qkv`` reads.
        sequences: where the rows come from.
        following: first product of the next layer; None when something else reads the output.

    """
    assert rows.y is not None
    qkv = _product(steps.qkv, rows)
    x = _product(steps.out, _attended(steps, qkv, sequences), residual=rows.y)
    rows = _normalized(steps.attention_norm, x, steps.up)
    assert rows.y is not None
    x = _product(steps.down, _hidden(steps, rows), residual=rows.y)
    return _normalized(steps.feed_forward_norm, x, following)


def rows_for(linear: PackedLinear | None, y: Tensor) -> Rows:
    """Rows in the form that ``linear`` reads; floats alone for None."""
    if linear is None or (choice := _choice(linear, y)) == "dense":
        return Rows(y)
    return Rows(y, *_operators(choice).quantize_rows(y, linear.dtype))


def launches(steps: LayerSteps, choices: Mapping[str, Choice]) -> int:
    """How many kernels a layer starts.

    Args:
        steps: of the layer.
        choices: what computes ``qkv``, ``out``, ``up`` and ``down``.

    """
    count = 7 + (choices["up"] == "dense")  # with a pass for the activation
    for name, known in (("out", steps.out.input_scale), ("down", _scale_of_hidden(steps, choices["up"]))):
        # A pass for the residual, or one that finds the rows' scales.
        count += choices[name] == "dense" or known is None
    return count


def _attended(steps: LayerSteps, qkv: Tensor, sequences: Sequences) -> Rows:
    choice = _choice(steps.out, qkv)
    scale = None if choice == "dense" else steps.out.input_scale
    context = _operators(choice).attention_varlen(
        qkv, sequences.starts, sequences.longest, steps.heads, steps.scale, scale, steps.out.dtype
    )
    return rows_for(steps.out, context) if scale is None else Rows(None, context, scale)


def _hidden(steps: LayerSteps, rows: Rows) -> Rows:
    assert rows.y is not None
    scale = None
    if _choice(steps.down, rows.y) != "dense":
        scale = _scale_of_hidden(steps, _choice(steps.up, rows.y))
    activation = steps.activation
    if scale is not None and activation == "gelu":
        # In 8 bit the two forms are the same number, and the error function costs more than the product.
        activation = "gelu_tanh"
    hidden = _product(steps.up, rows, activation, out_scale=scale)
    return rows_for(steps.down, hidden) if scale is None else Rows(None, hidden, scale)


def _scale_of_hidden(steps: LayerSteps, up: Choice) -> Tensor | None:
    """The scale with which ``up`` may round what it hands to ``down``; None when it must not."""
    return None if up == "dense" or steps.up.dtype != steps.down.dtype else steps.down.input_scale


def _product(
    linear: PackedLinear,
    rows: Rows,
    activation: Activation = "none",
    residual: Tensor | None = None,
    out_scale: Tensor | None = None,
) -> Tensor:
    floats = rows.y if rows.y is not None else residual
    assert floats is not None
    if rows.q is None:
        bias = None if linear.bias is None else linear.bias.to(floats.dtype)
        y = _activated(F.linear(floats, linear.dense_weight(floats.dtype), bias), activation)
        return y if residual is None else y.add_(residual)
    return _operators(_choice(linear, floats)).quantized_linear(
        rows.q,
        rows.scale,
        linear.values,
        linear.w_scale,
        linear.columns,
        linear.offsets,
        linear.bias,
        residual,
        activation,
        floats.dtype,
        out_scale,
    )


def _normalized(norm: nn.LayerNorm, x: Tensor, following: PackedLinear | None) -> Rows:
    if following is None or (choice := _choice(following, x)) == "dense":
        return Rows(norm(x))
    return Rows(*_operators(choice).layernorm_quantize(x, None, norm.weight, norm.bias, norm.eps, following.dtype))


def _activated(x: Tensor, activation: Activation) -> Tensor:
    if activation == "relu":
        return F.relu(x)
    if activation == "none":
        return x
    return F.gelu(x, approximate="tanh" if activation == "gelu_tanh" else "none")


def density(linear: PackedLinear) -> float:
    """Fraction of the weight that is multiplied, zeros that fill up blocks included."""
    return linear.values.numel() / (linear.out_features * linear.in_features)


def precision(linear: PackedLinear) -> Precision:
    """The type of the values by the name that the command line gives it."""
    return "int8" if linear.dtype == torch.int8 else "fp8"


def _choice(linear: PackedLinear, x: Tensor) -> Choice:
    return choose(
        x.shape[0],
        linear.out_features,
        linear.in_features,
        linear.format,
        precision(linear),
        density(linear),
        x.device,
    )


def _operators(choice: Choice) -> ModuleType:
    return reference if choice == "reference" else ops
