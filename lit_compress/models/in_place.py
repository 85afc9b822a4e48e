"""Pruning and quantization of a model as it stands, for any training loop; in place, as the underscores say."""

from collections.abc import Callable, Sequence
from typing import TypeVar

import torch
from torch import Tensor, nn

from lit_compress.errors import UserError
from lit_compress.functional.importance import magnitude
from lit_compress.functional.patterns import Scope, parse_pattern, wrong_option
from lit_compress.models.targets import match_linears
from lit_compress.nn.compressible import CompressibleLinear
from lit_compress.nn.quantizers import ActivationType, MinMaxWeightQuantizer, input_quantizer, wrong_quantization
from lit_compress.nn.replace_layers import make_compressible

__all__ = ["prune_", "quantize_"]

Model = TypeVar("Model", bound=nn.Module)


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
    try:
        parsed = parse_pattern(pattern)
    except ValueError as error:
        raise UserError(f"prune_: pattern {error}") from error
    if wrong := wrong_option(parsed, sparsity, scope):
        raise UserError(f"prune_: {' '.join(wrong)}")
    found = match_linears(model, targets, ignore, "prune_: targets")
    for name, linear in found.items():
        if reason := parsed.why_not(linear.out_features, linear.in_features):
            raise UserError(f"prune_: pattern {pattern!r} {reason} of {name!r}; choose another, or ignore that linear")
    # All that a user's function may make fail comes before anything is changed.
    masks = parsed.masks([_scores(name, linear, importance) for name, linear in found.items()], sparsity, scope)
    for layer, mask in zip(make_compressible(model, list(found)).values(), masks, strict=True):
        layer.add_mask()
        assert layer.weight_mask is not None
        layer.weight_mask &= mask
        layer.weight *= layer.weight_mask
    return model


def _scores(name: str, linear: nn.Linear, importance: Callable[[Tensor], Tensor]) -> Tensor:
    scores = importance(linear.weight)
    shape, wanted = tuple(scores.shape), tuple(linear.weight.shape)
    if shape != wanted:
        raise UserError(
            f"prune_: importance gives scores of shape {shape} for {name!r} of {wanted}; give one for each weight"
        )
    if scores.isnan().any():
        raise UserError(f"prune_: importance gives NaN for {name!r}; give numbers that can be compared")
    # What is pruned stays pruned, whatever the importance says about a zero.
    mask = linear.weight_mask if isinstance(linear, CompressibleLinear) else None
    return scores if mask is None else scores.masked_fill(~mask, -torch.inf)


def quantize_(
    model: Model,
    bits: int = 8,
    per_channel: bool = True,
    activations: ActivationType = "uint8",
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
    if wrong := wrong_quantization(bits, activations):
        raise UserError(f"quantize_: {' '.join(wrong)}")
    found = match_linears(model, targets, ignore, "quantize_: targets")
    for name, linear in found.items():
        if getattr(linear, "weight_quantizer", None) or getattr(linear, "input_quantizer", None):
            raise UserError(f"quantize_: {name!r} is quantized already; quantize a model once, or ignore that linear")
    for layer in make_compressible(model, list(found)).values():
        layer.weight_quantizer = MinMaxWeightQuantizer(layer.out_features, bits, per_channel)
        layer.input_quantizer = input_quantizer(activations)
        layer.to(layer.weight.device).train(layer.training)
    return model
