"""What computes a packed linear: its kernel, a dense product of its dequantized weight, or the reference.

The choice depends on Python integers and names alone, is made once per shape and kept, and reads no tensor: it costs
nothing at run time, needs no synchronization, and is constant in a compiled graph. In this order:

1. ``LIT_COMPRESS_DISPATCH`` (``kernel``, ``dense`` or ``reference``; read at the first import) or :func:`forced`.
2. What the device can do.
3. What was measured on this GPU, :mod:`lit_compress.ops.measured`.
4. An estimate, :mod:`lit_compress.ops.product_times`: derived from an H100, not measured on this GPU.
"""

import importlib.util
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from typing import Literal, cast, get_args

import torch

from lit_compress.errors import UserError
from lit_compress.ops import measured
from lit_compress.ops.product_times import DEVICES, Device, device_named, pass_us, product_us

__all__ = [
    "ROW_BUCKETS",
    "VARIABLE",
    "Choice",
    "Decision",
    "Problem",
    "choose",
    "decide",
    "device_name",
    "forced",
    "row_bucket",
]

Choice = Literal["kernel", "dense", "reference"]
VARIABLE = "LIT_COMPRESS_DISPATCH"

# Numbers of tokens that are told apart.
ROW_BUCKETS = tuple(2**power for power in range(4, 18))
# Devices, as a problem names them, where only torch multiplies.
WITHOUT_KERNELS = ("cpu",)

# A plain global: compiled code watches it, and traces through where it would not through a context variable.
_override: str | None = os.environ.get(VARIABLE) or None


@dataclass(frozen=True, kw_only=True)
class Problem:
    """What a choice depends on, apart from the number of rows.

    Args:
        outputs: ``out_features``.
        inputs: ``in_features``.
        format: packed format.
        dtype: ``"int8"`` or ``"fp8"``.
        density: fraction of the weight that is stored.
        device: ``"cpu"``, or the GPU's name.

    """

    outputs: int
    inputs: int
    format: str
    dtype: str
    density: float
    device: str


@dataclass(frozen=True, kw_only=True)
class Decision:
    """A choice and why.

    Args:
        choice: what runs.
        reason: in words.
        source: where it comes from.
        kernel_us: microseconds of the kernel; None where there is none, or no figure.
        dense_us: microseconds of the dense product in 16 bit; None where there is no figure.

    """

    choice: Choice
    reason: str
    source: Literal["forced", "fixed", "measured", "derived"]
    kernel_us: float | None = None
    dense_us: float | None = None


@contextmanager
def forced(choice: Choice | None) -> Iterator[None]:
    """Inside the block every choice is ``choice``; None decides as if nothing were forced."""
    global _override
    before, _override = _override, choice
    try:
        yield
    finally:
        _override = before


def row_bucket(rows: int) -> int:
    """The bucket of :data:`ROW_BUCKETS` that a number of rows is treated as.

    Example:
        >>> row_bucket(1), row_bucket(100), row_bucket(10**9)
        (16, 128, 131072)

    """
    return ROW_BUCKETS[_bucket(rows)]


def choose(
    rows: int, outputs: int, inputs: int, format: str, dtype: str, density: float, device: torch.device
) -> Choice:
    """What computes a linear of ``rows`` tokens; see :class:`Problem` for the others.

    Raises:
        UserError: the environment variable holds something else than a choice.

    """
    if _override is not None:
        return _forced(_override)
    return _choices(outputs, inputs, format, dtype, density, device.type, device.index)[_bucket(rows)]


def decide(rows: int, problem: Problem) -> Decision:
    """The same with the reason, for any device, also one that is not here.

    Raises:
        UserError: an environment variable that holds something else than a choice.

    """
    if _override is not None:
        return Decision(choice=_forced(_override), reason=f"forced: {VARIABLE}={_override}", source="forced")
    return _decide(row_bucket(rows), problem)


@cache
def _decide(rows: int, problem: Problem) -> Decision:
    if problem.device in WITHOUT_KERNELS:
        reason = "no kernels for this device: the weight is dequantized once, inputs are not rounded"
        return Decision(choice="dense", reason=reason, source="fixed")
    device = _known(problem.device)
    capability = device.capability if device is not None else _capability_here(problem.device)
    needed = (8, 9) if problem.dtype == "fp8" else (8, 0)
    if capability is not None and capability < needed:
        reason = f"{problem.dtype} needs compute capability {needed[0]}.{needed[1]}, this is {capability}"
        return Decision(choice="dense", reason=reason, source="fixed")
    if (known := _measured(rows, problem)) is not None:
        ours = known.kernel_us if known.library_us is None else min(known.kernel_us, known.library_us)
        return _faster(ours, known.dense_us, "measured", f"measured: {known.source}")
    if device is None:
        reason = "no figures of this GPU; assumed to be as of others"
        return Decision(choice="kernel", reason=reason, source="fixed")
    if (problem.format, problem.dtype) not in device.eight:
        return Decision(choice="dense", reason=f"no kernel for the format {problem.format}", source="fixed")
    shape = (rows, problem.outputs, problem.inputs)
    kernel = product_us(device, *shape, problem.format, problem.dtype, problem.density)
    # A kernel adds the bias, activates, adds the residual and rounds; a dense product has a pass behind it.
    dense = product_us(device, *shape) + pass_us(device, rows, problem.outputs)
    return _faster(kernel, dense, "derived", "derived, not measured")


def _faster(kernel: float, dense: float, source: Literal["measured", "derived"], origin: str) -> Decision:
    return Decision(
        choice="kernel" if kernel <= dense else "dense",
        reason=f"{kernel:.1f} us against {dense:.1f} us dense in 16 bit ({origin})",
        source=source,
        kernel_us=kernel,
        dense_us=dense,
    )


def _measured(rows: int, problem: Problem) -> measured.Times | None:
    """What was measured of a product; a device's short name stands for the one of the table."""
    name = DEVICES[problem.device].name if problem.device in DEVICES else problem.device
    product = measured.Shape(name, problem.format, problem.dtype, problem.outputs, problem.inputs, rows)
    return measured.times(product, problem.density)


@torch.compiler.assume_constant_result
def _choices(
    outputs: int, inputs: int, format: str, dtype: str, density: float, kind: str, index: int | None
) -> tuple[Choice, ...]:
    """One choice per bucket; a compiled graph holds the result as a constant."""
    return _choices_of(outputs, inputs, format, dtype, density, kind, index)


@cache
def _choices_of(
    outputs: int, inputs: int, format: str, dtype: str, density: float, kind: str, index: int | None
) -> tuple[Choice, ...]:
    device = device_name(kind, index)
    problem = Problem(outputs=outputs, inputs=inputs, format=format, dtype=dtype, density=density, device=device)
    return tuple(_decide(rows, problem).choice for rows in ROW_BUCKETS)


@cache
def device_name(kind: str, index: int | None) -> str:
    """Name of a GPU as the driver says it, ``"cpu"`` for everything that runs no kernels."""
    if kind != "cuda" or importlib.util.find_spec("triton") is None:
        return "cpu"
    return torch.cuda.get_device_name(index)


@cache
def _known(name: str) -> Device | None:
    try:
        return device_named(name)
    except UserError:
        return None


def _capability_here(name: str) -> tuple[int, int] | None:
    """Compute capability of a GPU of this machine; None for another."""
    indices = range(torch.cuda.device_count() if torch.cuda.is_available() else 0)
    return next((torch.cuda.get_device_capability(i) for i in indices if torch.cuda.get_device_name(i) == name), None)


def _forced(value: str) -> Choice:
    if value not in get_args(Choice):
        raise UserError(f"{VARIABLE}: {value!r} is not one of {', '.join(get_args(Choice))}")
    return cast(Choice, value)


def _bucket(rows: int) -> int:
    # Comparisons, and no bit tricks: rows may be symbolic while a graph is traced.
    for index, edge in enumerate(ROW_BUCKETS[:-1]):
        if rows <= edge:
            return index
    return len(ROW_BUCKETS) - 1
