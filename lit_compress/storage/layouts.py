"""Sparse 8-bit weights as their non-zeros, and back, bit for bit.

Every pair of functions here is an exact inverse on what it accepts: int8 from -127 to 127, or ``float8_e4m3fn``, whose
-0 comes back as 0. Tiles are what a kernel multiplies; 2:4, and the bitmap of :mod:`lit_compress.storage.bitmap`, are
small in files and expanded when they are loaded.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

__all__ = [
    "Tiles",
    "pack_tiles",
    "pack_two_four",
    "unpack_tiles",
    "unpack_two_four",
]


@dataclass(frozen=True)
class Tiles:
    """A weight as tiles of some rows each, that hold those blocks of columns which are not all zero.

    A kernel computes a tile of outputs from one chunk after the other. Tall blocks are 128 rows of 32 columns, and a
    chunk is four of them, side by side; blocks of 64 rows and 64 columns are a chunk each.

    Attributes:
        values: 8-bit ``(chunks, rows, chunk)``; a row of a chunk is contiguous along the inputs. Rows after the last
            output, and the blocks that fill up a tile's last chunk, are zero.
        columns: int32 ``(chunks + 1, chunk / width)``, where along the inputs each block is, counted in blocks; they
            increase within a tile. What fills up has 0, and so has one more row at the end, so that a kernel may read
            one ahead.
        offsets: int32 ``(tiles + 1,)``; tile ``t`` owns the chunks from ``offsets[t]`` to ``offsets[t + 1]``.

    """

    values: Tensor
    columns: Tensor
    offsets: Tensor


def pack_tiles(weight_q: Tensor, rows: int, width: int, per_chunk: int | None = None) -> Tiles:
    """Gather the blocks that are not all zero.

    Args:
        weight_q: 8-bit ``(out_features, in_features)``.
        rows: of a tile: 128 (tall blocks) or 64; a last tile of fewer is filled up with zero rows.
        width: columns of a block: 32 (tall blocks) or 64.
        per_chunk: blocks of a chunk; None takes as many as make 128 columns of blocks of 32, and one of any other.

    Raises:
        ValueError: ``width`` does not divide ``in_features``.

    Example:
        >>> tiles = pack_tiles(torch.tensor([[0, 0, 1, 2]], dtype=torch.int8), rows=2, width=2)
        >>> tiles.values.tolist(), tiles.columns.tolist(), tiles.offsets.tolist()
        ([[[1, 2], [0, 0]]], [[1], [0]], [0, 1])

    """
    per_chunk = per_chunk or (4 if width == 32 else 1)
    blocks = _blocks(_bytes(weight_q), rows, width)
    used = blocks.ne(0).any(dim=3).any(dim=1)
    counts = used.sum(dim=1)
    chunks = (counts + per_chunk - 1) // per_chunk
    offsets = torch.cat([chunks.new_zeros(1), chunks.cumsum(0)])
    total = int(offsets[-1])

    tile, column = used.nonzero(as_tuple=True)  # row by row, so that columns increase within a tile
    slot = offsets[tile] * per_chunk + used.cumsum(dim=1)[tile, column] - 1
    gathered = blocks.new_zeros(total * per_chunk, rows, width)
    gathered[slot] = blocks[tile, :, column]
    columns = torch.zeros((total + 1) * per_chunk, dtype=torch.int32, device=weight_q.device)
    columns[slot] = column.to(torch.int32)

    values = gathered.reshape(total, per_chunk, rows, width).transpose(1, 2).reshape(total, rows, per_chunk * width)
    return Tiles(values.view(weight_q.dtype), columns.reshape(-1, per_chunk), offsets.to(torch.int32))


def unpack_tiles(tiles: Tiles, shape: tuple[int, int]) -> Tensor:
    """The dense 8-bit weight ``shape = (out_features, in_features)`` that :func:`pack_tiles` was given.

    Example:
        >>> weight = torch.tensor([[0, 0, 1, 2], [0, 0, 0, 0], [0, 5, 0, 0]], dtype=torch.int8)
        >>> torch.equal(unpack_tiles(pack_tiles(weight, rows=2, width=2), (3, 4)), weight)
        True

    """
    out_features, in_features = shape
    total, rows, chunk = tiles.values.shape
    per_chunk = tiles.columns.shape[1]
    width, count = chunk // per_chunk, len(tiles.offsets) - 1
    blocks = _bytes(tiles.values).reshape(total, rows, per_chunk, width).transpose(1, 2).reshape(-1, rows, width)
    # What fills up a chunk is all zero and says column 0, where a block of values may be: it is added, not written.
    tile = torch.repeat_interleave(tiles.offsets.diff().long() * per_chunk)
    place = tile * (in_features // width) + tiles.columns[:-1].reshape(-1).long()
    dense = blocks.new_zeros(count * (in_features // width), rows, width).index_add_(0, place, blocks)
    dense = dense.reshape(count, in_features // width, rows, width).transpose(1, 2).reshape(count * rows, in_features)
    return dense[:out_features].contiguous().view(tiles.values.dtype)


def pack_two_four(weight_q: Tensor) -> tuple[Tensor, Tensor]:
    """Of every four consecutive inputs the two that may be other than zero, and which two they are.

    Args:
        weight_q: 8-bit ``(out_features, in_features)``, at most two of each four not zero.

    Returns:
        ``(values, index)``: ``(out_features, in_features / 2)``, and uint8 ``(out_features, in_features / 8)``: a byte
        for two groups, the first in its lower half; of a half the lower two bits are the first position, the upper two
        the second.

    Raises:
        ValueError: 8 does not divide ``in_features``, or some four hold more than two values.

    Example:
        >>> values, index = pack_two_four(torch.tensor([[0, 7, 0, 5, 9, 0, 0, 0]], dtype=torch.int8))
        >>> values.tolist(), index.tolist()
        ([[7, 5, 9, 0]], [[77]])

    """
    rows, columns = weight_q.shape
    if columns % 8:
        raise ValueError(f"2:4 stores two groups of four in a byte, and {columns} inputs are not a multiple of 8")
    groups = _bytes(weight_q).reshape(rows, columns // 4, 4)
    if int(groups.ne(0).sum(dim=2).amax() if groups.numel() else 0) > 2:
        raise ValueError("some four consecutive inputs hold more than two values")
    # Used ones first, in their order; of the unused ones the first fill up.
    place = groups.eq(0).to(torch.uint8).argsort(dim=2, stable=True)[:, :, :2].sort(dim=2).values
    values = groups.gather(2, place).reshape(rows, columns // 2)
    halves = (place[:, :, 0] | place[:, :, 1] << 2).to(torch.uint8)
    return values.view(weight_q.dtype), halves[:, 0::2] | halves[:, 1::2] << 4


def unpack_two_four(values: Tensor, index: Tensor) -> Tensor:
    """The dense 8-bit weight ``(out_features, in_features)`` that :func:`pack_two_four` was given.

    Raises:
        ValueError: a group names a position twice, or its second one before its first.

    Example:
        >>> weight = torch.tensor([[0, 7, 0, 5, 9, 0, 0, 0]], dtype=torch.int8)
        >>> torch.equal(unpack_two_four(*pack_two_four(weight)), weight)
        True

    """
    rows, kept = values.shape
    halves = torch.stack([index & 15, index >> 4], dim=2).reshape(rows, kept // 2)
    place = torch.stack([halves & 3, halves >> 2], dim=2).long()
    if not bool((place[:, :, 0] < place[:, :, 1]).all()):
        raise ValueError("some four consecutive inputs have no first and second position")
    groups = torch.zeros(rows, kept // 2, 4, dtype=torch.int8, device=values.device)
    groups.scatter_(2, place, _bytes(values).reshape(rows, kept // 2, 2))
    return groups.reshape(rows, kept * 2).view(values.dtype)


def _bytes(x: Tensor) -> Tensor:
    """8-bit numbers as int8 that is 0 where they are: also fp8 can then be compared, moved and added to zero."""
    if x.dtype == torch.int8:
        return x
    raw = x.contiguous().view(torch.int8)
    return torch.where(raw == -128, 0, raw)  # the bits of -0


def _blocks(flat: Tensor, rows: int, width: int) -> Tensor:
    """``(tiles, rows, in_features / width, width)``, filled up with zero rows."""
    out_features, in_features = flat.shape
    if in_features % width:
        raise ValueError(f"blocks of {width} columns do not divide {in_features} inputs")
    padded = torch.nn.functional.pad(flat, (0, 0, 0, -out_features % rows))
    return padded.reshape(-1, rows, in_features // width, width)
