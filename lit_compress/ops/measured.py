"""What was measured on GPUs: the fastest launch of a product, and its time compared with a dense one in 16 bit.

Two files, ``launches.json`` and ``measured.json``, ship with this module; ``tools/bench/tune.py`` writes such files.
``LIT_COMPRESS_MEASURED`` names a folder with others, read at the first product. A figure holds for the GPU whose name
it has, for its shape, and for numbers of rows of its bucket; everything else is chosen by a rule, or derived.
"""

import json
import os
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

from lit_compress.errors import UserError

__all__ = ["LAUNCHES", "TIMES", "VARIABLE", "Shape", "launch_rows", "launch_settings", "times"]

VARIABLE = "LIT_COMPRESS_MEASURED"
LAUNCHES, TIMES = "launches.json", "measured.json"
# What a launch has in addition to its shape; the names are those of ``launch.Product``.
SETTINGS = ("block_m", "block_n", "block_k", "warps", "stages", "swap", "group")


class Shape(NamedTuple):
    """Which matrix product on which GPU.

    Attributes:
        device: name of the GPU, as the driver says it.
        format: packed format of the weight.
        dtype: ``"int8"`` or ``"fp8"``.
        outputs: ``out_features``.
        inputs: ``in_features``.
        rows: most rows, a power of two.

    """

    device: str
    format: str
    dtype: str
    outputs: int
    inputs: int
    rows: int


class Times(NamedTuple):
    """Microseconds of a packed product and of a dense one in 16 bit, both with what follows them, and who says so.

    Attributes:
        kernel_us: of the kernel.
        dense_us: of the dense product.
        source: GPU and day.
        library_us: of the 8-bit product of cuBLASLt, where nothing but a bias follows; None elsewhere.

    """

    kernel_us: float
    dense_us: float
    source: str
    library_us: float | None = None


def launch_rows() -> list[dict[str, Any]]:
    """Everything in ``launches.json``, with the GPU's compute capability and the source of each figure."""
    return _rows(LAUNCHES)


def launch_settings(product: Shape) -> Mapping[str, Any] | None:
    """Configuration of the fastest launch of a product, by the names of :data:`SETTINGS`; None without a figure."""
    return _launches().get(product)


def times(product: Shape, density: float) -> Times | None:
    """Times of a product; None without a figure.

    Args:
        product: which.
        density: fraction of the weight that is stored. What was measured with the next larger fraction counts, since
            fewer blocks take no longer.

    """
    found = [(stored, figures) for stored, figures in _times().get(product, ()) if stored >= density - 1e-3]
    return min(found)[1] if found else None


@cache
def _launches() -> dict[Shape, dict[str, Any]]:
    best: dict[Shape, tuple[float, dict[str, Any]]] = {}
    for row in _rows(LAUNCHES):
        product, us, settings = _read(LAUNCHES, row, lambda row: (row["us"], {key: row[key] for key in SETTINGS}))
        if product not in best or us < best[product][0]:
            best[product] = us, settings
    return {product: settings for product, (_, settings) in best.items()}


@cache
def _times() -> dict[Shape, list[tuple[float, Times]]]:
    found: dict[Shape, list[tuple[float, Times]]] = {}
    for row in _rows(TIMES):
        product, density, figures = _read(
            TIMES,
            row,
            lambda row: (
                row["density"],
                Times(row["kernel_us"], row["dense_us"], row["source"], row.get("library_us")),
            ),
        )
        found.setdefault(product, []).append((density, figures))
    return found


@cache
def _rows(name: str) -> list[dict[str, Any]]:
    given = os.environ.get(VARIABLE)
    if given and not Path(given).is_dir():
        raise UserError(f"{VARIABLE}: {given!r} is no folder; give the one with {LAUNCHES} and {TIMES}, or unset it")
    path = Path(given or Path(__file__).parent) / name
    try:
        return json.loads(path.read_text()) if path.exists() else []
    except json.JSONDecodeError as error:
        raise UserError(f"{path}: not JSON ({error}); write it again with tools/bench/tune.py") from error


def _read(name: str, row: Any, of: Any) -> Any:
    try:
        return Shape(*(row[key] for key in Shape._fields)), *of(row)
    except (KeyError, TypeError) as error:
        raise UserError(f"{name}: {error} is missing in {row}; write it again with tools/bench/tune.py") from error
