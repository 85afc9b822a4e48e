"""One layer of an encoder on unpadded tokens: four matrix products, attention and two norms, each one launch."""

from collections.abc import Mapping
from dataclasses import dataclass
from types import ModuleType
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lit_compress import ops
from lit_compress.nn.packed import PackedLinear
from lit_compress.ops import reference
from lit_compress.ops.checks import Activation
from lit_compress.ops.dispatch import Choice, choose
from lit_compress.ops.padding import Sequences
from lit_compress.ops.reference import activate
from lit_compress.storage.buffers import Precision

__all__ = ["PRODUCTS", "Distances", "LayerSteps", "Rows", "density", "launches", "precision", "rows_for", "run_layer"]

# Names of a layer's products in its steps, in the order in which they run.
PRODUCTS = ("qkv", "out", "up", "down")


class Rows(NamedTuple):
    """Unpadded tokens, one after the other, as floats, as 8-bit numbers, or as both.

    Attributes:
        y: ``(rows, width)``; None when only the 8-bit form exists.
        q: the same in 8 bit; None when what reads it multiplies floats.
        scale: of ``q``, fp32: ``(rows,)``, or ``(1,)`` when it was known beforehand.

    """

    y: Tensor | None
    q: Tensor | None = None
    scale: Tensor | None = None


class Distances(NamedTuple):
    """What the distance of two tokens means to attention, in all layers alike.

    Attributes:
        bias: as of :func:`lit_compress.ops.attention_varlen`.
        positions: likewise.

    """

    bias: Tensor
    positions: Tensor | None


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


def run_layer(
    steps: LayerSteps,
    rows: Rows,
    sequences: Sequences,
    following: PackedLinear | None,
    distances: Distances | None = None,
) -> Rows:
    """A layer's output, in the form that the first product of the following layer reads.

    Args:
        steps: of this layer.
        rows: its input, ``(rows, width)``, in the form that ``steps.qkv`` reads.
        sequences: where the rows come from.
        following: first product of the next layer; None when something else reads the output.
        distances: relative positions; None for a family without.

    """
    x = _floats(rows)
    by = choices_of(steps, x.shape[0], x.device)
    qkv = _product(steps.qkv, rows, by["qkv"], x.dtype)
    y = _product(steps.out, _attended(steps, qkv, sequences, by["out"], distances), by["out"], x.dtype, residual=x)
    rows = _normalized(steps.attention_norm, y, steps.up, by["up"])
    x = _floats(rows)
    y = _product(steps.down, _hidden(steps, rows, by), by["down"], x.dtype, residual=x)
    return _normalized(steps.feed_forward_norm, y, following, _choice(following, x.shape[0], x.device))


def rows_for(linear: PackedLinear | None, y: Tensor) -> Rows:
    """Rows in the form that ``linear`` reads; floats alone for None."""
    return _rounded(linear, y, _choice(linear, y.shape[0], y.device))


def choices_of(steps: LayerSteps, rows: int, device: torch.device) -> dict[str, Choice]:
    """What computes each product of a layer."""
    return {name: _choice(getattr(steps, name), rows, device) for name in PRODUCTS}


def launches(steps: LayerSteps, choices: Mapping[str, Choice]) -> int:
    """How many kernels a layer starts.

    Args:
        steps: of the layer.
        choices: what computes each of :data:`PRODUCTS`.

    """
    count = 7 + (choices["up"] == "dense")  # with a pass for the activation
    for name, known in (("out", steps.out.input_scale), ("down", _scale_of_hidden(steps, choices["up"]))):
        # A pass for the residual, or one that finds the rows' scales.
        count += choices[name] == "dense" or known is None
    return count


def _attended(
    steps: LayerSteps, qkv: Tensor, sequences: Sequences, choice: Choice, distances: Distances | None
) -> Rows:
    if choice == "dense" and sequences.order is None and distances is None:
        return Rows(_whole_attention(steps, qkv, sequences))
    scale = None if choice == "dense" else steps.out.input_scale
    context = _operators(choice).attention_varlen(
        qkv,
        sequences.starts,
        sequences.longest,
        steps.heads,
        steps.scale,
        scale,
        steps.out.dtype,
        *(distances or ()),
    )
    return _rounded(steps.out, context, choice) if scale is None else Rows(None, context, scale)


def _whole_attention(steps: LayerSteps, qkv: Tensor, sequences: Sequences) -> Tensor:
    """Torch's own attention, of sequences that are all of the same length."""
    heads = qkv.reshape(sequences.batch, sequences.length, 3, steps.heads, qkv.shape[1] // (3 * steps.heads))
    q, k, v = heads.permute(2, 0, 3, 1, 4)
    context = F.scaled_dot_product_attention(q, k, v, scale=steps.scale)
    return context.transpose(1, 2).reshape(qkv.shape[0], -1)


def _hidden(steps: LayerSteps, rows: Rows, by: Mapping[str, Choice]) -> Rows:
    scale = None if by["down"] == "dense" else _scale_of_hidden(steps, by["up"])
    hidden = _product(steps.up, rows, by["up"], _floats(rows).dtype, steps.activation, out_scale=scale)
    return _rounded(steps.down, hidden, by["down"]) if scale is None else Rows(None, hidden, scale)


def _scale_of_hidden(steps: LayerSteps, up: Choice) -> Tensor | None:
    """The scale with which ``up`` may round what it hands to ``down``; None when it must not."""
    return None if up == "dense" or steps.up.dtype != steps.down.dtype else steps.down.input_scale


def _product(
    linear: PackedLinear,
    rows: Rows,
    choice: Choice,
    dtype: torch.dtype,
    activation: Activation = "none",
    residual: Tensor | None = None,
    out_scale: Tensor | None = None,
) -> Tensor:
    if choice == "dense":
        bias = None if linear.bias is None else linear.bias.to(dtype)
        y = activate(F.linear(_floats(rows), linear.dense_weight(dtype), bias), activation)
        return y if residual is None else y.add_(residual)
    assert rows.q is not None
    assert rows.scale is not None
    return _operators(choice).quantized_linear(
        rows.q,
        rows.scale,
        linear.values,
        linear.w_scale,
        linear.columns,
        linear.offsets,
        linear.bias,
        residual,
        activation,
        dtype,
        out_scale,
    )


def _normalized(norm: nn.LayerNorm, x: Tensor, linear: PackedLinear | None, choice: Choice) -> Rows:
    if linear is None or choice == "dense":
        return Rows(norm(x))
    return Rows(*_operators(choice).layernorm_quantize(x, None, norm.weight, norm.bias, norm.eps, linear.dtype))


def _rounded(linear: PackedLinear | None, y: Tensor, choice: Choice) -> Rows:
    if linear is None or choice == "dense":
        return Rows(y)
    return Rows(y, *_operators(choice).quantize_rows(y, linear.dtype))


def _floats(rows: Rows) -> Tensor:
    assert rows.y is not None
    return rows.y


def density(linear: PackedLinear) -> float:
    """Fraction of the weight that is multiplied, zeros that fill up blocks included."""
    return linear.values.numel() / (linear.out_features * linear.in_features)


def precision(linear: PackedLinear) -> Precision:
    """The type of the values by the name that the command line gives it."""
    return "int8" if linear.dtype == torch.int8 else "fp8"


def _choice(linear: PackedLinear | None, rows: int, device: torch.device) -> Choice:
    if linear is None:
        return "dense"
    kind, stored = precision(linear), density(linear)
    return choose(rows, linear.out_features, linear.in_features, linear.format, kind, stored, device)


def _operators(choice: Choice) -> ModuleType:
    return reference if choice == "reference" else ops
