"""The buffers of a packed weight: what a layout stores, how it is described, and what no packing would have written."""

import math
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from lit_compress.choices import Precision
from lit_compress.errors import UserError
from lit_compress.storage.bitmap import pack_bitmap
from lit_compress.storage.tiles import Tiles, pack_tiles, unpack_tiles
from lit_compress.storage.two_four import pack_two_four

__all__ = [
    "COUNTED",
    "DTYPES",
    "SCALES",
    "STORED",
    "TILES",
    "PackedLayout",
    "Precision",
    "check_tiles",
    "check_values",
    "checked_description",
    "packed_buffers",
    "stored_shapes",
]

PackedLayout = Literal["dense", "tall_blocks", "blocks", "bitmap", "two_four"]

DTYPES: dict[str, torch.dtype] = {"int8": torch.int8, "fp8": torch.float8_e4m3fn}
# Layout -> rows and columns of its blocks, and blocks in a chunk.
TILES: dict[str, tuple[int, int, int]] = {"tall_blocks": (128, 32, 4), "blocks": (64, 64, 1)}
# What a layout that is expanded when loaded stores in addition to `values`.
STORED = {"bitmap": ("bits", "starts"), "two_four": ("index",)}
# Layout -> the key of a description that says how many its buffers hold.
COUNTED = {"tall_blocks": "chunks", "blocks": "chunks", "bitmap": "nonzeros"}
SCALES = ("input_scale", "output_scale")


def packed_buffers(values: Tensor, layout: str) -> dict[str, Tensor | None]:
    """The buffers of a dense 8-bit weight in a layout, as a file has them.

    Raises:
        ValueError: the layout cannot hold this weight.

    """
    if layout in TILES:
        tiles = pack_tiles(values, *TILES[layout])
        return {"values": tiles.values, "columns": tiles.columns, "offsets": tiles.offsets}
    if layout == "bitmap":
        return dict(zip(("bits", "values", "starts"), pack_bitmap(values), strict=True))
    if layout == "two_four":
        return dict(zip(("values", "index"), pack_two_four(values), strict=True))
    return {"values": values}


def stored_shapes(
    layout: str, dtype: torch.dtype, rows: int, columns: int, entries: int | None
) -> dict[str, tuple[tuple[int, ...], torch.dtype]]:
    """Shape and type of each buffer of a layout, as a file has them; ``entries`` counts chunks or non-zeros."""
    if layout in TILES:
        tall, width, per_chunk = TILES[layout]
        assert entries is not None
        return {
            "values": ((entries, tall, width * per_chunk), dtype),
            "columns": ((entries + 1, per_chunk), torch.int32),
            "offsets": ((math.ceil(rows / tall) + 1,), torch.int32),
        }
    if layout == "bitmap":
        assert entries is not None
        return {
            "values": ((entries,), dtype),
            "bits": ((rows, math.ceil(columns / 8)), torch.uint8),
            "starts": ((rows + 1,), torch.int32),
        }
    if layout == "two_four":
        return {"values": ((rows, columns // 2), dtype), "index": ((rows, columns // 8), torch.uint8)}
    return {"values": ((rows, columns), dtype)}


def checked_description(description: Any, name: str) -> tuple[PackedLayout, torch.dtype, int, int]:
    """Layout, type, rows and columns of a description in which nothing is wrong or too large.

    Raises:
        UserError: something is.

    """
    where = f"config.json: quantization_config.packed: {name!r}"
    expected = {"format", "dtype", "shape", "bias", *SCALES}
    if not isinstance(description, dict) or not expected <= set(description):
        raise UserError(f"{where} must have {', '.join(sorted(expected))}")
    layout, dtype, shape = (description[key] for key in ("format", "dtype", "shape"))
    if layout not in get_args(PackedLayout) or dtype not in list(DTYPES):
        raise UserError(
            f"{where} is {layout!r} in {dtype!r} and must be one of {', '.join(get_args(PackedLayout))} in int8 or fp8"
        )
    if not isinstance(shape, list) or len(shape) != 2 or not all(_is_count(size) and size for size in shape):
        raise UserError(f"{where} has the shape {shape!r} and must have two sizes above 0")
    rows, columns = shape
    divisor = TILES[layout][1] if layout in TILES else 8 if layout == "two_four" else 1
    if columns % divisor:
        raise UserError(f"{where} has {columns} inputs, of which {layout} needs a multiple of {divisor}")
    if layout in COUNTED:
        most, key = rows * columns, COUNTED[layout]
        if layout in TILES:
            tall, width, per_chunk = TILES[layout]
            most = math.ceil(rows / tall) * math.ceil(columns / (width * per_chunk))
        if not _is_count(description.get(key)) or description[key] > most:
            raise UserError(f"{where} has {key} {description.get(key)!r} and must have from 0 to {most}")
    return layout, DTYPES[dtype], rows, columns


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def check_values(values: Tensor) -> None:
    """Raise ``ValueError`` for an 8-bit number that no packing writes: -128, or a NaN."""
    raw = values.contiguous().view(torch.int8)
    # Of fp8, both bit patterns of NaN.
    wrong = raw == -128 if values.dtype == torch.int8 else (raw == 127) | (raw == -1)
    if bool(wrong.any()):
        raise ValueError("values hold a number that no packing writes")


def check_tiles(tiles: Tiles, layout: str, shape: tuple[int, int]) -> None:
    """Raise ``ValueError`` for tiles of a weight of this shape that :func:`packed_buffers` would not have made."""
    blocks, chunks = shape[1] // TILES[layout][1], len(tiles.values)
    if bool(((tiles.columns < 0) | (tiles.columns >= blocks)).any()):
        raise ValueError(f"columns name a block that is not one of the {blocks}")
    steps = tiles.offsets.diff()
    if int(tiles.offsets[0]) != 0 or int(tiles.offsets[-1]) != chunks or bool((steps < 0).any()):
        raise ValueError(f"offsets do not divide the {chunks} chunks among the tiles")
    # What cannot be wrong any more now: a block that comes twice, one out of order, values outside the weight.
    again = pack_tiles(unpack_tiles(tiles, shape), *TILES[layout])
    same = (
        torch.equal(again.columns, tiles.columns)
        and torch.equal(again.offsets, tiles.offsets)
        and torch.equal(again.values.view(torch.int8), tiles.values.view(torch.int8))
    )
    if not same:
        raise ValueError("blocks come twice, out of order, or outside the weight")
