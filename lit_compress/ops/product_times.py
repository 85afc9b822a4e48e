"""How long a matrix product of an encoder takes on a GPU: estimated from products that an H100 was timed with.

Each kind of product has three figures: microseconds that pass whatever is computed, microseconds for a million outputs
(bias, conversion, writing), and the rate of its main loop. They were fitted to medians of products with 128,
4,096 and 32,768 rows on an H100 80GB HBM3 (2026-11-27, torch 2.11, Triton 3.6; docs/kernels.md has them), with bf16
results. With 4,096 rows or more an estimate is within 28 % of what was measured, within 13 % where the weight is
dense; with 128 rows it may be off by half. Other GPUs are assumed to differ from an H100 by the ratios of their data
sheets.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import NamedTuple

from lit_compress.errors import UserError

__all__ = ["DEVICES", "Device", "Rate", "device_named", "pass_us", "product_us"]

# Microseconds that a product takes at least, in a CUDA graph: the first operands come, the last tile is written.
LEAST_US = 6.0
# The same of an operator on rows or numbers.
LEAST_PASS_US = 2.0


class Rate(NamedTuple):
    """Microseconds for a million outputs outside the main loop, and tera-operations/s of that loop."""

    output_us: float
    operations: float


@dataclass(frozen=True, kw_only=True)
class Device:
    """What products of an encoder's size reach.

    Attributes:
        name: as the driver says it.
        capability: compute capability.
        half: rate of a product in 16 bit.
        eight: rate of an 8-bit product, by packed format and dtype; for one that is not here there is no kernel.
        bandwidth: TB/s of a copy.

    """

    name: str
    capability: tuple[int, int]
    half: Rate
    eight: Mapping[tuple[str, str], Rate]
    bandwidth: float


def _eight(dense: Mapping[str, float]) -> Mapping[tuple[str, str], Rate]:
    """Rates of an H100: the dense ones by dtype as given; sparse ones did not depend on it."""
    rates = {
        (form, dtype): Rate(0.88, rate) for dtype, rate in dense.items() for form in ("dense", "bitmap", "two_four")
    }
    rates |= {("tall_blocks", dtype): Rate(1.33, 720) for dtype in dense}
    rates |= {("blocks", dtype): Rate(0.89, 770) for dtype in dense}
    return MappingProxyType(rates)


_H100 = Device(
    name="NVIDIA H100 80GB HBM3",
    capability=(9, 0),
    half=Rate(0.27, 825),
    eight=_eight({"int8": 1025, "fp8": 1465}),
    bandwidth=3.0,
)


def _like(name: str, capability: tuple[int, int], half: float, eight: float, bandwidth: float) -> Device:
    """A device from its data sheet (from memory): dense tera-operations/s in 16 and in 8 bit, TB/s of its memory."""
    computing, moving = eight / 1979, bandwidth / 3.35

    def scaled(rate: Rate, by: float) -> Rate:
        return Rate(rate.output_us / moving, rate.operations * by)

    return replace(
        _H100,
        name=name,
        capability=capability,
        half=scaled(_H100.half, half / 989),
        eight=MappingProxyType({kind: scaled(rate, computing) for kind, rate in _H100.eight.items()}),
        bandwidth=_H100.bandwidth * moving,
    )


# Short name -> device.
DEVICES: Mapping[str, Device] = MappingProxyType(
    {
        "h200": _like("NVIDIA H200", (9, 0), 989, 1979, 4.8),
        "h100": _H100,
        "a100": _like("NVIDIA A100-SXM4-80GB", (8, 0), 312, 624, 2.04),
        "l4": _like("NVIDIA L4", (8, 9), 121, 242, 0.3),
    }
)


def device_named(name: str) -> Device:
    """The device of a short name, or of a driver's name with that word in it.

    Raises:
        UserError: none of :data:`DEVICES`.

    Example:
        >>> device_named("NVIDIA H100 80GB HBM3").bandwidth
        3.0

    """
    words = name.upper().replace("-", " ").split()
    for short, device in DEVICES.items():
        if short.upper() in words:
            return device
    raise UserError(f"--device: {name!r} is not one of {', '.join(DEVICES)}")


def product_us(
    device: Device,
    rows: int,
    outputs: int,
    inputs: int,
    format: str | None = None,
    dtype: str = "int8",
    density: float = 1.0,
) -> float:
    """Microseconds of ``(rows, inputs) @ (inputs, outputs)`` with a result in 16 bit.

    Args:
        device: where.
        rows: tokens.
        outputs: features of a result.
        inputs: features of an operand.
        format: packed format of the 8-bit weight; None is a dense product in 16 bit.
        dtype: ``"int8"`` or ``"fp8"``; without effect in 16 bit.
        density: fraction of the weight that is stored.

    Raises:
        KeyError: a format without kernel.

    Example:
        >>> round(product_us(DEVICES["h100"], 32768, 3072, 768, "dense", "fp8"))  # measured: 200
        200

    """
    rate = device.half if format is None else device.eight[format, dtype]
    computed = 2 * rows * outputs * inputs * density / (rate.operations * 1e6)
    return LEAST_US + rate.output_us * rows * outputs / 1e6 + computed


def pass_us(device: Device, rows: int, columns: int) -> float:
    """Microseconds of a kernel that reads numbers in 16 bit and writes as many.

    Example:
        >>> round(pass_us(DEVICES["h100"], 32768, 3072))  # GELU, measured: 150
        136

    """
    return LEAST_PASS_US + 4 * rows * columns / (device.bandwidth * 1e6)
