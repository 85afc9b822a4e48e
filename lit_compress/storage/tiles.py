"""Sparse 8-bit weights as blocks that are not all zero, which is what a kernel multiplies, and back, bit for bit.

Both functions are exact inverses on what they accept: int8 from -127 to 127, or ``float8_e4m3fn``, whose -0 comes back
as 0.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

__all__ = [
    "Tiles",
    "as_int8",
    "pack_tiles",
    "unpack_tiles",
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
    blocks = _blocks(as_int8(weight_q), rows, width)
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
    blocks = as_int8(tiles.values).reshape(total, rows, per_chunk, width).transpose(1, 2).reshape(-1, rows, width)
    # What fills up a chunk is all zero and says column 0, where a block of values may be: it is added, not written.
    tile = torch.repeat_interleave(tiles.offsets.diff().long() * per_chunk)
    place = tile * (in_features // width) + tiles.columns[:-1].reshape(-1).long()
    dense = blocks.new_zeros(count * (in_features // width), rows, width).index_add_(0, place, blocks)
    dense = dense.reshape(count, in_features // width, rows, width).transpose(1, 2).reshape(count * rows, in_features)
    return dense[:out_features].contiguous().view(tiles.values.dtype)


def as_int8(x: Tensor) -> Tensor:
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
