"""What a safetensors file holds, without reading its tensors, and whether their bytes are still those written."""

import hashlib
import json
import mmap
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lit_compress.errors import UserError

__all__ = ["StoredTensor", "checksums", "stored_tensors", "verify_checksums"]


@dataclass(frozen=True, kw_only=True)
class StoredTensor:
    """A tensor in a file.

    Args:
        dtype: as safetensors calls it: ``"F32"``, ``"I8"``.
        shape: its sizes.
        begin: position of its first byte in the file.
        end: position after its last.

    """

    dtype: str
    shape: tuple[int, ...]
    begin: int
    end: int


def stored_tensors(path: str | Path) -> dict[str, StoredTensor]:
    """What a safetensors file says it holds; the file begins with the length of a JSON header, little-endian.

    Raises:
        UserError: damaged, or no such file.

    """
    path = Path(path)
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            if length > size - 8:
                raise ValueError("its header is cut off")
            header = json.loads(file.read(length))
        tensors = {name: _stored(entry, 8 + length) for name, entry in header.items() if name != "__metadata__"}
        if any(not 8 + length <= tensor.begin <= tensor.end <= size for tensor in tensors.values()):
            raise ValueError("a tensor lies outside the file")
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise UserError(f"{str(path)!r} is damaged or no safetensors file ({error}); write it again") from error
    return tensors


def checksums(paths: Iterable[str | Path]) -> dict[str, str]:
    """SHA-256 of each tensor's bytes, in hexadecimal, by its name.

    Raises:
        UserError: a file is damaged.

    """
    sums: dict[str, str] = {}
    for path in paths:
        tensors = stored_tensors(path)
        with Path(path).open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
            for name, tensor in tensors.items():
                sums[name] = _digest(content, tensor)
    return sums


def verify_checksums(paths: Iterable[str | Path], expected: Any, where: str) -> None:
    """Compare files with the checksums that were written beside them.

    Args:
        paths: the files.
        expected: what :func:`checksums` said of them.
        where: the setting that holds ``expected``, for the error.

    Raises:
        UserError: a tensor that differs, is missing, or has no checksum.

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


def _digest(content: mmap.mmap, tensor: StoredTensor) -> str:
    # A view, not a slice: that would copy an embedding table.
    with memoryview(content) as view, view[tensor.begin : tensor.end] as part:
        return hashlib.sha256(part).hexdigest()


def _stored(entry: dict[str, Any], start: int) -> StoredTensor:
    begin, end = entry["data_offsets"]
    return StoredTensor(dtype=entry["dtype"], shape=tuple(entry["shape"]), begin=start + begin, end=start + end)
