"""``compression.json``: what each layer has become and its scales, as a folder has it and read back from one."""

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from lit_compress.errors import UserError, first_line
from lit_compress.functional.masks import sparsity
from lit_compress.nn.attention import ATTENTION_SLOTS, attention_quantizers
from lit_compress.nn.manifest import Manifest, describe
from lit_compress.nn.quantizers import MovingAverageQuantizer
from lit_compress.nn.replace_layers import compressible_layers, compressible_tables
from lit_compress.storage.weight import QuantizedWeight

__all__ = [
    "MANIFEST_FILE",
    "UNFINISHED",
    "check_unfinished",
    "manifest_with_scales",
    "quantized_weights",
    "read_manifest",
    "require_finished",
    "unfinished_lines",
    "weight_of",
    "weight_scales",
]

MANIFEST_FILE = "compression.json"
UNFINISHED = "unfinished"  # its entry for what a training that stopped early left undone
_MOST_BYTES = 2**28  # of a compression.json; BERT-large with a scale per row of every table has about 2 MB


def quantized_weights(student: nn.Module) -> dict[str, QuantizedWeight]:
    """The integers of every linear and table that is quantized, by module name; each layer makes its own."""
    layers = [*compressible_layers(student), *compressible_tables(student)]
    return {name: weight for name, layer in layers if (weight := layer.quantized_weight()) is not None}


def manifest_with_scales(student: nn.Module, weights: Mapping[str, QuantizedWeight] | None = None) -> Manifest:
    """The manifest, with each layer's sparsity and ``"scales"``: those of its enabled quantizers, as JSON types.

    A layer or table has ``"weight": [scale per channel, row or tensor]`` (an affine table also
    ``"weight_zero_point"``); inputs, outputs and the tensors inside attention have ``{"scale", "zero_point"}``.

    Args:
        student: in its training form.
        weights: of :func:`quantized_weights`, where they are known already.

    """
    weights = quantized_weights(student) if weights is None else weights
    manifest = describe(student)
    for name, layer in compressible_layers(student):
        weight = weights[name].values if name in weights else layer.effective_weight().detach()
        found = _activation_scales({"input": layer.input_quantizer, "output": layer.output_quantizer})
        manifest["linears"][name] |= {"sparsity": sparsity(weight), "scales": weight_scales(weights.get(name)) | found}
    for name, entry in manifest.get("embeddings", {}).items():
        entry["scales"] = weight_scales(weights.get(name))
    for name, quantizers in attention_quantizers(student):
        found = _activation_scales({slot: getattr(quantizers, slot) for slot in ATTENTION_SLOTS})
        manifest["attention"][name]["scales"] = found
    return manifest


def weight_scales(weight: QuantizedWeight | None) -> dict[str, Any]:
    """The scales of a weight, as ``compression.json`` has them; none of one that is not quantized."""
    if weight is None:
        return {}
    zero_point = {"weight_zero_point": weight.zero_point} if weight.values.dtype == torch.uint8 else {}
    return {"weight": weight.scale.reshape(-1).tolist()} | zero_point


def weight_of(name: str, weight: Tensor, entry: Mapping[str, Any] | None) -> QuantizedWeight | None:
    """The integers of a weight that was read in floating point; None when its entry says that it is not quantized.

    Args:
        name: of the module, for errors.
        weight: folded, ``(rows, columns)``.
        entry: of the manifest.

    Raises:
        UserError: the weight is not quantized with the scale of the entry; it was changed afterwards.

    """
    scales = (entry or {}).get("scales", {})
    if entry is None or scales.get("weight") is None:
        return None
    scale = torch.tensor(scales["weight"], dtype=torch.float32)
    bits = int(entry["weight_quantizer"]["spec"].get("bits", 8))
    try:
        return QuantizedWeight.from_dequantized(weight, scale, scales.get("weight_zero_point"), bits)
    except ValueError as error:
        raise UserError(f"{MANIFEST_FILE}: {name!r} {error}; remove its entry") from error


def _activation_scales(quantizers: dict[str, Any]) -> dict[str, dict[str, Any]]:
    scales = {}
    for name, quantizer in quantizers.items():
        if isinstance(quantizer, MovingAverageQuantizer) and quantizer.enabled:
            scale, zero_point = quantizer.qparams()
            scales[name] = {"scale": scale.item(), "zero_point": zero_point.item()}
    return scales


def read_manifest(folder: Path, model: PreTrainedModel) -> Manifest:
    """The manifest of a folder; empty where there is none.

    Raises:
        UserError: damaged, or of another model.

    """
    path = folder / MANIFEST_FILE
    if not path.is_file():
        return {}
    try:
        if path.stat().st_size > _MOST_BYTES:
            raise ValueError(f"it is larger than {_MOST_BYTES} bytes")
        content = json.loads(path.read_text(encoding="utf-8"))
        manifest = {kind: content[kind] for kind in ("linears", "embeddings", "attention") if kind in content}
        _check_manifest(manifest, model)
        if left := check_unfinished(content.get(UNFINISHED, [])):
            manifest[UNFINISHED] = left
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError, OSError) as error:
        if isinstance(error, UserError):
            raise
        reason = first_line(error)
        raise UserError(f"--model: {str(path)!r} is damaged: {reason}; export the model again") from error
    return manifest


def check_unfinished(entries: Any) -> list[dict[str, Any]]:
    """The entries of :meth:`lit_compress.strategies.Strategy.unfinished`, as a file has them.

    Raises:
        ValueError: they are something else.

    """
    kinds = {"strategy": str, "asked": str, "reached": str, "step": int, "end": int, "of": int}
    for entry in entries if isinstance(entries, list) else [entries]:
        if not isinstance(entry, dict) or {key: type(value) for key, value in entry.items()} != kinds:
            raise ValueError(f"{UNFINISHED} must be a list of what strategies left undone")
    return entries


def unfinished_lines(manifest: Mapping[str, Any]) -> list[str]:
    """What a training that stopped early left undone, a line for each strategy."""
    return [
        f"{left['strategy']}: asked {left['asked']}, reached {left['reached']}: "
        f"stopped at step {left['step']} of {left['of']}, complete at step {left['end']}"
        for left in manifest.get(UNFINISHED, [])
    ]


def require_finished(manifest: Mapping[str, Any], allowed: bool) -> None:
    """Refuse a model whose compression is not complete, unless it was asked for.

    Raises:
        UserError: it is not complete.

    """
    if (lines := unfinished_lines(manifest)) and not allowed:
        raise UserError(f"{'; '.join(lines)}; train it to that step, or allow it with --unfinished true")


def _check_manifest(manifest: Manifest, model: PreTrainedModel) -> None:
    """Refuse entries of modules that do not exist or with scales that no module of theirs can have."""
    modules = dict(model.named_modules())
    kinds = {"linears": nn.Linear, "embeddings": nn.Embedding, "attention": nn.Module}
    for kind, entries in manifest.items():
        for name, entry in entries.items():
            if not isinstance(modules.get(name), kinds[kind]):
                raise ValueError(f"the model has no {name!r} among its {kind}")
            scales = dict(entry.get("scales", {}))
            if weight := scales.pop("weight", None):
                _check_weight_scales(name, weight, modules[name], entry)
                _check_integer(name, scales.pop("weight_zero_point", 0), 0, 255)
            slots = ATTENTION_SLOTS if kind == "attention" else ("input", "output")
            if unknown := sorted(set(scales) - set(slots)):
                raise ValueError(f"{name!r} has scales of an unknown {unknown[0]!r}")
            for slot, known in scales.items():
                if not _is_scale(known["scale"]):
                    raise ValueError(f"{slot} of {name!r} has the scale {known['scale']!r}")
                _check_integer(name, known["zero_point"], 0, 255)
                _check_integer(name, _spec(entry, slot, kind).get("bits"), 2, 8)


def _check_weight_scales(name: str, scales: Any, module: nn.Module, entry: dict[str, Any]) -> None:
    rows = module.get_parameter("weight").shape[0]
    if len(scales) not in (1, rows) or not all(_is_scale(scale) for scale in scales):
        raise ValueError(f"{name!r} must have 1 or {rows} scales, all finite and above 0")
    _check_integer(name, entry["weight_quantizer"]["spec"].get("bits", 8), 2, 8)


def _spec(entry: dict[str, Any], slot: str, kind: str) -> dict[str, Any]:
    return entry[slot if kind == "attention" else f"{slot}_quantizer"]["spec"]


def _is_scale(value: Any) -> bool:
    return isinstance(value, float) and math.isfinite(value) and value > 0


def _check_integer(name: str, value: Any, low: int, high: int) -> None:
    if not isinstance(value, int) or isinstance(value, bool) or not low <= value <= high:
        raise ValueError(f"{name!r} has {value!r} where a whole number from {low} to {high} belongs")
