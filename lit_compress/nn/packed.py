"""The deployed form of a linear layer: 8-bit values and scales in one of five formats, nothing to learn."""

from collections.abc import Callable
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lit_compress import ops
from lit_compress.errors import UserError
from lit_compress.ops.dispatch import choose
from lit_compress.storage.bitmap import unpack_bitmap
from lit_compress.storage.layouts import (
    COUNTED,
    DTYPES,
    SCALES,
    STORED,
    TILES,
    PackedLayout,
    check_tiles,
    check_values,
    checked_description,
    packed_buffers,
    stored_shapes,
)
from lit_compress.storage.tiles import Tiles, unpack_tiles
from lit_compress.storage.two_four import unpack_two_four
from lit_compress.storage.weight import QuantizedWeight, round_weight

__all__ = ["PLAIN_WEIGHT", "PackedLinear"]

PLAIN_WEIGHT = "weight"  # what a plain linear's state dict has, and a packed one's only to be refused by it
_INTEGERS = {1: torch.uint8, 4: torch.int32}


class PackedLinear(nn.Module):
    """A linear whose weight stays in 8 bit; buffers alone, made by :meth:`from_linear` or :meth:`from_description`.

    ``bitmap`` and ``two_four`` are small in files, where they keep ``bits`` and ``starts``, or ``index``, with the
    values that are not zero. :meth:`expand` makes their ``values`` dense, once, and the state dict remains what it was.

    Buffers keep their type when the model is cast: a scale has no room in half precision.

    Attributes:
        values: 8-bit ``(out_features, in_features)``, or those of :class:`~lit_compress.storage.tiles.Tiles`.
        w_scale: fp32 ``(out_features,)``.
        columns: of the tiles; None in other formats.
        offsets: of the tiles; None in other formats.
        bias: fp32 ``(out_features,)``, or None.
        input_scale: fp32 ``(1,)``, with which inputs may be rounded before they are seen; None when each row needs its
            own.
        output_scale: the same of outputs.
        format: one of :data:`PackedLayout`.
        dtype: of the values, ``torch.int8`` or ``torch.float8_e4m3fn``.

    """

    values: Tensor
    w_scale: Tensor
    columns: Tensor | None
    offsets: Tensor | None
    bias: Tensor | None
    input_scale: Tensor | None
    output_scale: Tensor | None
    bits: Tensor | None
    starts: Tensor | None
    index: Tensor | None

    def __init__(
        self,
        in_features: int,
        out_features: int,
        format: PackedLayout,
        dtype: torch.dtype,
        buffers: dict[str, Tensor | None],
    ) -> None:
        super().__init__()
        self.in_features, self.out_features, self.format, self.dtype = in_features, out_features, format, dtype
        for name in ("values", "w_scale", "columns", "offsets", "bits", "starts", "index", "bias", *SCALES):
            self.register_buffer(name, buffers.get(name))
        self.filled = True  # False while the buffers wait for the values of a file
        # The dequantized weight, for devices without kernels; neither saved nor moved.
        self.kept_dense_weight: Tensor | None = None

    @classmethod
    def from_linear(
        cls, linear: nn.Linear, format: PackedLayout = "dense", dtype: torch.dtype = torch.int8, name: str = "layer"
    ) -> Self:
        """Round the weight of ``linear`` to 8 bit, a scale per channel, and pack it; ``linear`` is not changed.

        Args:
            linear: plain, with its effective weight.
            format: see :data:`PackedLayout`.
            dtype: ``torch.int8`` or ``torch.float8_e4m3fn``.
            name: of the layer, for errors.

        Raises:
            UserError: the format cannot hold this weight, or the weight is not finite.

        """
        weight = round_weight(linear.weight, dtype, name=name)
        return cls.from_weight(weight, linear.bias, format, name).train(linear.training)

    @classmethod
    @torch.no_grad()
    def from_weight(
        cls, weight: QuantizedWeight, bias: Tensor | None, format: PackedLayout = "dense", name: str = "layer"
    ) -> Self:
        """Pack a symmetric weight; arguments and errors are those of :meth:`from_linear`."""
        try:
            buffers = packed_buffers(weight.values, format)
        except ValueError as error:
            raise UserError(f"--layout: {format} does not fit {name!r}: {error}") from error
        rows, columns = weight.values.shape
        buffers |= {"w_scale": weight.row_scales(), "bias": None if bias is None else bias.detach().float().clone()}
        packed = cls(columns, rows, format, weight.values.dtype, buffers)
        packed.expand()
        return packed

    @classmethod
    def from_description(cls, description: Any, name: str = "layer") -> Self:
        """An empty layer, not expanded, whose buffers have the shapes of the file that :meth:`describe` is about.

        Raises:
            UserError: not what :meth:`describe` writes.

        """
        format, dtype, rows, columns = checked_description(description, name)
        entries: int | None = description.get(COUNTED[format]) if format in COUNTED else None
        buffers: dict[str, Tensor | None] = {
            key: torch.empty(shape, dtype=kind)
            for key, (shape, kind) in stored_shapes(format, dtype, rows, columns, entries).items()
        }
        sizes = {"w_scale": rows} | ({"bias": rows} if description["bias"] else {})
        sizes |= {scale: 1 for scale in SCALES if description[scale]}
        buffers |= {key: torch.empty(size, dtype=torch.float32) for key, size in sizes.items()}
        packed = cls(columns, rows, format, dtype, buffers)
        packed.filled = False
        return packed

    def describe(self) -> dict[str, Any]:
        """What :meth:`from_description` needs to know, as JSON types."""
        described: dict[str, Any] = {
            "format": self.format,
            "dtype": next(name for name, dtype in DTYPES.items() if dtype == self.dtype),
            "shape": [self.out_features, self.in_features],
            "bias": self.bias is not None,
        } | {scale: getattr(self, scale) is not None for scale in SCALES}
        if self.format in TILES:
            described["chunks"] = len(self.values)
        elif self.format == "bitmap":
            described["nonzeros"] = int(self.quantized().float().ne(0).sum()) if self.expanded else len(self.values)
        return described

    @property
    def expanded(self) -> bool:
        """Whether ``values`` are what is computed with, and not the small form of a file."""
        return self.format not in STORED or getattr(self, STORED[self.format][0]) is None

    def forward(self, x: Tensor) -> Tensor:
        """``(..., in_features)`` to ``(..., out_features)``.

        Where a kernel is chosen each row of ``x`` is rounded to 8 bit with its own scale; elsewhere, and on a CPU, the
        weight is dequantized once, kept, and ``x`` is not rounded.
        """
        rows = x.numel() // self.in_features
        stored = self.values.numel() / (self.out_features * self.in_features)
        kind = "int8" if self.dtype == torch.int8 else "fp8"
        if choose(rows, self.out_features, self.in_features, self.format, kind, stored, x.device) == "dense":
            return F.linear(x, self.dense_weight(x.dtype), None if self.bias is None else self.bias.to(x.dtype))
        return ops.dynamic_linear(x, self.values, self.w_scale, self.columns, self.offsets, self.bias)

    def quantized(self) -> Tensor:
        """The 8-bit weight ``(out_features, in_features)``, zeros included."""
        shape = (self.out_features, self.in_features)
        if self.columns is not None and self.offsets is not None:
            return unpack_tiles(Tiles(self.values, self.columns, self.offsets), shape)
        if self.bits is not None and self.starts is not None:
            return unpack_bitmap(self.bits, self.values, self.starts, self.in_features)
        return self.values if self.index is None else unpack_two_four(self.values, self.index)

    def dequantized(self) -> Tensor:
        """The weight ``(out_features, in_features)`` in fp32."""
        return self.quantized().float() * self.w_scale.unsqueeze(1)

    def dense_weight(self, dtype: torch.dtype) -> Tensor:
        """:meth:`dequantized`, made once for a type and kept; a compiled graph that was first makes it in every run."""
        kept = self.kept_dense_weight
        if kept is not None and kept.dtype == dtype and kept.device == self.values.device:
            return kept
        if torch.compiler.is_compiling():
            return self.dequantized().to(dtype)
        with torch.inference_mode(False), torch.no_grad():  # or what is kept could not be used in training
            self.kept_dense_weight = self.dequantized().to(dtype)
        return self.kept_dense_weight

    def expand(self) -> None:
        """Make the ``values`` of a small format dense, in place, once they are there; does nothing when they are."""
        self.filled = True
        if not self.expanded:
            self.values = self.quantized()
            for name in STORED[self.format]:
                setattr(self, name, None)
        self.kept_dense_weight = None

    @torch.no_grad()
    def check(self, name: str = "layer") -> None:
        """Refuse what no packing makes, before anything runs on it; the cost is one pass over the weight.

        Args:
            name: of the layer, for the error.

        Raises:
            UserError: wrong shapes or types, an index out of range, a number that no packing writes.

        """
        try:
            self._check_shapes()
            self._check_numbers()
            if self.format in TILES:
                check_tiles(
                    Tiles(self.values, self._whole("columns"), self._whole("offsets")),
                    self.format,
                    (self.out_features, self.in_features),
                )
            else:
                self.quantized()  # what its index cannot mean is an error there
        except ValueError as error:
            raise UserError(f"{name}: the packed weight is damaged: {error}; pack or download it again") from error

    def _check_shapes(self) -> None:
        rows, columns = self.out_features, self.in_features
        shapes = {"w_scale": ((rows,), torch.float32), "bias": ((rows,), torch.float32)}
        shapes |= dict.fromkeys(SCALES, ((1,), torch.float32))
        entries = len(self.values) if self.format in COUNTED else None
        stored = "dense" if self.expanded and self.format in STORED else self.format
        shapes |= stored_shapes(stored, self.dtype, rows, columns, entries)
        for key, buffer in self.named_buffers(recurse=False):
            if (tuple(buffer.shape), buffer.dtype) != shapes[key]:
                raise ValueError(f"{key} is {buffer.dtype} {tuple(buffer.shape)} and must be {shapes[key]}")

    def _check_numbers(self) -> None:
        for key in ("w_scale", "bias", *SCALES):
            buffer = getattr(self, key)
            if buffer is not None and not bool(buffer.isfinite().all()):
                raise ValueError(f"{key} holds a number that is not finite")
            if buffer is not None and key != "bias" and not bool((buffer > 0).all()):
                raise ValueError(f"{key} is not above 0")
        check_values(self.values)

    def _whole(self, key: str) -> Tensor:
        buffer = getattr(self, key)
        if buffer is None:
            raise ValueError(f"{key} is missing")
        return buffer

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        # Seen as integers, scales and 8-bit floats move with the model and keep their type when it is cast.
        for name, buffer in self._buffers.items():
            if buffer is not None:
                self._buffers[name] = fn(buffer.view(_INTEGERS[buffer.element_size()])).view(buffer.dtype)
        self.kept_dense_weight = None
        return self

    def _save_to_state_dict(self, destination: dict[str, Any], prefix: str, keep_vars: bool) -> None:
        super()._save_to_state_dict(destination, prefix, keep_vars)
        if self.expanded and self.format in STORED:
            for name, buffer in packed_buffers(self.values, self.format).items():
                destination[prefix + name] = buffer
        if self.filled:
            # Under the name of a plain linear's weight, in no shape of one: whoever looks for that refuses the file.
            destination[prefix + PLAIN_WEIGHT] = torch.zeros(1, dtype=torch.uint8, device=self.values.device)

    def _load_from_state_dict(
        self, state_dict: dict[str, Any], prefix: str, local_metadata: Any, strict: bool, *lists: list[str]
    ) -> None:
        if getattr(state_dict.get(prefix + PLAIN_WEIGHT), "shape", None) == (1,):
            del state_dict[prefix + PLAIN_WEIGHT]
        if self.format in STORED:
            for name in ("values", *STORED[self.format]):
                if (stored := state_dict.get(prefix + name)) is not None:
                    setattr(self, name, torch.empty_like(stored, device=self.values.device))
        super()._load_from_state_dict(state_dict, prefix, local_metadata, strict, *lists)
        if prefix + "values" in state_dict:
            self.check(prefix.rstrip(".") or "layer")
            self.expand()

    def extra_repr(self) -> str:
        return f"{self.in_features}, {self.out_features}, {self.format}, {self.dtype}, bias={self.bias is not None}"
