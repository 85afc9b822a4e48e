"""A weight as integers and what they stand for: made once, by the layer that trained it, and read by every format."""

from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor

from lit_compress.errors import UserError
from lit_compress.functional.quantize import quantize, symmetric_qparams

__all__ = ["QMAX", "QuantizedWeight", "round_weight"]

# Largest number of each 8-bit type that is used.
QMAX: dict[torch.dtype, float] = {torch.int8: 127.0, torch.float8_e4m3fn: 448.0}


@dataclass(frozen=True, kw_only=True, eq=False)
class QuantizedWeight:
    """A quantized weight: ``(values - zero_point) * scale``.

    Attributes:
        values: 8-bit ``(rows, columns)``: int8, uint8 where there is a zero point, or float8_e4m3fn.
        scale: fp32, one per row (an output channel of a linear, a token of a table) ``(rows, 1)``, or one for all
            ``(1, 1)``.
        zero_point: of an affine quantizer, else 0.
        bits: width of the integers.

    """

    values: Tensor
    scale: Tensor
    zero_point: int = 0
    bits: int = 8

    @classmethod
    def from_dequantized(cls, weight: Tensor, scale: Tensor, zero_point: int | None, bits: int) -> Self:
        """The integers of a floating-point weight that is quantized already; ``zero_point`` None is symmetric.

        Raises:
            ValueError: it is not quantized with this scale, or was changed since.

        """
        low, high = (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1) if zero_point is None else (0, 2**bits - 1)
        weight, scale = weight.detach().float(), scale.float().reshape(-1, 1)
        values = (weight / scale).round_().add_(zero_point or 0)
        if bits > 8 or not ((values >= low) & (values <= high)).all():
            raise ValueError(f"is not quantized to {bits} bits with the scale it is said to have")
        kind = torch.int8 if zero_point is None else torch.uint8
        found = cls(values=values.to(kind), scale=scale, zero_point=zero_point or 0, bits=bits)
        if not torch.equal(found.weight(), weight):
            raise ValueError("was changed after it was quantized")
        return found

    @classmethod
    def rounded(cls, weight: Tensor, scale: Tensor, zero_point: int | None, bits: int) -> Self:
        """A weight quantized; ``zero_point`` None is symmetric, whose lowest integer is not used."""
        top = 2 ** (bits - 1) - 1
        low, high, kind = (-top, top, torch.int8) if zero_point is None else (0, 2**bits - 1, torch.uint8)
        scale = scale.detach().float().reshape(-1, 1)
        values = quantize(weight.detach().float(), scale, zero_point or 0, low, high).to(kind)
        return cls(values=values, scale=scale.clone(), zero_point=zero_point or 0, bits=bits)

    def weight(self) -> Tensor:
        """The weight in fp32."""
        return self.values.float().sub_(self.zero_point).mul_(self.scale)

    def row_scales(self) -> Tensor:
        """A scale for each row, fp32 ``(rows,)``."""
        return self.scale.reshape(-1).expand(len(self.values)).contiguous()


@torch.no_grad()
def round_weight(
    weight: Tensor, dtype: torch.dtype = torch.int8, bits: int = 8, name: str = "layer"
) -> QuantizedWeight:
    """A weight ``(out_features, in_features)`` quantized symmetrically, a scale per row from its largest magnitude.

    Args:
        weight: any float type.
        dtype: ``torch.int8`` (rounded half to even, never -128) or ``torch.float8_e4m3fn``.
        bits: width of the integers.
        name: of the layer, for errors.

    Raises:
        UserError: the weight is not finite.

    Example:
        >>> round_weight(torch.tensor([[1.27, -0.5, 0.0]])).values.tolist()
        [[127, -50, 0]]

    """
    weight = weight.detach().float()
    if not bool(weight.isfinite().all()):
        raise UserError(f"{name}: its weight holds a number that is not finite; train it again")
    largest = weight.abs().amax(dim=1)
    if dtype == torch.int8:
        return QuantizedWeight.rounded(weight, symmetric_qparams(largest, 2 ** (bits - 1) - 1), None, bits)
    scale = symmetric_qparams(largest, int(QMAX[dtype])).unsqueeze(1)
    values = (weight * (1.0 / scale)).clamp(-QMAX[dtype], QMAX[dtype]).to(dtype)
    return QuantizedWeight(values=values, scale=scale)
