"""The folder of a packed model, and what the console says of it."""

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from lit_compress.errors import UserError
from lit_compress.export.activation_ranges import layers_of_static_inputs
from lit_compress.files import atomic_folder
from lit_compress.models.folded import Folded
from lit_compress.models.hf_folder import save_checked, write_manifest
from lit_compress.models.layout import layer_linears
from lit_compress.models.manifest_file import MANIFEST_FILE, unfinished_lines
from lit_compress.models.model_card import card_head, code_of_transformers
from lit_compress.models.pack import LayoutChoice, Ranges, pack_in_place, ranges_of
from lit_compress.models.packed import packed_linears
from lit_compress.models.sentence_embedding import write_sentence_files
from lit_compress.nn.manifest import Manifest
from lit_compress.nn.packed import PackedLinear
from lit_compress.storage.layouts import Precision

__all__ = ["best_precision", "packed_bytes", "packed_lines", "save_packed", "write_packed"]


def save_packed(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    output: str | Path,
    overwrite: bool = False,
    manifest: Manifest | None = None,
) -> Path:
    """Write config, packed safetensors with checksums, tokenizer, model card and manifest; whole or not at all.

    Args:
        model: of :func:`~lit_compress.pack`.
        tokenizer: saved with the weights.
        output: folder to make.
        overwrite: replace an existing folder that an export wrote.
        manifest: what was done to which layer, as of :func:`~lit_compress.models.manifest_file.manifest_with_scales`.

    Raises:
        UserError: nothing is packed, or the folder exists or cannot be written.

    """
    if not packed_linears(model):
        raise UserError("save_packed: the model has no packed linear; pack it first")
    with atomic_folder(output, overwrite) as staging:
        _fill(staging, model, tokenizer, manifest or {})
    return Path(output)


def best_precision(folded: Folded) -> tuple[Precision, str]:
    """The 8-bit type to pack in when nobody says one, and why.

    Integers that training found are kept: fp8 would round them once more. Without any, tensor cores of compute
    capability 9.0 multiply fp8 in wider instructions than int8; elsewhere int8 has more steps and runs on more GPUs.
    """
    if any(folded.quantized(name) is not None for name in layer_linears(folded.model)):
        return "int8", "the integers of training are kept"
    capability = torch.cuda.get_device_capability() if torch.cuda.is_available() else (0, 0)
    if capability >= (9, 0):
        return "fp8", f"faster than int8 on {torch.cuda.get_device_name()}"
    return "int8", "no GPU of compute capability 9.0 or more is here, where fp8 would be faster"


def write_packed(
    folded: Folded,
    folder: Path,
    layout: LayoutChoice = "auto",
    dtype: Precision = "int8",
    ranges: Mapping[str, Ranges] | None = None,
) -> None:
    """Fill an empty folder with what :func:`save_packed` writes.

    Args:
        folded: what to write; not usable afterwards.
        folder: existing and empty.
        layout: as in :func:`~lit_compress.pack`.
        dtype: as in :func:`~lit_compress.pack`.
        ranges: as in :func:`~lit_compress.pack`; None takes those of training.

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
            "train with QuantAwareTraining, or pack a --run whose data is there, which measures them"
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
    write_manifest(manifest, folder)
    write_sentence_files(model, folder)
    (folder / "README.md").write_text(_card(model, manifest))


def _card(model: PreTrainedModel, manifest: Manifest) -> str:
    linears, sizes = packed_linears(model), packed_bytes(model)
    static = sum(linear.input_scale is not None for linear in linears.values())
    types = sorted({linear.describe()["dtype"] for linear in linears.values()})
    return "\n".join(
        [
            *card_head(model, f"{type(model).__name__}, packed with lit_compress"),
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
            *code_of_transformers(model),
            "```",
            "",
        ]
    )
