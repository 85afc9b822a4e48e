"""One layer of an encoder on unpadded tokens: four matrix products, attention and two norms, each one launch."""

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType, ModuleType
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
from lit_compress.storage.layouts import Precision

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
    """What positions mean to attention, in all layers of a batch alike.

    Attributes:
        positions: as of :func:`lit_compress.ops.attention_varlen`.
        bias: as of :func:`lit_compress.ops.attention_varlen`; None in a family without.
        rotations: cosines and sines of :func:`lit_compress.ops.rotate_rows`, by the name that a layer knows; none in a
            family without.
        columns: of :func:`lit_compress.ops.attention_relative`; None in a family without.
        table: floats ``(rows, width)``, embeddings of distances, for the layers that multiply with positions; None in a
            family without.

    """

    positions: Tensor | None = None
    bias: Tensor | None = None
    rotations: Mapping[str, tuple[Tensor, Tensor]] = MappingProxyType({})
    columns: Tensor | None = None
    table: Tensor | None = None


@dataclass(frozen=True, eq=False, kw_only=True)
class LayerSteps:
    """What a layer consists of, in the order in which it runs.

    Args:
        qkv: product of the queries, keys and values of all heads.
        heads: their number.
        scale: of the scores.
        out: product after attention.
        attention_norm: norm of the layer's input plus that. With ``norms_first`` of the input itself, or None.
        up: first product of the feed-forward part.
        activation: after it.
        down: second product.
        feed_forward_norm: norm of what went into ``up`` plus that. With ``norms_first`` of what goes into ``up``.
        norms_first: whether norms are before each part, as in ModernBERT; ``up`` then makes neurons and their gates.
        rotation: which of the batch's rotations turns queries and keys; None turns nothing.
        window: of :func:`lit_compress.ops.attention_varlen`.
        relative: ``"c2p"`` where queries are multiplied with the keys of positions, ``"p2c"`` where keys are with their
            queries, both made by ``qkv``; see :func:`lit_compress.ops.attention_relative`.

    """

    qkv: PackedLinear
    heads: int
    scale: float
    out: PackedLinear
    attention_norm: nn.LayerNorm | None
    up: PackedLinear
    activation: Activation
    down: PackedLinear
    feed_forward_norm: nn.LayerNorm
    norms_first: bool = False
    rotation: str | None = None
    window: int | None = None
    relative: tuple[str, ...] = ()

    @property
    def reads(self) -> PackedLinear | None:
        """The product that the layer's input is rounded for; None when a norm reads its floats."""
        return None if self.norms_first else self.qkv


def run_layer(
    steps: LayerSteps,
    rows: Rows,
    sequences: Sequences,
    following: PackedLinear | None,
    distances: Distances,
) -> Rows:
    """A layer's output, in the form that the following layer reads.

    Args:
        steps: of this layer.
        rows: its input, ``(rows, width)``, in the form that ``steps.reads`` reads.
        sequences: where the rows come from.
        following: what the next layer's steps say that they read; None when something else reads the output.
        distances: what positions mean.

    """
    x = _floats(rows)
    by = choices_of(steps, x.shape[0], x.device)
    if steps.norms_first:
        rows = _normalized(steps.attention_norm, x, steps.qkv, by["qkv"])
        x = _product(steps.out, _attended(steps, rows, sequences, by, distances), by["out"], x.dtype, residual=x)
        rows = _normalized(steps.feed_forward_norm, x, steps.up, by["up"])
        y = _product(steps.down, _gated(steps, rows, by), by["down"], x.dtype, residual=x)
        return rows_for(following, y)
    y = _product(steps.out, _attended(steps, rows, sequences, by, distances), by["out"], x.dtype, residual=x)
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
    # With a pass for the residual, or one that finds the rows' scales.
    count = 7 + (choices["out"] == "dense" or steps.out.input_scale is None) + (steps.rotation is not None)
    if steps.relative:  # the table of positions, its product, and those with it
        count += 1 + (choices["qkv"] != "dense") + len(steps.relative)
    if steps.norms_first:
        # One pass for activation, gate and rounding; three for activation, gate and the residual.
        count += 3 if choices["down"] == "dense" else 1
        return count - (steps.attention_norm is None and choices["qkv"] == "dense")
    count += choices["up"] == "dense"  # a pass for the activation
    return count + (choices["down"] == "dense" or _scale_of_hidden(steps, choices["up"]) is None)


def _attended(
    steps: LayerSteps, rows: Rows, sequences: Sequences, by: Mapping[str, Choice], distances: Distances
) -> Rows:
    """Attention of what ``steps.qkv`` makes of ``rows``, in the form that ``steps.out`` reads."""
    qkv, choice = _product(steps.qkv, rows, by["qkv"], _floats(rows).dtype), by["out"]
    if steps.rotation is not None:
        qkv = _operators(by["qkv"]).rotate_rows(qkv, *distances.rotations[steps.rotation], steps.heads)
    if choice == "dense" and sequences.order is None and _all_alike(steps, distances):
        return Rows(_whole_attention(steps, qkv, sequences))
    scale, operators = None if choice == "dense" else steps.out.input_scale, _operators(choice)
    among = (qkv, sequences.starts, sequences.longest, steps.heads, steps.scale)
    if steps.relative:
        by_query, by_key = _by_position(steps, qkv, distances.table, by["qkv"])
        context = operators.attention_relative(
            *among, distances.columns, by_query, by_key, distances.positions, scale, steps.out.dtype
        )
    else:
        context = operators.attention_varlen(
            *among, scale, steps.out.dtype, distances.bias, distances.positions, steps.window
        )
    return _rounded(steps.out, context, choice) if scale is None else Rows(None, context, scale)


def _all_alike(steps: LayerSteps, distances: Distances) -> bool:
    """Whether the distance of two tokens means nothing to their score."""
    return distances.bias is None and steps.window is None and not steps.relative


def _by_position(
    steps: LayerSteps, qkv: Tensor, table: Tensor | None, choice: Choice
) -> tuple[Tensor | None, Tensor | None]:
    """Queries times the keys of positions, and keys times their queries, each ``(heads, tokens, positions)``."""
    assert table is not None
    positions = _product(steps.qkv, _rounded(steps.qkv, table, choice), choice, table.dtype)
    queries, keys, _ = qkv.unflatten(1, (3, steps.heads, -1)).permute(1, 2, 0, 3)
    their_queries, their_keys, _ = positions.unflatten(1, (3, steps.heads, -1)).permute(1, 2, 3, 0)
    return (
        queries @ their_keys if "c2p" in steps.relative else None,
        keys @ their_queries if "p2c" in steps.relative else None,
    )


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


def _gated(steps: LayerSteps, rows: Rows, by: Mapping[str, Choice]) -> Rows:
    y, choice = _product(steps.up, rows, by["up"], _floats(rows).dtype), by["down"]
    if choice == "dense":
        numbers, gates = y.chunk(2, dim=1)
        return Rows(activate(numbers, steps.activation).mul_(gates))
    return Rows(None, *_operators(choice).gate_quantize(y, steps.activation, steps.down.dtype, steps.down.input_scale))


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
        if residual is None:
            return y
        # Under autocast the product is half precision and what it is added to is not.
        return y.add_(residual) if y.dtype == residual.dtype else y + residual
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


def _normalized(norm: nn.LayerNorm | None, x: Tensor, linear: PackedLinear | None, choice: Choice) -> Rows:
    if norm is None:
        return _rounded(linear, x, choice)
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
