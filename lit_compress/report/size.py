"""How large a model is: parameters, non-zeros, and bytes without any general-purpose compression."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import nn

from lit_compress.errors import UserError
from lit_compress.models.layout import layer_linears

__all__ = ["Size", "model_size", "size_of", "sparsity_of"]

_FLOAT_BYTES = 4


@dataclass(frozen=True, kw_only=True)
class Size:
    """Sizes of a set of tensors.

    Args:
        parameters: number of values.
        nonzeros: how many of them are not 0.
        dense_bytes: every value as fp32.
        value_bytes: what is kept: non-zeros of pruned tensors, integers of quantized ones with their scales, and fp32
            for the rest.
        index_bytes: where the non-zeros are: one bit per position of each tensor stored sparsely.

    """

    parameters: int = 0
    nonzeros: int = 0
    dense_bytes: int = 0
    value_bytes: int = 0
    index_bytes: int = 0

    @property
    def compressed_bytes(self) -> int:
        """Values and index together: the honest figure."""
        return self.value_bytes + self.index_bytes

    def __add__(self, other: "Size") -> "Size":
        return Size(**{name: value + getattr(other, name) for name, value in asdict(self).items()})


def sparsity_of(size: Mapping[str, int]) -> float:
    """The fraction of zeros in a size as reports store it.

    Example:
        >>> sparsity_of({"parameters": 10, "nonzeros": 2})
        0.8

    """
    return 1 - size["nonzeros"] / max(size["parameters"], 1)


def model_size(
    model: nn.Module, layers: dict[str, dict[str, Any]], tables: dict[str, dict[str, Any]] | None = None
) -> dict[str, Size]:
    """Sizes of the weights of the linears inside the transformer layers (``encoder``) and of everything (``model``).

    Args:
        model: folded model; a tensor that several modules share counts once.
        layers: manifest of what was done to which layer, as in ``compression.json``; may be empty.
        tables: the same for embedding tables, which are not part of the encoder.

    """
    encoder, rest, inside = Size(), Size(), _encoder_linears(model) or set(layers)
    seen: set[int] = set()
    for name, parameter in model.named_parameters(remove_duplicate=False):
        if id(parameter) in seen:
            continue
        seen.add(id(parameter))
        layer = name.rpartition(".")[0]
        entry = layers.get(layer) if name.endswith(".weight") else None
        table = (tables or {}).get(layer) if name.endswith(".weight") else None
        size = tensor_size(parameter, entry or table)
        in_encoder = layer in inside and name.endswith(".weight")
        encoder, rest = (encoder + size, rest) if in_encoder else (encoder, rest + size)
    return {"encoder": encoder, "model": encoder + rest}


def tensor_size(tensor: torch.Tensor, entry: dict[str, Any] | None) -> Size:
    """Size of one tensor: the smaller of stored dense and stored as non-zeros with a bitmap."""
    count, nonzeros = tensor.numel(), int(torch.count_nonzero(tensor))
    quantizer = (entry or {}).get("weight_quantizer") or {}
    quantized = bool(quantizer.get("enabled"))
    # A table's quantizer does not say its bits: it has always 8.
    bits = quantizer["spec"].get("bits", 8) if quantized else 8 * _FLOAT_BYTES
    scales = len(entry["scales"]["weight"]) if entry and quantized else 0
    return size_of(count, nonzeros, bits, scales, pruned=entry is not None)


def size_of(count: int, nonzeros: int, bits: int = 32, scales: int = 0, pruned: bool = True) -> Size:
    """Size of a tensor of so many values: the smaller of stored dense and stored as non-zeros with a bitmap.

    Args:
        count: values.
        nonzeros: of them.
        bits: of a value.
        scales: of a quantized tensor, in fp32.
        pruned: whether it may be stored as non-zeros.

    Example:
        >>> size_of(800, 160, bits=8).compressed_bytes
        260

    """
    dense, sparse, bitmap = _bytes(count, bits), _bytes(nonzeros, bits), _bytes(count, 1)
    stored_sparse = pruned and sparse + bitmap < dense
    return Size(
        parameters=count,
        nonzeros=nonzeros,
        dense_bytes=count * _FLOAT_BYTES,
        value_bytes=(sparse if stored_sparse else dense) + scales * _FLOAT_BYTES,
        index_bytes=bitmap if stored_sparse else 0,
    )


def _bytes(count: int, bits: int) -> int:
    return -(-count * bits // 8)


def _encoder_linears(model: nn.Module) -> set[str]:
    try:
        return set(layer_linears(model))
    except UserError:  # not one of the families in the table: by the names that most models use
        linears = (name for name, module in model.named_modules() if isinstance(module, nn.Linear))
        return {name for name in linears if ".layer." in name or ".layers." in name}
