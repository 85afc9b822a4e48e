"""Folded or training form to packed model: linears of the transformer layers in 8 bit, without their zeros."""

import json
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from lit_compress.errors import UserError
from lit_compress.export.fold import fold_in_place, shrunk
from lit_compress.export.folded import Folded
from lit_compress.export.hf import save_checked
from lit_compress.export.manifest_file import MANIFEST_FILE, manifest_with_scales, unfinished_lines
from lit_compress.export.scales import LayerScales, scales_of
from lit_compress.files import atomic_folder
from lit_compress.functional.masks import sparsity
from lit_compress.functional.packing import pack_tiles
from lit_compress.models.layout import layer_linears
from lit_compress.models.packed import describe_packed, packed_linears
from lit_compress.models.shapes import METHOD, describe_shapes
from lit_compress.nn.manifest import Manifest
from lit_compress.nn.packed import PackedLinear
from lit_compress.nn.packed_buffers import DTYPES, QMAX, TILES, Format, Precision, quantize_weight
from lit_compress.nn.surgery import compressible_layers

__all__ = ["PackFormat", "choose_format", "pack", "packed_bytes", "save_packed", "write_packed"]

PackFormat = Literal["auto", "dense", "tall_blocks", "blocks", "bitmap", "two_four"]

# What a multiplication with stored blocks costs beside one with the dense 8-bit weight, on an H200, by how often a tile
# of the inputs is read again: 1050 tera-operations/s dense, 909 with tiles of 128 outputs, 606 with 64. Derived.
_COST = {"tall_blocks": 1050 / 909, "blocks": 1050 / 606}
# Fraction of zeros from which a bitmap makes files smaller than 2:4, and than dense by enough to be worth it.
_BITMAP_FROM = 0.6


def pack(
    model: PreTrainedModel,
    format: PackFormat = "auto",
    dtype: Precision = "int8",
    scales: Mapping[str, LayerScales] | None = None,
) -> PreTrainedModel:
    """A copy of ``model`` whose linears inside the transformer layers are packed; its configuration says so.

    Everything else, embeddings, norms, pooler and head, stays what it is.

    Args:
        model: folded, or in its training form, which is folded first.
        format: one for all linears, or ``auto``, which chooses for each: see :func:`choose_format`.
        dtype: ``int8``, or ``fp8`` (e4m3), whose grid is not that of quantization-aware training.
        scales: by the name of the linear. None takes those of the quantizers of a training form; without any, a weight
            gets a scale per channel from its largest magnitude, and inputs have none.

    Raises:
        UserError: a linear that the format cannot hold, a wrong choice, or a model that is packed already.

    """
    for key, value, allowed in (("format", format, get_args(PackFormat)), ("dtype", dtype, get_args(Precision))):
        if value not in allowed:
            raise UserError(f"--{key}: {value!r} must be one of {', '.join(allowed)}")
    if packed_linears(model):
        raise UserError("pack: the model is packed already; pack the one that it was made from")
    smaller = shrunk(model)
    if scales is None and any(compressible_layers(smaller)):
        scales = scales_of(manifest_with_scales(smaller))
    folded = fold_in_place(smaller)
    assert isinstance(folded, PreTrainedModel)
    _pack_in_place(folded, format, dtype, scales or {})
    return folded


def choose_format(values: Tensor) -> Format:
    """The format for a quantized weight ``(out_features, in_features)``.

    Blocks of zeros that a kernel skips come first, where they save more than gathering costs; then what makes the file
    smaller: 2:4 where each four consecutive inputs hold two zeros, a bitmap from 60 % zeros on.

    Example:
        >>> choose_format(torch.ones(128, 64, dtype=torch.int8))
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


def write_packed(folded: Folded, folder: Path) -> None:
    """Fill an empty folder with what :func:`save_packed` writes: int8, the format of each linear chosen for it."""
    _pack_in_place(folded.model, "auto", "int8", scales_of(folded.manifest))
    _fill(folder, folded.model, folded.tokenizer, folded.manifest)


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


def _pack_in_place(
    folded: PreTrainedModel, format: PackFormat, dtype: Precision, scales: Mapping[str, LayerScales]
) -> None:
    """Pack a plain model itself, so that no fp32 weight is in memory twice."""
    if unknown := sorted(set(scales) - {name for name, m in folded.named_modules() if isinstance(m, nn.Linear)}):
        raise UserError(f"scales: {unknown[0]!r} is no linear of this model; they are of another one")
    shapes, names = describe_shapes(folded), list(layer_linears(folded))
    for name in names:
        linear = folded.get_submodule(name)
        assert isinstance(linear, nn.Linear)
        folded.set_submodule(name, _pack_linear(name, linear, format, dtype, scales.get(name, LayerScales())))
    config: Any = folded.config
    config.quantization_config = {"quant_method": METHOD, "shapes": shapes, "packed": describe_packed(folded)}


def _pack_linear(
    name: str, linear: nn.Linear, format: PackFormat, dtype: Precision, scales: LayerScales
) -> PackedLinear:
    kind = DTYPES[dtype]
    # An integer grid has more steps near its ends than fp8.
    weight_scale = scales.weight if dtype == "int8" else None
    if format == "auto":
        format = choose_format(quantize_weight(linear.weight, kind, weight_scale, name)[0])
    packed = PackedLinear.from_linear(linear, format, kind, weight_scale, name)
    for slot, largest in (("input_scale", scales.largest_input), ("output_scale", scales.largest_output)):
        if largest is not None:
            setattr(
                packed, slot, torch.tensor([largest / QMAX[kind]], dtype=torch.float32, device=linear.weight.device)
            )
    return packed


def _fill(folder: Path, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, manifest: Manifest) -> None:
    save_checked(model, folder)
    tokenizer.save_pretrained(folder)
    about = {"lit_compress": version("lit_compress")} | manifest
    (folder / MANIFEST_FILE).write_text(json.dumps(about, indent=1) + "\n")
    (folder / "README.md").write_text(_card(model, manifest))


def _is_two_four(values: Tensor) -> bool:
    if values.shape[1] % 8:
        return False
    return bool((values.float().ne(0).reshape(-1, 4).sum(dim=1) <= 2).all())


def _card(model: PreTrainedModel, manifest: Manifest) -> str:
    linears, sizes = packed_linears(model), packed_bytes(model)
    formats = [linear.format for linear in linears.values()]
    counted = ", ".join(f"{formats.count(format)} {format}" for format in dict.fromkeys(formats))
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
            f"- packed linears: {len(linears)} in {', '.join(types)} ({counted})",
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
