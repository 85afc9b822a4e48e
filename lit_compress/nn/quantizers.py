"""Fake quantizers: they round to the values of integers and let the gradient through.

Each has three settings that are not tensors: ``enabled`` (quantize or pass through), ``observing`` (ranges follow the
data or stay) and its constructor arguments. All are plain attributes, so that a disabled quantizer costs nothing and
a GPU is never asked for their value; the manifest saves them with every checkpoint. The ranges are buffers.
"""

from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn

from lit_compress.functional.quantize import asymmetric_qparams, fake_quantize, symmetric_qparams
from lit_compress.nn.recompute import is_recomputed
from lit_compress.storage.weight import QuantizedWeight

__all__ = [
    "ActivationType",
    "DynamicTokenQuantizer",
    "FakeQuantizer",
    "MinMaxWeightQuantizer",
    "MovingAverageQuantizer",
    "TableQuantizer",
    "input_quantizer",
    "wrong_quantization",
]

ActivationType = Literal["uint8", "int8", "dynamic", "none"]


class FakeQuantizer(nn.Module):
    """Base of all quantizers: a switch, an observer switch, and a description for the manifest.

    Attributes:
        enabled: quantize (True) or return the input as it is.
        observing: whether ranges follow the data.

    """

    def __init__(self) -> None:
        super().__init__()
        self.enabled: bool = True
        self.observing: bool = True

    def spec(self) -> dict[str, Any]:
        """Constructor arguments as JSON types."""
        raise NotImplementedError(f"{type(self).__name__} must define spec()")

    def keep_outputs(self, index: Tensor) -> None:
        """Forget all output channels but some, when the layer loses the others; nothing to do without channels."""


class MinMaxWeightQuantizer(FakeQuantizer):
    """Symmetric signed weights; the scale follows the current weights, one per output channel or one per tensor.

    The largest magnitude is representable, so nothing is clamped while the scale follows, and 0 maps to 0: sparsity
    survives.

    Args:
        out_features: number of output channels.
        bits: width of the integer; 8 gives ``-127..127``.
        per_channel: one scale per output channel (True) or per tensor (False).

    """

    scale: Tensor
    zero_point: Tensor

    def __init__(self, out_features: int, bits: int = 8, per_channel: bool = True) -> None:
        super().__init__()
        self.out_features, self.bits, self.per_channel = out_features, bits, per_channel
        self.qmax = 2 ** (bits - 1) - 1
        # Persistent: a frozen scale must come back with the checkpoint.
        self.register_buffer("scale", torch.zeros(out_features if per_channel else ()))
        self.register_buffer("zero_point", torch.zeros_like(self.scale, dtype=torch.int32), persistent=False)

    def forward(self, weight: Tensor) -> Tensor:
        """Fake-quantize ``(out_features, in_features)``."""
        if not self.enabled:
            return weight
        if self.observing:
            self._observe(weight)
        channel_dim = 0 if self.per_channel else None
        quantized = _fake_quantize(weight, self.scale, self.zero_point, -self.qmax, self.qmax, channel_dim)
        if self.observing:
            return quantized
        # A frozen scale that never saw a weight is 0 and cannot quantize.
        return torch.where(self.scale.reshape(-1, 1) > 0, quantized, weight)

    @torch.no_grad()
    def quantize(self, weight: Tensor) -> QuantizedWeight | None:
        """The integers that :meth:`forward` computes with; None where it does not quantize."""
        if self.enabled and self.observing:
            self._observe(weight)
        if not (self.enabled and bool((self.scale > 0).all())):
            return None
        return QuantizedWeight.rounded(weight, self.scale, None, self.bits)

    @torch.no_grad()
    def _observe(self, weight: Tensor) -> None:
        # amin and amax: along a dimension they are many times faster on a CPU than one aminmax.
        low, high = (weight.amin(1), weight.amax(1)) if self.per_channel else weight.aminmax()
        self.scale.copy_(symmetric_qparams(torch.maximum(-low, high).float(), self.qmax))

    def spec(self) -> dict[str, Any]:
        return {"out_features": self.out_features, "bits": self.bits, "per_channel": self.per_channel}

    def keep_outputs(self, index: Tensor) -> None:
        self.out_features = len(index)
        if self.per_channel:
            self.scale, self.zero_point = self.scale[index], self.zero_point[index]

    def extra_repr(self) -> str:
        return f"int{self.bits}, per_{'channel' if self.per_channel else 'tensor'}, enabled={self.enabled}"


class MovingAverageQuantizer(FakeQuantizer):
    """One range per activation tensor: a moving average of each training batch's minimum and maximum.

    Args:
        bits: width of the integer.
        symmetric: signed with zero point 0 (True) or unsigned and affine (False, SparseML's and Prune OFA's choice).
        momentum: fraction of the newest batch in the average; 0.01 is torch's default.

    """

    low: Tensor
    high: Tensor

    def __init__(self, bits: int = 8, symmetric: bool = False, momentum: float = 0.01) -> None:
        super().__init__()
        self.bits, self.symmetric, self.momentum = bits, symmetric, momentum
        self.qmin, self.qmax = (-(2 ** (bits - 1)) + 1, 2 ** (bits - 1) - 1) if symmetric else (0, 2**bits - 1)
        # An empty range says "nothing seen yet": the first batch replaces it instead of being averaged in.
        self.register_buffer("low", torch.tensor(torch.inf))
        self.register_buffer("high", torch.tensor(-torch.inf))

    def forward(self, x: Tensor) -> Tensor:
        """Fake-quantize a tensor of any shape; in training the range moves first."""
        if not self.enabled:
            return x
        if self.training and self.observing and not is_recomputed():
            self._observe(x.detach())
        scale, zero_point = self.qparams()
        quantized = _fake_quantize(x, scale, zero_point, self.qmin, self.qmax)
        if self.training and self.observing:
            return quantized
        # A range that never saw data cannot quantize; ones and zeros would destroy the activations silently.
        return torch.where(self.low.isinf(), x, quantized)

    def qparams(self) -> tuple[Tensor, Tensor]:
        """Scale (float) and zero point (int32) of the current range, both of shape ``()``."""
        low, high = self.low.float(), self.high.float()
        if self.symmetric:
            scale = symmetric_qparams(torch.maximum(-low, high), self.qmax)
            return scale, torch.zeros_like(scale, dtype=torch.int32)
        return asymmetric_qparams(low, high, self.qmin, self.qmax)

    @torch.no_grad()
    def _observe(self, x: Tensor) -> None:
        low, high = (bound.to(self.low.dtype) for bound in x.aminmax())
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            # Each rank sees its own part of the batch, and all must end with the same range.
            bounds = torch.stack([-low, high])
            torch.distributed.all_reduce(bounds, torch.distributed.ReduceOp.MAX)
            low, high = -bounds[0], bounds[1]
        # A batch that is not finite says nothing, and its step is left out as well.
        unseen, finite = self.low.isinf(), high - low < torch.inf
        for bound, new in ((self.low, low), (self.high, high)):
            moved = torch.where(unseen, new, bound.lerp(new, self.momentum))
            bound.copy_(torch.where(finite, moved, bound))

    def spec(self) -> dict[str, Any]:
        return {"bits": self.bits, "symmetric": self.symmetric, "momentum": self.momentum}

    def extra_repr(self) -> str:
        return f"{'' if self.symmetric else 'u'}int{self.bits}, moving average, enabled={self.enabled}"


class TableQuantizer(FakeQuantizer):
    """Rows of an embedding table; the range follows the whole table, only rows that are looked up are quantized.

    Args:
        rows: number of rows of the table.
        per_row: int8, symmetric, a scale per row (True), or uint8, affine, one for the table (False, as SparseML).

    """

    scale: Tensor
    zero_point: Tensor

    def __init__(self, rows: int, per_row: bool = False) -> None:
        super().__init__()
        self.rows, self.per_row = rows, per_row
        self.qmin, self.qmax = (-127, 127) if per_row else (0, 255)
        # Persistent: a frozen scale must come back with the checkpoint. A scale of 0 has never seen a table.
        self.register_buffer("scale", torch.zeros(rows if per_row else ()))
        self.register_buffer("zero_point", torch.zeros_like(self.scale, dtype=torch.int32), persistent=not per_row)

    def forward(self, rows: Tensor, index: Tensor) -> Tensor:
        """Fake-quantize rows ``(..., features)`` of the table, looked up at ``index`` ``(...)``."""
        if not self.enabled:
            return rows
        flat, scale, zero_point = rows.reshape(-1, rows.shape[-1]), self.scale, self.zero_point
        if self.per_row:
            scale, zero_point = scale[index.reshape(-1)], zero_point[index.reshape(-1)]
        quantized = _fake_quantize(flat, scale, zero_point, self.qmin, self.qmax, 0 if self.per_row else None)
        return torch.where(scale.reshape(-1, 1) > 0, quantized, flat).reshape(rows.shape)

    @torch.no_grad()
    def observe(self, table: Tensor) -> None:
        """Fit scale and zero point to the current values of the table ``(rows, features)``, while observing."""
        if not (self.enabled and self.observing):
            return
        if self.per_row:
            self.scale.copy_(symmetric_qparams(torch.maximum(-table.amin(1), table.amax(1)).float(), self.qmax))
            return
        low, high = (bound.float() for bound in table.aminmax())
        scale, zero_point = asymmetric_qparams(low, high, self.qmin, self.qmax)
        self.scale.copy_(scale)
        self.zero_point.copy_(zero_point)

    @torch.no_grad()
    def quantize(self, table: Tensor) -> QuantizedWeight | None:
        """The integers that lookups in a table ``(rows, features)`` give; None where they are not quantized."""
        self.observe(table)
        if not (self.enabled and bool((self.scale > 0).all())):
            return None
        return QuantizedWeight.rounded(table, self.scale, None if self.per_row else int(self.zero_point), 8)

    def spec(self) -> dict[str, Any]:
        return {"rows": self.rows, "per_row": self.per_row}

    def extra_repr(self) -> str:
        return f"{'int8 per row' if self.per_row else 'uint8 per table'}, enabled={self.enabled}"


class DynamicTokenQuantizer(FakeQuantizer):
    """Symmetric signed activations with a scale per token, computed from the token itself: no state, no calibration.

    Args:
        bits: width of the integer; 8 gives ``-127..127``.

    """

    def __init__(self, bits: int = 8) -> None:
        super().__init__()
        self.bits = bits
        self.qmax = 2 ** (bits - 1) - 1

    def forward(self, x: Tensor) -> Tensor:
        """Fake-quantize ``(..., features)``, each row with its own scale."""
        if not self.enabled:
            return x
        rows = x.reshape(-1, x.shape[-1])
        scale = symmetric_qparams(rows.detach().abs().amax(dim=1).float(), self.qmax)
        zero_point = torch.zeros_like(scale, dtype=torch.int32)
        return _fake_quantize(rows, scale, zero_point, -self.qmax, self.qmax, channel_dim=0).reshape(x.shape)

    def spec(self) -> dict[str, Any]:
        return {"bits": self.bits}

    def extra_repr(self) -> str:
        return f"int{self.bits}, dynamic per token, enabled={self.enabled}"


def input_quantizer(activations: ActivationType, momentum: float = 0.01) -> FakeQuantizer | None:
    """The quantizer of a linear's inputs: ``uint8`` affine, ``int8`` symmetric, ``dynamic``; None for ``none``."""
    if activations == "none":
        return None
    if activations == "dynamic":
        return DynamicTokenQuantizer()
    return MovingAverageQuantizer(symmetric=activations == "int8", momentum=momentum)


def wrong_quantization(bits: int, activations: str) -> tuple[str, str] | None:
    """Which of ``bits`` (of weights) and ``activations`` is wrong, and why; None when all is well.

    Example:
        >>> wrong_quantization(9, "int8")
        ('bits', '9 must be from 2 to 8')

    """
    if not 2 <= bits <= 8:
        return "bits", f"{bits} must be from 2 to 8"
    if activations not in get_args(ActivationType):
        return "activations", f"{activations!r} must be one of {', '.join(get_args(ActivationType))}"
    return None


def _fake_quantize(
    x: Tensor, scale: Tensor, zero_point: Tensor, qmin: int, qmax: int, channel_dim: int | None = None
) -> Tensor:
    # In fp32 whatever the model computes in: half precision cannot hold 8-bit integers times a scale.
    return fake_quantize(x.float(), scale.float(), zero_point, qmin, qmax, channel_dim).to(x.dtype)
