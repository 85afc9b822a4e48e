"""Weights without their zeros, as integers where they lie on a grid: how a file stores them, and the way back.

A matrix ``W`` that is stored so has, under its own name, its values in one row, so that whoever does not know this form
finds another shape than expected and refuses::

    W             (values,)      fp32, int8 or uint8: those that are not zero, row by row; all without a bitmap
    W_bitmap      (rows, bytes)  uint8, a bit for each position, see :mod:`lit_compress.functional.bitmap`
    W_scale       (rows or 1,)   fp32, of integers
    W_zero_point  (1,)           uint8, of an affine grid; never with a bitmap

All other tensors are stored as they are. The header of the file has a SHA-256 of every tensor's name, type, shape and
bytes: against damage, not against an author who means harm. What such a file says is checked before it is believed.
"""

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from lit_compress.errors import UserError
from lit_compress.functional.bitmap import pack_bits, unpack_bits

__all__ = ["BITMAP", "PARTS", "check_file", "decode", "digest", "encode", "read_file"]

# `quantization_config.storage` in config.json, and the key of the digests in the file's header.
BITMAP = "bitmap"
DIGESTS = "sha256"
PARTS = ("_bitmap", "_scale", "_zero_point")


def encode(weight: Tensor, values: Tensor | None = None, scale: Tensor | None = None, zero_point: int = 0) -> Any:
    """Parts of a weight by the end of their name, or None when storing it as it is takes no more bytes.

    Args:
        weight: fp32 ``(rows, columns)``.
        values: its integers, int8 or uint8, of the same shape; None when it has none.
        scale: fp32 ``(rows, 1)`` or ``(1, 1)``, of the integers.
        zero_point: of uint8.

    Example:
        >>> parts = encode(torch.eye(8))
        >>> {name: tuple(part.shape) for name, part in parts.items()}
        {'': (8,), '_bitmap': (8, 1)}

    """
    stored = weight if values is None else values
    parts: dict[str, Tensor] = {}
    used = stored != 0
    bitmap_bytes = used.shape[0] * -(-used.shape[1] // 8)
    if stored.dtype != torch.uint8 and int((~used).sum()) * stored.element_size() > bitmap_bytes:
        parts = {"": stored[used], "_bitmap": pack_bits(used)}
    elif values is not None:
        parts = {"": values.reshape(-1)}
    if values is not None:
        assert scale is not None
        parts["_scale"] = scale.reshape(-1).float()
        if values.dtype == torch.uint8:
            parts["_zero_point"] = torch.tensor([zero_point], dtype=torch.uint8)
    return parts or None


def decode(parts: dict[str, Tensor], shape: tuple[int, ...]) -> Tensor:
    """The fp32 weight of a shape that :func:`encode` was given, bit for bit (but -0 comes back as 0).

    Raises:
        ValueError: the parts do not fit each other or the shape.

    """
    values, bitmap, scale, zero_point = (parts.get(end) for end in ("", *PARTS))
    _check_parts(values, bitmap, scale, zero_point, shape)
    assert values is not None
    if bitmap is None:
        dense = values.float().reshape(shape)
    else:
        used = unpack_bits(bitmap, shape[1])
        if int(used.sum()) != values.numel():
            raise ValueError(f"its bitmap has {int(used.sum())} positions and it has {values.numel()} values")
        dense = torch.zeros(shape)
        dense[used] = values.float()
    if zero_point is not None:
        dense.sub_(zero_point.item())
    return dense if scale is None else dense.mul_(scale.reshape(-1, 1))


def read_file(path: str | Path) -> Iterator[tuple[str, dict[str, Tensor]]]:
    """Names and parts of the weights in a file, one after the other; a plain tensor has one part, ``""``.

    Raises:
        UserError: damaged, not made by this package, or with parts of nothing.

    """
    try:
        with safe_open(path, framework="pt") as file:
            digests = json.loads((file.metadata() or {}).get(DIGESTS, "null"))
            names = set(file.keys())
            if not isinstance(digests, dict) or set(digests) != names:
                raise UserError(
                    f"{str(path)!r} has no digest of every tensor: it was not exported as sparse, or changed"
                )
            owners = {name: _owner(name, names) for name in names}
            for name in sorted(name for name in names if owners[name] is None):
                ends = ("", *(end for end in PARTS if owners.get(name + end) == name))
                parts = {end: file.get_tensor(name + end) for end in ends}
                for end, part in parts.items():
                    if digests[name + end] != digest(name + end, part):
                        raise UserError(
                            f"{str(path)!r} is damaged: {name + end!r} has another SHA-256; export it again"
                        )
                yield name, parts
    except (SafetensorError, OSError, json.JSONDecodeError, RecursionError) as error:
        raise UserError(f"{str(path)!r} is damaged or no safetensors file: {str(error).splitlines()[0]}") from error


def check_file(path: str | Path, shapes: dict[str, tuple[int, ...]]) -> None:
    """Refuse a file that is damaged or does not hold weights of these shapes.

    Args:
        path: safetensors file.
        shapes: of the parameters of the model that is to be loaded, by name.

    Raises:
        UserError: whatever is wrong first.

    """
    for name, parts in read_file(path):
        if list(parts) == [""] and parts[""].ndim != 1:
            continue  # stored as it is, and Transformers compares shapes itself
        if (shape := shapes.get(name)) is None or (list(parts) == [""] and tuple(parts[""].shape) == shape):
            continue
        try:
            decode(parts, shape)
        except ValueError as error:
            raise UserError(f"{str(path)!r}: {name!r} is wrong: {error}; export it again") from error


def digest(name: str, tensor: Tensor) -> str:
    """SHA-256 of a tensor's name, type, shape and bytes, in hexadecimal."""
    found = hashlib.sha256(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
    found.update(tensor.contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return found.hexdigest()


def _owner(name: str, names: set[str]) -> str | None:
    """The weight that a part belongs to; None for a weight."""
    for end in PARTS:
        if name.endswith(end) and (owner := name.removesuffix(end)) in names:
            return owner
    return None


def _check_parts(
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
