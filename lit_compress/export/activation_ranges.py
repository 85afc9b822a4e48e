"""Ranges of activations for packing, measured on data where quantization-aware training found none."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from lit_compress.errors import UserError
from lit_compress.models.folded import Folded
from lit_compress.models.layout import LAYOUTS, encoder_layers, family_of
from lit_compress.models.pack import Ranges
from lit_compress.storage.layouts import Precision
from lit_compress.tasks import Batch

__all__ = ["calibrate", "calibrated", "layers_of_static_inputs", "missing_ranges"]

# Fraction of an activation's magnitudes that a calibrated int8 range holds. Of BERT's feed-forward activations a
# handful are many times larger than all others, and a range that reaches them has no steps left for the rest (Wu et al.
# 2020, arXiv 2004.09602, section 4.2, from memory).
PERCENTILE = 0.9999


def calibrated(
    folded: Folded, ranges: Mapping[str, Ranges], batches: Iterable[Batch], dtype: Precision
) -> dict[str, Ranges]:
    """The ranges, with measured ones of the inputs that need one and have none.

    Args:
        folded: model to run.
        ranges: that are known.
        batches: of a data module.
        dtype: of the packed model.

    Raises:
        UserError: all are known.

    """
    names = missing_ranges(folded.model, ranges)
    if not names:
        raise UserError(
            "--calibration_batches: has no effect, quantization-aware training knows the ranges already; leave it out"
        )
    # fp8 has room for what is rare and large.
    share = PERCENTILE if dtype == "int8" else 1.0
    largest = calibrate(folded.model, (batch.inputs for batch in batches), names, share)
    measured = {name: replace(ranges.get(name, Ranges()), largest_input=value) for name, value in largest.items()}
    return {**ranges, **measured}


def missing_ranges(model: PreTrainedModel, ranges: Mapping[str, Ranges]) -> list[str]:
    """The linears of :func:`layers_of_static_inputs` whose input has no range yet."""
    known = {name for name, layer in ranges.items() if layer.largest_input is not None}
    return [name for name in layers_of_static_inputs(model) if name not in known]


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
        raise UserError(
            f"--calibration_batches: inputs of {wrong[0]!r} are all 0, or not finite; they give no scale; "
            "give 0 to measure none"
        )
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
