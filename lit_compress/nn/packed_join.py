"""Packed linears on the same input as one product, without storing their weights twice."""

from collections.abc import Sequence
from typing import cast

import torch
from torch import Tensor

from lit_compress.nn.packed import PackedLinear
from lit_compress.storage.layouts import TILES, PackedLayout, packed_buffers

__all__ = ["join", "share"]


def join(linears: Sequence[PackedLinear]) -> PackedLinear:
    """One packed linear whose outputs are those of ``linears``, one after the other; they become views of it.

    It is not meant to be a module of the model: the linears are, under their own names.

    Args:
        linears: expanded, of the same inputs and dtype. When their formats differ, the product is dense.

    """
    first, format = linears[0], _format(linears)
    if format in TILES and not _padded(format, linears):
        buffers = _stacked(linears)
    else:
        buffers = packed_buffers(
            torch.cat([_bytes(linear.quantized()) for linear in linears]).view(first.dtype), format
        )
    buffers["w_scale"] = torch.cat([linear.w_scale for linear in linears])
    if any(linear.bias is not None for linear in linears):
        buffers["bias"] = torch.cat(
            [torch.zeros_like(linear.w_scale) if linear.bias is None else linear.bias for linear in linears]
        )
    rows = sum(linear.out_features for linear in linears)
    joined = PackedLinear(first.in_features, rows, format, first.dtype, buffers).train(first.training)
    share(joined, linears)
    return joined


def share(joined: PackedLinear, linears: Sequence[PackedLinear]) -> None:
    """Make the buffers of ``linears`` views of those of :func:`join`, as far as they can be.

    The values can unless rows that fill up tiles are in the way, or the formats differ; they then remain twice.
    """
    rows = [linear.out_features for linear in linears]
    _replace(linears, "w_scale", joined.w_scale.split(rows))
    if joined.bias is not None and all(linear.bias is not None for linear in linears):
        _replace(linears, "bias", joined.bias.split(rows))
    sizes = [len(linear.values) for linear in linears]  # rows, or chunks of tiles
    format = _format(linears)
    same = all((linear.format in TILES) == (format in TILES) for linear in linears)
    if same and not _padded(format, linears):
        _replace(linears, "values", joined.values.split(sizes))


def _format(linears: Sequence[PackedLinear]) -> PackedLayout:
    """The format of the product: what is only stored small is multiplied dense, and so is what differs."""
    first = linears[0].format
    alike = first in TILES and all(linear.format == first for linear in linears)
    return cast(PackedLayout, first) if alike else "dense"


def _padded(format: PackedLayout, linears: Sequence[PackedLinear]) -> bool:
    """Whether rows that fill up a tile of one linear would stand in the midst of the outputs of all."""
    return format in TILES and any(linear.out_features % TILES[format][0] for linear in linears[:-1])


def _stacked(linears: Sequence[PackedLinear]) -> dict[str, Tensor | None]:
    """Whole tiles one after the other: offsets count on, and the one row behind all columns stays."""
    starts, columns, offsets, last = 0, [], [], None
    for linear in linears:
        assert linear.columns is not None
        assert linear.offsets is not None
        columns.append(linear.columns[:-1])
        last = linear.columns[-1:]
        offsets.append(linear.offsets[:-1] + starts)
        starts += len(linear.values)
    values = torch.cat([_bytes(linear.values) for linear in linears]).view(linears[0].dtype)
    assert last is not None
    end = offsets[0].new_tensor([starts])
    return {
        "values": values,
        "columns": torch.cat([*columns, last]),
        "offsets": torch.cat([*offsets, end]),
    }


def _bytes(values: Tensor) -> Tensor:
    # Not every operator knows 8-bit floats.
    return values.view(torch.uint8)


def _replace(linears: Sequence[PackedLinear], name: str, parts: Sequence[Tensor]) -> None:
    for linear, part in zip(linears, parts, strict=True):
        setattr(linear, name, part)
        linear.kept_dense_weight = None
