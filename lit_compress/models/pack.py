"""Folded or training form to packed model: linears of the transformer layers in 8 bits, as non-zeros alone."""

import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, get_args

from torch import Tensor, nn
from transformers import PreTrainedModel

from lit_compress.choices import LayoutChoice
from lit_compress.errors import UserError
from lit_compress.functional.masks import sparsity
from lit_compress.models.fold import fold_in_place
from lit_compress.models.layout import layer_linears
from lit_compress.models.packed import describe_packed, packed_linears
from lit_compress.models.shapes import METHOD, describe_shapes
from lit_compress.nn.packed import PackedLinear
from lit_compress.storage.layouts import DTYPES, TILES, PackedLayout, Precision
from lit_compress.storage.tiles import pack_tiles
from lit_compress.storage.weight import QMAX, QuantizedWeight, round_weight

__all__ = ["LayoutChoice", "Ranges", "choose_layout", "pack", "pack_in_place", "ranges_of"]

# What a multiplication with stored blocks costs relative to one with the dense 8-bit weight: on an H100 and with 32,768
# rows blocks took as long as dense at 50 % of zeros, tall ones at 50 % in int8 and at 63 and 73 % in fp8
# (docs/kernels.md).
_COST = {"tall_blocks": 2.5, "blocks": 2.0}
# Fraction of zeros from which a bitmap makes files smaller than 2:4, and than dense by enough to be worth it.
_BITMAP_FROM = 0.6


@dataclass(frozen=True, kw_only=True)
class Ranges:
    """What is known of a linear's activations before it is packed.

    Args:
        largest_input: magnitude that the 8-bit form of its input must reach.
        largest_output: magnitude that the 8-bit form of its output must reach.

    """

    largest_input: float | None = None
    largest_output: float | None = None


def pack(
    model: PreTrainedModel,
    layout: LayoutChoice = "auto",
    dtype: Precision = "int8",
    ranges: Mapping[str, Ranges] | None = None,
) -> PreTrainedModel:
    """A copy of ``model`` whose linears inside the transformer layers are packed; its configuration says so.

    Everything else, embeddings, norms, pooler and head, stays what it is.

    Args:
        model: plain, or in its training form, which is folded first: its quantizers know the integers.
        layout: one for all linears, or ``auto``, which chooses for each: see :func:`choose_layout`.
        dtype: ``int8``, or ``fp8`` (e4m3), whose values are not those of quantization-aware training.
        ranges: of inputs and outputs, by the name of the linear. None takes those of the quantizers of a training
            form; without any, inputs have no scale that is known before.

    Raises:
        UserError: a linear that the layout cannot hold, a wrong choice, or a model that is packed already.

    """
    if packed_linears(model):
        raise UserError("pack: the model is packed already; pack the one that it was made from")
    packed = copy.deepcopy(model)
    manifest, weights = fold_in_place(packed)
    pack_in_place(packed, weights.get, layout, dtype, ranges_of(manifest) if ranges is None else ranges)
    return packed


def pack_in_place(
    model: PreTrainedModel,
    weight_of: Callable[[str], QuantizedWeight | None],
    layout: LayoutChoice,
    dtype: Precision,
    ranges: Mapping[str, Ranges],
) -> None:
    """Pack a plain model itself, so that no fp32 weight is in memory twice.

    Args:
        model: changed in place.
        weight_of: name of a linear to its integers; None where it has none.
        layout: as in :func:`pack`.
        dtype: as in :func:`pack`.
        ranges: as in :func:`pack`.

    Raises:
        UserError: as in :func:`pack`.

    """
    for key, value, allowed in (("layout", layout, get_args(LayoutChoice)), ("dtype", dtype, get_args(Precision))):
        if value not in allowed:
            raise UserError(f"--{key}: {value!r} must be one of {', '.join(allowed)}")
    if unknown := sorted(set(ranges) - {name for name, m in model.named_modules() if isinstance(m, nn.Linear)}):
        raise UserError(f"ranges: {unknown[0]!r} is not a linear of this model; they are of another one")
    shapes, kind = describe_shapes(model), DTYPES[dtype]
    for name in list(layer_linears(model)):
        linear = model.get_submodule(name)
        assert isinstance(linear, nn.Linear)
        # Integers have more steps near the ends of their range than fp8.
        weight = weight_of(name) if dtype == "int8" else None
        weight = weight or round_weight(linear.weight, kind, name=name)
        chosen = choose_layout(weight.values) if layout == "auto" else layout
        packed = PackedLinear.from_weight(weight, linear.bias, chosen, name).train(linear.training)
        known = ranges.get(name, Ranges())
        for slot, largest in (("input_scale", known.largest_input), ("output_scale", known.largest_output)):
            if largest is not None:
                setattr(packed, slot, packed.w_scale.new_tensor([largest / QMAX[kind]]))
        model.set_submodule(name, packed)
    config: Any = model.config
    config.quantization_config = {"quant_method": METHOD, "shapes": shapes, "packed": describe_packed(model)}


def choose_layout(values: Tensor) -> PackedLayout:
    """The format for a quantized weight ``(out_features, in_features)``.

    Blocks of zeros that a kernel skips come first, where the others take less time than the dense weight; then what
    makes the file smaller: 2:4 where each four consecutive inputs hold two zeros, a bitmap from 60 % zeros on.

    Example:
        >>> choose_layout(torch.ones(128, 64, dtype=torch.int8))
        'dense'

    """
    costs = {"dense": 1.0}
    for format, layout in TILES.items():
        if values.shape[1] % layout[1] == 0:
            costs[format] = _COST[format] * pack_tiles(values, *layout).values.numel() / values.numel()
    best = min(costs, key=lambda format: costs[format])
    if best != "dense":
        return best  # type: ignore[return-value]
    if sparsity(values.float()) >= _BITMAP_FROM:
        return "bitmap"
    return "two_four" if _is_two_four(values) else "dense"


def ranges_of(manifest: Mapping[str, Any]) -> dict[str, Ranges]:
    """The ranges in a manifest with scales, of a model or of a ``compression.json``, by the name of the linear.

    An affine range ``[low, high]`` becomes the symmetric one that holds it, ``max(-low, high)``: a range that begins
    at 0 loses half its steps that way.

    Raises:
        UserError: not such a manifest.

    """
    try:
        return {name: _of_layer(entry) for name, entry in manifest.get("linears", {}).items()}
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise UserError(f"compression.json: damaged: {type(error).__name__} {error}; export the model again") from error


def _of_layer(entry: Mapping[str, Any]) -> Ranges:
    scales = entry.get("scales") or {}
    ranges = {
        f"largest_{slot}": _largest(scales[slot], entry[f"{slot}_quantizer"]["spec"])
        for slot in ("input", "output")
        if slot in scales
    }
    return Ranges(**ranges)


def _largest(known: Mapping[str, Any], spec: Mapping[str, Any]) -> float | None:
    steps = 2 ** spec["bits"] - 1
    reach = steps // 2 if spec["symmetric"] else max(known["zero_point"], steps - known["zero_point"])
    largest = known["scale"] * reach
    # A range that never saw a batch.
    return largest if 0 < largest < float("inf") else None


def _is_two_four(values: Tensor) -> bool:
    if values.shape[1] % 8:
        return False
    return bool((values.float().ne(0).reshape(-1, 4).sum(dim=1) <= 2).all())
