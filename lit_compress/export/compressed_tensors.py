"""A folded model as a folder of the compressed-tensors package, which Transformers and vLLM's pooling models read.

Dense formats only: ``int-quantized`` (int8, with quantized inputs) and, for weights of fewer bits without quantized
inputs, ``pack-quantized``. The package's sparse formats are gone since its version 0.15, and Transformers loads what is
left of them as random weights.
"""

import contextlib
import io
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import PreTrainedModel

from lit_compress.errors import UserError, first_line
from lit_compress.export.graph_form import round_weights
from lit_compress.extras import optional
from lit_compress.models.folded import Folded, stored_state
from lit_compress.models.hf_folder import write_companions
from lit_compress.models.load import quiet_transformers
from lit_compress.models.model_card import code_of_transformers
from lit_compress.models.shapes import describe_shapes
from lit_compress.storage.weight import QuantizedWeight

__all__ = ["write_compressed_tensors"]

_INT, _PACKED, _MIXED = "int-quantized", "pack-quantized", "mixed-precision"


@torch.no_grad()
def write_compressed_tensors(folded: Folded, folder: Path) -> None:
    """Write weights as integers with their scales, configuration, tokenizer, manifest and card.

    Linears keep the scales of quantization-aware training. A model without any has its encoder's linears rounded to 8
    bits, a scale per row, and inputs with a range per token (W8A8). Quantized tables keep their values, in fp32.

    Args:
        folded: what to write; not usable afterwards.
        folder: existing and empty.

    Raises:
        UserError: the package is missing; shapes that it cannot say; or it does not read the folder as it was meant.

    """
    package = optional("compressed_tensors", "compressed-tensors")
    model = folded.model
    if shapes := describe_shapes(model):
        raise UserError(
            f"--to: compressed-tensors has no way to say that {', '.join(shapes)} differ between layers or from the "
            "configuration; export to sparse, onnx or openvino"
        )
    linears = folded.manifest.get("linears", {})
    if not any((entry.get("scales") or {}).get("weight") for entry in linears.values()):
        round_weights(folded)
        linears = folded.manifest["linears"]
        for entry in linears.values():
            if (entry.get("scales") or {}).get("weight"):
                entry["input_quantizer"] = {"kind": "DynamicTokenQuantizer", "spec": {"bits": 8}, "enabled": True}
    weights = {name: weight for name in linears if (weight := folded.quantized(name)) is not None}
    schemes = {name: _scheme(integers, linears[name]) for name, integers in weights.items()}
    stored = stored_state(model)
    for name, integers in weights.items():
        stored |= _parts(name, stored.pop(f"{name}.weight"), integers, schemes[name], linears[name])
    save_file(
        {name: part.contiguous() for name, part in stored.items()}, folder / "model.safetensors", {"format": "pt"}
    )
    model.config.architectures = [type(model).__name__]
    model.config.quantization_config = _config(schemes, model, package.__version__)
    model.config.save_pretrained(folder)
    usage = code_of_transformers(model, decompress=True)
    write_companions(model, folded.tokenizer, folded.manifest, folder, usage)
    del stored
    nn.Module.to(model, "meta")  # gives its memory back before the package takes as much
    _check(model, weights, folder)


def _scheme(integers: QuantizedWeight, entry: dict[str, Any]) -> dict[str, Any]:
    """The scheme of a layer in the package's words."""
    quantizer = entry.get("input_quantizer") or {}
    known = entry["scales"].get("input")
    inputs: dict[str, Any] | None = None
    if known is not None:
        inputs = {"symmetric": bool(quantizer["spec"]["symmetric"]), "strategy": "tensor", "dynamic": False}
    elif quantizer.get("kind") == "DynamicTokenQuantizer" and quantizer.get("enabled"):
        inputs = {"symmetric": True, "strategy": "token", "dynamic": True}
    if inputs is not None:
        inputs |= {"num_bits": int(quantizer["spec"].get("bits", 8)), "type": "int", "group_size": None}
    strategy = "channel" if integers.scale.numel() > 1 else "tensor"
    packed = inputs is None and integers.bits < 8 and strategy == "channel"
    weights = {"num_bits": integers.bits, "type": "int", "symmetric": True, "strategy": strategy}
    return {
        "format": _PACKED if packed else _INT,
        "weights": weights | {"group_size": None, "dynamic": False},
        "input_activations": inputs,
        "output_activations": None,
    }


def _parts(
    name: str, weight: Tensor, integers: QuantizedWeight, scheme: dict[str, Any], entry: dict[str, Any]
) -> dict[str, Tensor]:
    channel = scheme["weights"]["strategy"] == "channel"
    parts = {"weight_scale": integers.scale if channel else integers.scale.reshape(1)}
    if scheme["format"] == _PACKED:
        pack = optional("compressed_tensors.compressors.pack_quantized.helpers", "compressed-tensors").pack_to_int32
        parts |= {"weight_packed": pack(integers.values, integers.bits), "weight_shape": torch.tensor(weight.shape)}
    else:
        parts["weight"] = integers.values
    if (known := entry["scales"].get("input")) is not None:
        parts["input_scale"] = torch.tensor([known["scale"]], dtype=torch.float32)
        if not scheme["input_activations"]["symmetric"]:
            # The package's integers are signed; the values are the same.
            bits = scheme["input_activations"]["num_bits"]
            parts["input_zero_point"] = torch.tensor([known["zero_point"] - 2 ** (bits - 1)], dtype=torch.int8)
    return {f"{name}.{part}": value for part, value in parts.items()}


def _config(schemes: dict[str, dict[str, Any]], model: PreTrainedModel, version: str) -> dict[str, Any]:
    groups: list[dict[str, Any]] = []
    for name, scheme in schemes.items():
        group = next((group for group in groups if all(group[key] == value for key, value in scheme.items())), None)
        if group is None:
            groups.append(group := {"targets": []} | scheme)
        group["targets"].append(name)
    linears = [name for name, module in model.named_modules() if isinstance(module, nn.Linear)]
    if getattr(model, "pooler", model) is None:  # Transformers makes one, whose weights are in no file
        linears.append("pooler.dense")
    if len(groups) == 1:
        groups[0]["targets"] = ["Linear"]  # as most files say it; the rest is ignored by name
    formats = {group["format"] for group in groups}
    return {
        "quant_method": "compressed-tensors",
        "version": version,
        "format": formats.pop() if len(formats) == 1 else _MIXED,
        "quantization_status": "compressed",
        "config_groups": {f"group_{number}": group for number, group in enumerate(groups)},
        "ignore": [name for name in linears if name not in schemes],
        "kv_cache_scheme": None,
        "global_compression_ratio": None,
    }


def _check(model: PreTrainedModel, weights: dict[str, QuantizedWeight], folder: Path) -> None:
    """Load the folder as its users do; the package decompresses with the first forward pass."""
    try:
        with quiet_transformers(), contextlib.redirect_stderr(io.StringIO()):  # four progress bars of the package
            loaded: Any = type(model).from_pretrained(folder, dtype=torch.float32)
            loaded(input_ids=torch.zeros(1, 2, dtype=torch.long))
    except Exception as error:
        raise UserError(f"export: compressed-tensors does not read the folder: {first_line(error)}") from error
    for name, integers in weights.items():
        if not torch.equal(loaded.get_submodule(name).weight, integers.weight()):
            raise UserError(f"export: compressed-tensors reads other weights of {name!r}; nothing was written")
