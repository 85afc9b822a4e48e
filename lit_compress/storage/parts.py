"""The non-zeros of weights, as integers where they are quantized: their parts in a file, and the way back.

A matrix ``W`` that is stored so has, under its own name, its values in one row, so that whoever does not know this form
finds another shape than expected and refuses::

    W             (values,)      fp32, int8 or uint8: those that are not zero, row by row; all without a bitmap
    W_bitmap      (rows, bytes)  uint8, a bit for each position, see :mod:`lit_compress.storage.bitmap`
    W_scale       (rows or 1,)   fp32, of integers
    W_zero_point  (1,)           uint8, of an affine quantizer; never with a bitmap

All other tensors are stored as they are. What such a file says is checked before it is believed.
"""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lit_compress.errors import UserError
from lit_compress.storage.bitmap import pack_bitmap, unpack_bitmap
from lit_compress.storage.file import open_tensors
from lit_compress.storage.weight import QuantizedWeight

__all__ = ["BITMAP", "PARTS", "check_parts", "decode", "encode"]

BITMAP = "bitmap"  # `quantization_config.storage` in config.json
PARTS = ("_bitmap", "_scale", "_zero_point")


def encode(weight: Tensor | QuantizedWeight) -> dict[str, Tensor] | None:
    """Parts of a weight by the end of their name, or None when storing it as it is takes no more bytes.

    Args:
        weight: quantized integers, or fp32 ``(rows, columns)``.

    Example:
        >>> parts = encode(torch.eye(8))
        >>> {name: tuple(part.shape) for name, part in parts.items()}
        {'': (8,), '_bitmap': (8, 1)}

    """
    quantized = isinstance(weight, QuantizedWeight)
    stored = weight.values if quantized else weight
    parts: dict[str, Tensor] = {}
    bitmap_bytes = stored.shape[0] * -(-stored.shape[1] // 8)
    if stored.dtype != torch.uint8 and int((stored == 0).sum()) * stored.element_size() > bitmap_bytes:
        bits, values, _ = pack_bitmap(stored)
        parts |= {"": values, "_bitmap": bits}
    elif quantized:
        parts[""] = stored.reshape(-1)
    if quantized:
        parts["_scale"] = weight.scale.reshape(-1)
        if stored.dtype == torch.uint8:
            parts["_zero_point"] = torch.tensor([weight.zero_point], dtype=torch.uint8)
    return parts or None


def decode(parts: Mapping[str, Tensor], shape: tuple[int, ...]) -> Tensor:
    """The fp32 weight of a shape that :func:`encode` was given, bit for bit (but -0 comes back as 0).

    Raises:
        ValueError: the parts do not fit each other or the shape.

    """
    values, bitmap, scale, zero_point = (parts.get(end) for end in ("", *PARTS))
    _check_fit(values, bitmap, scale, zero_point, shape)
    assert values is not None
    dense = values.reshape(shape) if bitmap is None else unpack_bitmap(bitmap, values, None, shape[1])
    dense = dense.float()
    if zero_point is not None:
        dense = dense - zero_point.item()
    return dense if scale is None else dense * scale.reshape(-1, 1)


def check_parts(path: str | Path, shapes: Mapping[str, tuple[int, ...]]) -> None:
    """Refuse a file that is damaged or does not hold weights of these shapes; one weight at a time is in memory.

    Args:
        path: safetensors file.
        shapes: of the parameters of the model that is to be loaded, by name.

    Raises:
        UserError: whatever is wrong first.

    """
    with open_tensors(path) as file:
        for name, parts in _weights(file):
            if list(parts) == [""] and parts[""].ndim != 1:
                continue  # stored as it is, and Transformers compares shapes itself
            if (shape := shapes.get(name)) is None or (list(parts) == [""] and tuple(parts[""].shape) == shape):
                continue
            try:
                decode(parts, shape)
            except ValueError as error:
                raise UserError(f"{str(path)!r}: {name!r} is wrong: {error}; export it again") from error


def _weights(file: Any) -> Iterator[tuple[str, dict[str, Tensor]]]:
    """Names and parts of the weights in a file; a plain tensor has one part, ``""``."""
    names = set(file.keys())
    owners = {name: _owner(name, names) for name in names}
    for name in sorted(name for name in names if owners[name] is None):
        ends = ("", *(end for end in PARTS if owners.get(name + end) == name))
        yield name, {end: file.get_tensor(name + end) for end in ends}


def _owner(name: str, names: set[str]) -> str | None:
    """The weight that a part belongs to; None for a weight."""
    for end in PARTS:
        if name.endswith(end) and (owner := name.removesuffix(end)) in names:
            return owner
    return None


def _check_fit(
    values: Tensor | None,
    bitmap: Tensor | None,
    scale: Tensor | None,
    zero_point: Tensor | None,
    shape: tuple[int, ...],
) -> None:
    kinds = (torch.float32,) if scale is None else (torch.int8, torch.uint8)
    if values is None or values.ndim != 1 or values.dtype not in kinds or len(shape) != 2:
        raise ValueError(f"its values must be one row of {' or '.join(str(kind) for kind in kinds)}, of a matrix")
    if bitmap is None and values.numel() != shape[0] * shape[1]:
        raise ValueError(f"it has {values.numel()} values and the model {shape[0]} x {shape[1]}")
    if bitmap is not None and (zero_point is not None or bitmap.ndim != 2 or bitmap.shape[0] != shape[0]):
        raise ValueError(f"its bitmap must have {shape[0]} rows and its integers no zero point")
    if (zero_point is not None) != (values.dtype == torch.uint8):
        raise ValueError("unsigned integers have a zero point, and others have none")
    if zero_point is not None and (zero_point.dtype != torch.uint8 or zero_point.shape != (1,)):
        raise ValueError("its zero point must be one torch.uint8")
    if scale is not None and (scale.dtype != torch.float32 or scale.shape not in ((1,), (shape[0],))):
        raise ValueError(f"its scales must be 1 or {shape[0]} torch.float32")
    if scale is not None and not bool(((scale > 0) & scale.isfinite()).all()):
        raise ValueError("its scales must be finite and above 0")
