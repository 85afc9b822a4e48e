"""How long a matrix product takes at least: arithmetic from the figures of a device. Derived, never measured."""

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

from lit_compress.errors import UserError

__all__ = ["DEVICES", "Device", "device_named", "product_us"]


@dataclass(frozen=True, kw_only=True)
class Device:
    """Rates that matrix products of an encoder's size reach.

    Attributes:
        name: as the driver says it.
        capability: compute capability.
        half: TFLOP/s of a 16-bit product.
        eight: tera-operations/s of an 8-bit product, by packed format; for one that is not here there is no kernel.
        bandwidth: TB/s of a copy.
        launch: microseconds that a kernel takes at least.

    """

    name: str
    capability: tuple[int, int]
    half: float
    eight: Mapping[str, float]
    bandwidth: float
    launch: float = 2.0


def _device(name: str, capability: tuple[int, int], half: float, eight: float, bandwidth: float) -> Device:
    """A device from its data sheet (from memory): dense tera-operations/s in 16 and in 8 bit, TB/s of its memory.

    The shares that are reached are those of the H200: 600 of 989 and 1050 of 1979 tera-operations/s at inner sizes
    near 1000, 4.3 of 4.8 TB/s. A tile of 128 outputs reads 128 operations' worth per byte and one of 64 outputs 85, so
    that sparse blocks reach 909 and 606.
    """
    dense = eight * 1050 / 1979
    rates = {"dense": dense, "bitmap": dense, "two_four": dense}  # what is stored small runs expanded
    rates |= {"tall_blocks": dense * 909 / 1050, "blocks": dense * 606 / 1050}
    return Device(
        name=name,
        capability=capability,
        half=half * 600 / 989,
        eight=MappingProxyType(rates),
        bandwidth=bandwidth * 4.3 / 4.8,
    )


# Short name -> device.
DEVICES: Mapping[str, Device] = MappingProxyType(
    {
        "h200": _device("NVIDIA H200", (9, 0), 989, 1979, 4.8),
        "h100": _device("NVIDIA H100 80GB HBM3", (9, 0), 989, 1979, 3.35),
        "a100": _device("NVIDIA A100-SXM4-80GB", (8, 0), 312, 624, 2.04),
        "l4": _device("NVIDIA L4", (8, 9), 121, 242, 0.3),
    }
)


def device_named(name: str) -> Device:
    """The device of a short name, or of a driver's name with that word in it.

    Raises:
        UserError: none of :data:`DEVICES`.

    Example:
        >>> device_named("NVIDIA H200").half
        600.0

    """
    words = name.upper().replace("-", " ").split()
    for short, device in DEVICES.items():
        if short.upper() in words:
            return device
    raise UserError(f"--device: {name!r} is not one of {', '.join(DEVICES)}")


def product_us(
    device: Device, rows: int, outputs: int, inputs: int, format: str | None = None, density: float = 1.0
) -> float:
    """Microseconds of ``(rows, inputs) @ (inputs, outputs)``: the longer of computing and moving, and the launch.

    Args:
        device: where.
        rows: tokens.
        outputs: features of a result.
        inputs: features of an operand.
        format: packed format of the 8-bit weight; None is a dense product in 16 bit.
        density: fraction of the weight that is stored.

    Raises:
        KeyError: a format without kernel.

    Example:
        >>> round(product_us(DEVICES["h200"], 4096, 3072, 768), 1)
        34.2

    """
    rate, width = (device.half, 2) if format is None else (device.eight[format], 1)
    computed = 2 * rows * outputs * inputs * density / (rate * 1e6)
    moved = rows * inputs * width + outputs * inputs * density * width + rows * outputs * 2
    return max(computed, moved / (device.bandwidth * 1e6)) + device.launch
