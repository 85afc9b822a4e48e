"""Safetensors files: what one holds, and whether its bytes are still those that were written.

``config.json`` has the SHA-256 of every tensor: against damage, not against an author who means harm.
"""

import hashlib
import json
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from lit_compress.errors import UserError, first_line

__all__ = ["StoredTensor", "checksums", "open_tensors", "stored_tensors", "verify_checksums", "verify_header"]

_HEADER_DIGESTS = "sha256"  # the key under which version 0.1 kept digests of a sparse file in its header


@dataclass(frozen=True)
class StoredTensor:
    """Type, as safetensors calls it (``"F32"``, ``"I8"``), and shape of a tensor in a file."""

    dtype: str
    shape: tuple[int, ...]


@contextmanager
def open_tensors(path: str | Path) -> Iterator[Any]:
    """A ``safetensors.safe_open`` of a file; what is wrong with it while the block lasts is a ``UserError``."""
    try:
        with safe_open(path, framework="pt") as file:
            yield file
    except (SafetensorError, OSError, RecursionError) as error:
        reason = first_line(error)
        raise UserError(f"{str(path)!r} is damaged or no safetensors file ({reason}); write it again") from error


def stored_tensors(path: str | Path) -> dict[str, StoredTensor]:
    """What a file says it holds; no tensor is read.

    Raises:
        UserError: damaged, or no such file.

    """
    with open_tensors(path) as file:
        slices = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118  (it is not a mapping)
        return {name: StoredTensor(part.get_dtype(), tuple(part.get_shape())) for name, part in slices.items()}


def checksums(paths: Iterable[str | Path]) -> dict[str, str]:
    """SHA-256 of each tensor's bytes, in hexadecimal, by its name.

    Raises:
        UserError: a file is damaged.

    """
    sums: dict[str, str] = {}
    for path in paths:
        with open_tensors(path) as file:
            for name in file.keys():  # noqa: SIM118
                sums[name] = hashlib.sha256(_content(file.get_tensor(name))).hexdigest()
    return sums


def verify_checksums(paths: Iterable[str | Path], expected: Any, where: str) -> None:
    """Compare files with the checksums that were written with them.

    Args:
        paths: the files.
        expected: what :func:`checksums` said of them.
        where: the setting that holds ``expected``, for the error.

    Raises:
        UserError: a tensor differs, is missing, or has no checksum.

    """
    if not isinstance(expected, dict):
        raise UserError(f"{where}: is {type(expected).__name__} and must be a mapping of tensor names to SHA-256")
    found = checksums(paths)
    if odd := sorted(set(found) ^ set(expected)):
        what = "has no checksum" if odd[0] in found else "is missing"
        raise UserError(f"{where}: tensor {odd[0]!r} {what}; pack or download the model again")
    for name, digest in found.items():
        if digest != expected[name]:
            raise UserError(f"{where}: tensor {name!r} is not what was written; pack or download the model again")


def verify_header(path: str | Path) -> None:
    """Compare a sparse file of version 0.1 with the digests in its own header.

    Raises:
        UserError: a tensor differs, or some tensor has no digest.

    """
    with open_tensors(path) as file:
        try:
            digests = json.loads((file.metadata() or {}).get(_HEADER_DIGESTS, "null"))
        except ValueError:
            digests = None
        if not isinstance(digests, dict) or set(digests) != set(file.keys()):
            raise UserError(f"{str(path)!r} has no digest of every tensor: it was not exported as sparse, or changed")
        for name, digest in digests.items():
            tensor = file.get_tensor(name)
            found = hashlib.sha256(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
            found.update(_content(tensor))
            if found.hexdigest() != digest:
                raise UserError(f"{str(path)!r} is damaged: {name!r} has another SHA-256; export it again")


def _content(tensor: Tensor) -> Any:
    """The bytes of a tensor, not copied."""
    return tensor.contiguous().reshape(-1).view(torch.uint8).numpy().data
