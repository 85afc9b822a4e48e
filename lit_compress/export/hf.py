"""A folded student as a Hugging Face folder that stock transformers loads, after `import lit_compress` if need be."""

import json
from importlib.metadata import version
from pathlib import Path
from typing import Any

from torch import nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from lit_compress.export.fold import fold, shrunk
from lit_compress.files import atomic_folder
from lit_compress.functional.masks import sparsity
from lit_compress.models.groups import KINDS
from lit_compress.models.shapes import describe_shapes
from lit_compress.nn.manifest import Manifest, describe
from lit_compress.nn.quantizers import MinMaxWeightQuantizer, MovingAverageQuantizer
from lit_compress.nn.surgery import compressible_layers

__all__ = ["MANIFEST_FILE", "quantization_scales", "save_folder"]

MANIFEST_FILE = "compression.json"


def save_folder(
    student: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, output: str | Path, overwrite: bool = False
) -> Path:
    """Write config, folded safetensors, tokenizer, model card and manifest; the folder appears whole or not at all.

    Args:
        student: training form; it is not changed.
        tokenizer: saved beside the weights.
        output: folder to make.
        overwrite: replace an existing folder.

    Raises:
        UserError: the folder exists or cannot be written.

    """
    smaller = shrunk(student)  # scales and sparsity are those of what is left
    folded = fold(smaller)
    assert isinstance(folded, PreTrainedModel)
    manifest = {"lit_compress": version("lit_compress")} | manifest_with_scales(smaller)
    shapes = describe_shapes(folded)
    with atomic_folder(output, overwrite) as staging:
        folded.save_pretrained(staging)
        tokenizer.save_pretrained(staging)
        (staging / MANIFEST_FILE).write_text(json.dumps(manifest, indent=1) + "\n")
        (staging / "README.md").write_text(_card(folded, manifest, shapes))
    return Path(output)


def manifest_with_scales(student: nn.Module) -> Manifest:
    """The manifest, with each layer's sparsity and the scales that its weights and inputs were quantized with."""
    manifest, scales = describe(student), quantization_scales(student)
    for name, layer in compressible_layers(student):
        manifest["linears"][name]["sparsity"] = sparsity(layer.effective_weight().detach())
        manifest["linears"][name]["scales"] = scales.get(name, {})
    return manifest


def quantization_scales(student: nn.Module) -> dict[str, dict[str, Any]]:
    """Layer to ``{"weight": [scale per channel], "input": {"scale", "zero_point"}}`` of its enabled quantizers."""
    scales: dict[str, dict[str, Any]] = {}
    for name, layer in compressible_layers(student):
        weight, inputs = layer.weight_quantizer, layer.input_quantizer
        if isinstance(weight, MinMaxWeightQuantizer) and weight.enabled:
            layer.effective_weight()  # a range that still follows the weights is brought up to date by use
            scales.setdefault(name, {})["weight"] = weight.scale.reshape(-1).tolist()
        if isinstance(inputs, MovingAverageQuantizer) and inputs.enabled:
            scale, zero_point = inputs.qparams()
            scales.setdefault(name, {})["input"] = {"scale": scale.item(), "zero_point": zero_point.item()}
    return scales


def _card(model: PreTrainedModel, manifest: dict[str, Any], shapes: dict[str, Any]) -> str:
    layers = manifest.get("linears", {})
    pruned = [entry["sparsity"] for entry in layers.values() if entry["mask"]]
    quantized = sum(1 for entry in layers.values() if (entry["weight_quantizer"] or {}).get("enabled"))
    lines = [
        "---",
        "library_name: transformers",
        "tags: [lit_compress]",
        "---",
        f"# {type(model).__name__}, {'compressed' if len(manifest) > 1 else 'fine-tuned'} with lit_compress",
        "",
        f"- parameters: {sum(p.numel() for p in model.parameters()):,}",
    ]
    if pruned:
        lines.append(
            f"- pruned layers: {len(pruned)}, mean sparsity {sum(pruned) / len(pruned):.4f} (zeros are stored)"
        )
    if quantized:
        lines.append(f"- quantized layers: {quantized}; weights lie on their integer grid, scales in `{MANIFEST_FILE}`")
    lines += [f"- {what} of each layer: {_widths(shapes[what])}" for what in KINDS if what in shapes]
    lines += [f"- rank of `{name}`: {rank}" for name, rank in shapes.get("ranks", {}).items()]
    if shapes:
        lines += [
            "",
            "Transformers alone has no such shapes: it refuses these weights. `import lit_compress` first.",
        ]
    lines += [
        "",
        "```python",
        *(["import lit_compress  # teaches Transformers the shapes of this model"] if shapes else []),
        f"from transformers import AutoTokenizer, {type(model).__name__}",
        "",
        f'model = {type(model).__name__}.from_pretrained("<this folder>")',
        'tokenizer = AutoTokenizer.from_pretrained("<this folder>")',
        "```",
        "",
    ]
    return "\n".join(lines)


def _widths(widths: list[int]) -> str:
    return str(widths[0]) if len(set(widths)) == 1 else ", ".join(map(str, widths))
