"""The queries', keys' and values' linears of an attention as one product, without storing their weights twice."""

from collections.abc import Callable, Sequence
from typing import Any, Literal, Self, cast

import torch
from torch import Tensor, nn

from lit_compress.functional.packing import Tiles, pack_tiles, unpack_tiles
from lit_compress.nn.packed import PackedLinear

__all__ = ["PackedQKV", "dense_weight", "density", "dtype_name", "executed_format", "forget_dense_weight", "quantized_weight"]

_TILED = ("tall_blocks", "blocks")
_BITS = {1: torch.uint8, 2: torch.int16, 4: torch.int32}
# Attribute of a packed linear.
_KEPT = "kept_dense_weight"


class PackedQKV(nn.Module):
    """Packed linears on the same input, one below the other.

    The buffers are in no state dict: the linears stay in the model under their own names. Where the rows of each fill
    whole tiles, the linears' buffers become views of the ones here, so that loading into a linear changes both; after
    the model has moved, :meth:`share` makes them views again.

    Args:
        linears: of one dtype and width. When their formats differ, the product is dense.

    Attributes:
        values: as in :class:`~lit_compress.nn.packed.PackedLinear`.
        w_scale: likewise.
        columns: likewise.
        offsets: likewise.
        bias: likewise; zeros where a linear has none and another has one.

    """

    values: Tensor
    w_scale: Tensor
    columns: Tensor | None
    offsets: Tensor | None
    bias: Tensor | None

    def __init__(self, linears: Sequence[PackedLinear]) -> None:
        super().__init__()
        formats = {executed_format(linear) for linear in linears}
        self.format = formats.pop() if len(formats) == 1 else "dense"
        self.dtype = linears[0].dtype
        self.in_features = linears[0].in_features
        self.rows = [linear.out_features for linear in linears]
        self.out_features = sum(self.rows)
        for name, buffer in self._joined(linears).items():
            self.register_buffer(name, buffer, persistent=False)
        self.share(linears)

    def share(self, linears: Sequence[PackedLinear]) -> None:
        """Make the linears' buffers views of these ones, as far as they can be."""
        if any(executed_format(linear) != self.format for linear in linears):
            return
        if self.format == "dense":
            _replace(linears, "values", self.values.split(self.rows))
        elif all(rows % self.values.shape[1] == 0 for rows in self.rows):
            _replace(linears, "values", self.values.split([linear.values.shape[0] for linear in linears]))
        _replace(linears, "w_scale", self.w_scale.split(self.rows))
        if all(linear.bias is not None for linear in linears):
            assert self.bias is not None
            _replace(linears, "bias", self.bias.split(self.rows))

    def _apply(self, fn: Any, recurse: bool = True) -> Self:
        # Seen as integers, 8-bit floats and scales move with the model and keep their precision when it changes.
        for name, buffer in self._buffers.items():
            if buffer is not None:
                self._buffers[name] = moved(buffer, fn)
        return self

    def _joined(self, linears: Sequence[PackedLinear]) -> dict[str, Tensor | None]:
        biases = [linear.bias for linear in linears]
        joined: dict[str, Tensor | None] = {
            "w_scale": torch.cat([linear.w_scale for linear in linears]),
            "bias": None,
            "columns": None,
            "offsets": None,
        }
        if any(bias is not None for bias in biases):
            joined["bias"] = torch.cat(
                [torch.zeros_like(linear.w_scale) if linear.bias is None else linear.bias for linear in linears]
            )
        if self.format == "dense":
            return joined | {"values": torch.cat([quantized_weight(linear) for linear in linears])}
        rows = linears[0].values.shape[1]
        if all(linear.out_features % rows == 0 for linear in linears):
            tiles = _stacked(linears)
        else:
            width = linears[0].values.shape[2] // cast(Tensor, linears[0].columns).shape[1]
            tiles = pack_tiles(torch.cat([quantized_weight(linear) for linear in linears]), rows, width)
        return joined | {"values": tiles.values, "columns": tiles.columns, "offsets": tiles.offsets}


def moved(buffer: Tensor, fn: Callable[[Tensor], Tensor]) -> Tensor:
    """A buffer where ``fn`` moves tensors to, in its own dtype."""
    return fn(buffer.view(_BITS[buffer.element_size()])).view(buffer.dtype)


def executed_format(linear: Any) -> str:
    """The format in which a packed linear is multiplied: what is only stored small runs dense."""
    return linear.format if linear.format in _TILED else "dense"


def quantized_weight(linear: Any) -> Tensor:
    """The 8-bit weight ``(out_features, in_features)`` of a packed linear, or of several."""
    if linear.columns is None:
        return linear.values
    return unpack_tiles(Tiles(linear.values, linear.columns, linear.offsets), (linear.out_features, linear.in_features))


def dtype_name(linear: Any) -> Literal["int8", "fp8"]:
    """The 8-bit type of a packed linear, as the command line calls it."""
    return "fp8" if linear.values.dtype.is_floating_point else "int8"


def density(linear: Any) -> float:
    """Fraction of the weight that is multiplied, zeros that fill blocks up included."""
    return linear.values.numel() / (linear.out_features * linear.in_features)


def dense_weight(linear: Any, dtype: torch.dtype) -> Tensor:
    """The dequantized weight ``(out_features, in_features)``, made once and kept beside the packed one.

    A graph that is compiled before the weight was ever needed computes it anew in every run.
    """
    kept = getattr(linear, _KEPT, None)
    if kept is not None and kept.dtype == dtype and kept.device == linear.values.device:
        return kept
    weight = (quantized_weight(linear).to(torch.float32) * linear.w_scale.unsqueeze(1)).to(dtype)
    if not torch.compiler.is_compiling():
        object.__setattr__(linear, _KEPT, weight)  # no buffer: it is neither saved nor moved
    return weight


def forget_dense_weight(linear: Any) -> None:
    """Let go of what :func:`dense_weight` kept, which the packed weight may no longer be."""
    object.__setattr__(linear, _KEPT, None)


def _stacked(linears: Sequence[PackedLinear]) -> Tiles:
    """Whole tiles of several linears, one after the other: offsets count on, the entry behind the last column stays."""
    starts, offsets, columns = 0, [], []
    for linear in linears:
        assert linear.columns is not None
        assert linear.offsets is not None
        offsets.append(linear.offsets[:-1] + starts)
        columns.append(linear.columns[:-1])
        starts += linear.values.shape[0]
    last = linears[-1]
    assert last.columns is not None
    assert last.offsets is not None
    ends = last.offsets[-1:] + (starts - last.values.shape[0])
    return Tiles(
        torch.cat([linear.values for linear in linears]),
        torch.cat([*columns, last.columns[-1:]]),
        torch.cat([*offsets, ends]),
    )


def _replace(linears: Sequence[PackedLinear], name: str, parts: Sequence[Tensor]) -> None:
    for linear, part in zip(linears, parts, strict=True):
        setattr(linear, name, part)
