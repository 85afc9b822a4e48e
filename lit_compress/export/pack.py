"""Folded or training form to packed model: linears of the transformer layers in 8 bit, without their zeros."""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal, get_args

from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from lit_compress import __version__
from lit_compress.errors import UserError
from lit_compress.export.fold import fold_in_place, shrunk
from lit_compress.export.folded import Folded
from lit_compress.export.hf import save_checked
from lit_compress.export.manifest_file import (
    MANIFEST_FILE,
    manifest_with_scales,
    quantized_weights,
    unfinished_lines,
)
from lit_compress.export.ranges import Ranges, layers_of_static_inputs, ranges_of
from lit_compress.files import atomic_folder
from lit_compress.functional.masks import sparsity
from lit_compress.models.layout import layer_linears
from lit_compress.models.packed import describe_packed, packed_linears
from lit_compress.models.shapes import METHOD, describe_shapes
from lit_compress.nn.manifest import Manifest
from lit_compress.nn.packed import PackedLinear
from lit_compress.storage.buffers import DTYPES, TILES, PackedLayout, Precision
from lit_compress.storage.layouts import pack_tiles
from lit_compress.storage.weight import QMAX, QuantizedWeight, round_weight

__all__ = [
    "LayoutChoice",
    "choose_layout",
    "pack",
    "pack_in_place",
    "packed_bytes",
    "packed_lines",
    "save_packed",
    "write_packed",
]

LayoutChoice = Literal["auto", "dense", "tall_blocks", "blocks", "bitmap", "two_four"]

# What a multiplication with stored blocks costs beside one with the dense 8-bit weight, on an H200, by how often a tile
# of the inputs is read again: 1050 tera-operations/s dense, 909 with tiles of 128 outputs, 606 with 64. Derived.
_COST = {"tall_blocks": 1050 / 909, "blocks": 1050 / 606}
# Fraction of zeros from which a bitmap makes files smaller than 2:4, and than dense by enough to be worth it.
_BITMAP_FROM = 0.6


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
        dtype: ``int8``, or ``fp8`` (e4m3), whose grid is not that of quantization-aware training.
        ranges: of inputs and outputs, by the name of the linear. None takes those of the quantizers of a training
            form; without any, inputs have no scale that is known before.

    Raises:
        UserError: a linear that the layout cannot hold, a wrong choice, or a model that is packed already.

    """
    if packed_linears(model):
        raise UserError("pack: the model is packed already; pack the one that it was made from")
    smaller = shrunk(model)
    weights = quantized_weights(smaller)
    if ranges is None:
        ranges = ranges_of(manifest_with_scales(smaller, weights))
    folded = fold_in_place(smaller, weights)
    assert isinstance(folded, PreTrainedModel)
    pack_in_place(folded, weights.get, layout, dtype, ranges)
    return folded


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
        dtype: likewise.
        ranges: likewise.

    Raises:
        UserError: as in :func:`pack`.

    """
    for key, value, allowed in (("layout", layout, get_args(LayoutChoice)), ("dtype", dtype, get_args(Precision))):
        if value not in allowed:
            raise UserError(f"--{key}: {value!r} must be one of {', '.join(allowed)}")
    if unknown := sorted(set(ranges) - {name for name, m in model.named_modules() if isinstance(m, nn.Linear)}):
        raise UserError(f"ranges: {unknown[0]!r} is no linear of this model; they are of another one")
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

    Blocks of zeros that a kernel skips come first, where they save more than gathering costs; then what makes the file
    smaller: 2:4 where each four consecutive inputs hold two zeros, a bitmap from 60 % zeros on.

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


def save_packed(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    output: str | Path,
    overwrite: bool = False,
    manifest: Manifest | None = None,
) -> Path:
    """Write config, packed safetensors with checksums, tokenizer, model card and manifest; whole or not at all.

    Args:
        model: of :func:`pack`.
        tokenizer: saved beside the weights.
        output: folder to make.
        overwrite: replace an existing folder that an export wrote.
        manifest: what was done to which layer, as of :func:`~lit_compress.export.manifest_file.manifest_with_scales`.

    Raises:
        UserError: nothing is packed, or the folder exists or cannot be written.

    """
    if not packed_linears(model):
        raise UserError("save_packed: the model has no packed linear; pack it first")
    with atomic_folder(output, overwrite) as staging:
        _fill(staging, model, tokenizer, manifest or {})
    return Path(output)


def write_packed(
    folded: Folded,
    folder: Path,
    layout: LayoutChoice = "auto",
    dtype: Precision = "int8",
    ranges: Mapping[str, Ranges] | None = None,
) -> None:
    """Fill an empty folder with what :func:`save_packed` writes.

    Args:
        folded: what to write; used up.
        folder: existing and empty.
        layout: as in :func:`pack`.
        dtype: likewise.
        ranges: likewise; None takes those of training.

    """
    ranges = ranges_of(folded.manifest) if ranges is None else ranges
    pack_in_place(folded.model, folded.take, layout, dtype, ranges)
    _fill(folder, folded.model, folded.tokenizer, folded.manifest)


def packed_lines(model: PreTrainedModel) -> list[str]:
    """What was packed, and which ranges are missing, in lines for the console."""
    sizes = packed_bytes(model)
    lines = [
        f"{len(packed_linears(model))} linears packed ({_counted(model)}): {sizes['packed'] / 1e6:.2f} MB, "
        f"in fp32 {sizes['dense'] / 1e6:.2f} MB; everything else {sizes['rest'] / 1e6:.2f} MB"
    ]
    last = [model.get_submodule(name) for name in layers_of_static_inputs(model)]
    if unknown := sum(getattr(linear, "input_scale", None) is None for linear in last):
        lines.append(
            f"{unknown} linears after attention and activation have no range of their inputs, which costs a pass each: "
            "train with QuantAwareTraining, or give --calibration_batches"
        )
    return lines


def _counted(model: PreTrainedModel) -> str:
    """How many linears have each layout."""
    layouts = [linear.format for linear in packed_linears(model).values()]
    return ", ".join(f"{layouts.count(layout)} {layout}" for layout in dict.fromkeys(layouts))


def packed_bytes(model: nn.Module) -> dict[str, int]:
    """Bytes of the packed linears as a file has them (``packed``), of the same in fp32 (``dense``), and of the rest."""
    stored = model.state_dict()
    linears = {name: module for name, module in model.named_modules() if isinstance(module, PackedLinear)}
    sizes = {"packed": 0, "rest": 0}
    seen: set[int] = set()
    for name, tensor in stored.items():
        if tensor.data_ptr() in seen and tensor.numel():
            continue  # tied to another
        seen.add(tensor.data_ptr())
        sizes["packed" if name.rpartition(".")[0] in linears else "rest"] += tensor.numel() * tensor.element_size()
    parameters = sum(m.out_features * (m.in_features + (m.bias is not None)) for m in linears.values())
    return sizes | {"dense": 4 * parameters}


def _fill(folder: Path, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, manifest: Manifest) -> None:
    save_checked(model, folder)
    tokenizer.save_pretrained(folder)
    about = {"lit_compress": __version__} | manifest
    (folder / MANIFEST_FILE).write_text(json.dumps(about, indent=1) + "\n")
    (folder / "README.md").write_text(_card(model, manifest))


def _is_two_four(values: Tensor) -> bool:
    if values.shape[1] % 8:
        return False
    return bool((values.float().ne(0).reshape(-1, 4).sum(dim=1) <= 2).all())


def _card(model: PreTrainedModel, manifest: Manifest) -> str:
    linears, sizes = packed_linears(model), packed_bytes(model)
    static = sum(linear.input_scale is not None for linear in linears.values())
    types = sorted({linear.describe()["dtype"] for linear in linears.values()})
    return "\n".join(
        [
            "---",
            "library_name: transformers",
            "tags: [lit_compress]",
            "---",
            f"# {type(model).__name__}, packed with lit_compress",
            "",
            f"- packed linears: {len(linears)} in {', '.join(types)} ({_counted(model)})",
            f"- their size: {sizes['packed']:,} bytes; in fp32 {sizes['dense']:,}",
            f"- everything else: {sizes['rest']:,} bytes",
            f"- linears whose inputs have a scale known before: {static}",
            f"- `config.json` holds the SHA-256 of every tensor; scales and masks are in `{MANIFEST_FILE}`",
            *(f"- not finished: {line}" for line in unfinished_lines(manifest)),
            "",
            "Transformers alone does not know packed weights and refuses them. `import lit_compress` first.",
            "",
            "```python",
            "import lit_compress  # teaches Transformers to read packed weights",
            f"from transformers import AutoTokenizer, {type(model).__name__}",
            "",
            f'model = {type(model).__name__}.from_pretrained("<this folder>")',
            'tokenizer = AutoTokenizer.from_pretrained("<this folder>")',
            "```",
            "",
        ]
    )
