"""Models with packed linears: what their configuration says of them, and the way back."""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import PretrainedConfig, PreTrainedModel

from lit_compress.errors import UserError
from lit_compress.models.shapes import METHOD
from lit_compress.nn.packed import PackedLinear
from lit_compress.storage.file import StoredTensor, stored_tensors
from lit_compress.storage.layouts import checked_description

__all__ = [
    "check_packed",
    "check_stored",
    "check_trainable",
    "describe_packed",
    "install_packed",
    "packed_linears",
    "packed_of",
]

_WHERE = "config.json: quantization_config.packed"
_STORED_NAMES = {
    torch.int8: "I8",
    torch.uint8: "U8",
    torch.int32: "I32",
    torch.float32: "F32",
    torch.float8_e4m3fn: "F8_E4M3",
}


def packed_linears(model: nn.Module) -> dict[str, PackedLinear]:
    """Every packed linear by its name inside the base model, in model order."""
    base = getattr(model, "base_model", model)
    return {name: module for name, module in base.named_modules() if isinstance(module, PackedLinear)}


def check_trainable(model: nn.Module, source: str, key: str) -> None:
    """Refuse to train packed linears.

    Args:
        model: any.
        source: where it comes from.
        key: config key of that.

    Raises:
        UserError: it has some.

    """
    if packed_linears(model):
        raise UserError(
            f"{key}: {source!r} is packed, and integers do not learn; give the folder that it was made from"
        )


def describe_packed(model: nn.Module) -> dict[str, dict[str, Any]]:
    """Name inside the base model to :meth:`~lit_compress.nn.packed.PackedLinear.describe`."""
    return {name: linear.describe() for name, linear in packed_linears(model).items()}


def packed_of(config: PretrainedConfig) -> Any:
    """What a configuration says of packed linears; None when it says nothing."""
    entry = getattr(config, "quantization_config", None)
    return entry.get("packed") if isinstance(entry, dict) and entry.get("quant_method") == METHOD else None


def install_packed(model: PreTrainedModel, packed: Any) -> None:
    """Put empty packed linears where a file has them, in place; the values are for loading.

    Raises:
        UserError: not what :func:`describe_packed` writes, or not for this model.

    """
    if not isinstance(packed, dict):
        raise UserError(f"{_WHERE}: is {type(packed).__name__} and must be a mapping of names to descriptions")
    base = model.base_model
    linears = {name: module for name, module in base.named_modules() if isinstance(module, nn.Linear)}
    for name, description in packed.items():
        if name not in linears:
            raise UserError(f"{_WHERE}: {name!r} is not a linear of {type(base).__name__}")
        linear = linears[name]
        # Before memory is taken for it: a damaged one may be larger than any machine.
        ours, (_, _, *theirs) = [linear.out_features, linear.in_features], checked_description(description, name)
        if ours != theirs:
            raise UserError(f"{_WHERE}: {name!r} has the shape {theirs}, and in this model it is {ours}")
        layer = PackedLinear.from_description(description, name)
        if (linear.bias is None) != (layer.bias is None):
            raise UserError(f"{_WHERE}: {name!r} is with bias in one place and without in the other")
        base.set_submodule(name, layer.train(linear.training))
        # Some families initialize the weights of a module's linears from that module, and these have none.
        parent: Any = base.get_submodule(name.rpartition(".")[0])
        parent._is_hf_initialized = True


def check_stored(model: PreTrainedModel, paths: Iterable[str | Path]) -> None:
    """Every buffer of every packed linear is in the files, with its shape and type; before anything is read.

    Transformers itself would continue without a tensor that is missing, and with whatever the memory held.

    Raises:
        UserError: one is not.

    """
    stored: dict[str, StoredTensor] = {}
    for path in paths:
        if not str(path).endswith(".safetensors"):
            raise UserError(
                f"{str(path)!r}: packed weights are read from safetensors files alone; pack the model again"
            )
        stored |= stored_tensors(path)
    for name, linear in packed_linears(model).items():
        for key, buffer in linear.named_buffers(recurse=False):
            tensor = _find(stored, model, f"{name}.{key}")
            if tensor is None:
                raise UserError(f"{name}.{key} is not in the weights; pack or download the model again")
            found, expected = (tensor.dtype, tensor.shape), (_STORED_NAMES[buffer.dtype], tuple(buffer.shape))
            if found != expected:
                raise UserError(
                    f"{name}.{key} is stored as {_words(*found)} and {_WHERE} says {_words(*expected)}; "
                    "pack or download the model again"
                )


def check_packed(model: PreTrainedModel) -> None:
    """Refuse damaged values and make everything ready to run, in place; for after loading.

    Raises:
        UserError: see :meth:`~lit_compress.nn.packed.PackedLinear.check`.

    """
    for name, linear in packed_linears(model).items():
        linear.check(name)
        linear.expand()


def _find(stored: Mapping[str, StoredTensor], model: PreTrainedModel, name: str) -> StoredTensor | None:
    # A file of a model with a head names the base model, a file of a base model does not.
    return stored.get(f"{model.base_model_prefix}.{name}", stored.get(name))


def _words(dtype: str, shape: tuple[int, ...]) -> str:
    return f"{dtype} {list(shape)}"
