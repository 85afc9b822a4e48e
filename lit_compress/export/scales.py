"""Scales for packing: those that quantization-aware training found, and ranges measured on data."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from lit_compress.errors import UserError
from lit_compress.models.layout import LAYOUTS, encoder_layers, family_of

__all__ = ["LayerScales", "calibrate", "layers_of_static_inputs", "scales_of"]

# Share of an activation's magnitudes that a calibrated int8 range holds. Of BERT's feed-forward activations a handful
# are many times larger than all others, and a grid that reaches them has no steps left for the rest (Wu et al. 2020,
# arXiv 2004.09602, section 4.2, from memory).
PERCENTILE = 0.9999


@dataclass(frozen=True, kw_only=True)
class LayerScales:
    """What is known of a linear before it is packed.

    Args:
        weight: fp32 scale per channel ``(out_features,)`` or per tensor ``(1,)`` of the integer grid of its weight.
        largest_input: magnitude that the 8-bit form of its input must reach.
        largest_output: likewise of its output.

    """

    weight: Tensor | None = field(default=None, compare=False)
    largest_input: float | None = None
    largest_output: float | None = None


def scales_of(manifest: Mapping[str, Any]) -> dict[str, LayerScales]:
    """The scales in a manifest with scales, of a model or of a ``compression.json``, by the name of the linear.

    An affine range ``[low, high]`` becomes the symmetric one that holds it, ``max(-low, high)``: a range that begins
    at 0 loses half its steps that way.

    Raises:
        UserError: not such a manifest.

    """
    try:
        return {name: _of_layer(entry) for name, entry in manifest.get("linears", {}).items()}
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise UserError(f"compression.json: damaged: {type(error).__name__} {error}; export the model again") from error


@torch.inference_mode()
def calibrate(
    model: PreTrainedModel, batches: Iterable[Mapping[str, Tensor]], names: Sequence[str], share: float = PERCENTILE
) -> dict[str, float]:
    """The largest magnitude of each linear's input, tokens of padding left out.

    Args:
        model: folded, in evaluation mode; it is run on its own device.
        batches: keyword arguments of its forward pass, with ``attention_mask``.
        names: of the linears.
        share: of a batch's magnitudes that must be in the range; 1 takes the absolute maximum. Of several batches the
            largest range counts.

    Returns:
        Name to magnitude.

    """
    largest: dict[str, float] = {}
    for batch in batches:
        batch = {name: value.to(model.device) for name, value in batch.items()}
        with _inputs({name: model.get_submodule(name) for name in names}) as inputs:
            model(**batch)
        real = batch["attention_mask"].bool() if "attention_mask" in batch else None
        for name, x in inputs:
            rows = x[real] if real is not None and x.shape[:-1] == real.shape else x
            largest[name] = max(largest.get(name, 0.0), _quantile(rows.abs().flatten().float(), share))
    if wrong := [name for name, value in largest.items() if not 0 < value < float("inf")]:
        raise UserError(f"--calibration_batches: inputs of {wrong[0]!r} are all 0, or not finite; they give no scale")
    return largest


def layers_of_static_inputs(model: PreTrainedModel) -> list[str]:
    """The linears after attention and after the activation: their inputs can only be rounded with a scale known before.

    All others read what a norm has written, where each row is seen as a whole and gets its own. Empty for a family that
    is not in the table of layouts.
    """
    if family_of(model) not in LAYOUTS:
        return []
    layout = LAYOUTS[family_of(model)]
    names = {id(module): name for name, module in model.named_modules()}
    found = []
    for layer in encoder_layers(model):
        inside = dict(layer.named_modules())
        found += [
            names[id(inside[path])] for path in (layout.attention_output, layout.feed_forward_out) if path in inside
        ]
    return found


def _of_layer(entry: Mapping[str, Any]) -> LayerScales:
    scales = entry.get("scales") or {}
    weight = torch.tensor(scales["weight"], dtype=torch.float32) if "weight" in scales else None
    ranges = {
        f"largest_{slot}": _largest(scales[slot], entry[f"{slot}_quantizer"]["spec"])
        for slot in ("input", "output")
        if slot in scales
    }
    return LayerScales(weight=weight, **ranges)


def _largest(grid: Mapping[str, Any], spec: Mapping[str, Any]) -> float | None:
    steps = 2 ** spec["bits"] - 1
    reach = steps // 2 if spec["symmetric"] else max(grid["zero_point"], steps - grid["zero_point"])
    largest = grid["scale"] * reach
    # A range that never saw a batch.
    return largest if 0 < largest < float("inf") else None


@contextmanager
def _inputs(linears: Mapping[str, nn.Module]) -> Iterator[list[tuple[str, Tensor]]]:
    """Names and inputs of each call of each module, while the block lasts; a layer that is repeated has several."""
    seen: list[tuple[str, Tensor]] = []
    handles = [
        module.register_forward_hook(lambda _, inputs, __, name=name: seen.append((name, inputs[0])))  # type: ignore[misc]
        for name, module in linears.items()
    ]
    try:
        yield seen
    finally:
        for handle in handles:
            handle.remove()


def _quantile(magnitudes: Tensor, share: float) -> float:
    # torch.quantile takes no more than 2^24 numbers.
    rank = max(1, min(len(magnitudes), round(share * len(magnitudes))))
    return magnitudes.kthvalue(rank).values.item()
