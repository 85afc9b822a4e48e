"""Pruning and quantization of a model as it stands, for any training loop; in place, as the underscores say."""

from collections.abc import Callable, Sequence
from typing import Literal, TypeVar

import torch
from torch import Tensor, nn

from lit_compress.errors import UserError
from lit_compress.functional.importance import magnitude
from lit_compress.functional.patterns import NOfM, Scope, parse_pattern
from lit_compress.models.targets import match_linears
from lit_compress.nn.quantizers import (
    DynamicTokenQuantizer,
    FakeQuantizer,
    MinMaxWeightQuantizer,
    MovingAverageQuantizer,
)
from lit_compress.nn.surgery import make_compressible

__all__ = ["prune_", "quantize_"]

Model = TypeVar("Model", bound=nn.Module)
Activations = Literal["uint8", "int8", "dynamic", "none"]


@torch.no_grad()
def prune_(
    model: Model,
    sparsity: float = 0.5,
    pattern: str = "unstructured",
    scope: Scope = "layer",
    importance: Callable[[Tensor], Tensor] = magnitude,
    targets: Sequence[str] | None = None,
    ignore: Sequence[str] = (),
) -> Model:
    """Prune the least important weights; what is pruned is 0 and stays 0, however the model is trained on.

    Called again with a higher sparsity it prunes more. Parameters stay the same objects under the same names, so an
    optimizer on them stays valid; :func:`lit_compress.fold` gives the plain model.

    Args:
        model: changed in place.
        sparsity: fraction of the weights that go, in [0, 1).
        pattern: ``unstructured``, ``"N:M"``, ``"RxC"`` or ``"RxC/N"``, as in
            :class:`~lit_compress.MagnitudePruning`.
        scope: every linear reaches the sparsity itself (``layer``), every output of one (``output``), or all linears
            share one threshold (``global``).
        importance: from a weight ``(out_features, in_features)`` to scores of the same shape; low ones go.
        targets: globs or ``re:`` patterns of linears; None takes those of the transformer layers.
        ignore: patterns to leave alone.

    Returns:
        The same model.

    Raises:
        UserError: an argument is wrong, or a linear cannot be pruned in this pattern; nothing is changed then.

    """
    if not 0 <= sparsity < 1:
        raise UserError(f"prune_: sparsity {sparsity} must be in [0, 1)")
    try:
        parsed = parse_pattern(pattern)
    except ValueError as error:
        raise UserError(f"prune_: pattern {error}") from error
    if isinstance(parsed, NOfM) and abs(sparsity - parsed.sparsity) > 1e-6:
        raise UserError(f"prune_: sparsity {sparsity} does not go with {pattern!r}; it must be {parsed.sparsity:g}")
    if scope != "layer" and parsed.everywhere:
        raise UserError(f"prune_: scope {scope!r} has no meaning for {pattern!r}; use 'layer'")
    found = match_linears(model, targets, ignore, "prune_: targets")
    for name, linear in found.items():
        if reason := parsed.why_not(linear.out_features, linear.in_features):
            raise UserError(f"prune_: pattern {pattern!r} {reason} of {name!r}; choose another, or ignore that linear")
    layers = list(make_compressible(model, list(found)).values())
    kept: list[Tensor] = []
    for layer in layers:
        layer.add_mask()
        assert layer.weight_mask is not None
        kept.append(layer.weight_mask)
    # What is pruned stays pruned, whatever the importance says about a zero.
    scores = [importance(layer.weight).masked_fill(~mask, -torch.inf) for layer, mask in zip(layers, kept, strict=True)]
    for layer, before, mask in zip(layers, kept, parsed.masks(scores, sparsity, scope), strict=True):
        before &= mask
        layer.weight *= before
    return model


def quantize_(
    model: Model,
    bits: int = 8,
    per_channel: bool = True,
    activations: Activations = "uint8",
    targets: Sequence[str] | None = None,
    ignore: Sequence[str] = (),
) -> Model:
    """Compute as with integers from now on, in floating point: fake quantization with the straight-through gradient.

    Ranges of inputs follow the batches that the model sees in training mode; in evaluation they stay. Weights that are
    pruned stay 0. :func:`lit_compress.fold` gives the plain model, :func:`lit_compress.pack` the one in integers.

    Args:
        model: changed in place.
        bits: of the weights, from 2 to 8.
        per_channel: a scale per output channel, or one per tensor.
        activations: how inputs are quantized: ``uint8`` affine, ``int8`` symmetric, ``dynamic`` (a scale per token) or
            ``none``.
        targets: globs or ``re:`` patterns of linears; None takes those of the transformer layers.
        ignore: patterns to leave alone.

    Returns:
        The same model.

    Raises:
        UserError: an argument is wrong, or a linear is quantized already; nothing is changed then.

    """
    if not 2 <= bits <= 8:
        raise UserError(f"quantize_: bits {bits} must be from 2 to 8")
    make: dict[str, Callable[[], FakeQuantizer | None]] = {
        "uint8": MovingAverageQuantizer,
        "int8": lambda: MovingAverageQuantizer(symmetric=True),
        "dynamic": DynamicTokenQuantizer,
        "none": lambda: None,
    }
    if activations not in make:
        raise UserError(f"quantize_: activations {activations!r} must be one of {', '.join(make)}")
    found = match_linears(model, targets, ignore, "quantize_: targets")
    for name, linear in found.items():
        if getattr(linear, "weight_quantizer", None) or getattr(linear, "input_quantizer", None):
            raise UserError(f"quantize_: {name!r} is quantized already; quantize a model once, or ignore that linear")
    for layer in make_compressible(model, list(found)).values():
        layer.weight_quantizer = MinMaxWeightQuantizer(layer.out_features, bits, per_channel)
        layer.input_quantizer = make[activations]()
        layer.to(layer.weight.device).train(layer.training)
    return model
