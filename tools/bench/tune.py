"""Find the fastest launch of each product on this machine's GPU, and what its product takes beside one in bf16.

``python -m tools.bench.tune --output tuned/ --minutes 4`` writes ``launches.json`` and ``measured.json``, a row the
moment it is measured; a second call goes on where the first one stopped. ``LIT_COMPRESS_MEASURED=tuned/`` uses them,
and rows that are copied to ``lit_compress/ops`` ship.

Candidates come from a small grid and from the rule. Those that do not fit shared memory are left out, and so is
whatever spills registers once it is compiled ahead of time, in several processes. Each product is timed with what
follows it in an encoder: GELU and rounding to 8 bit behind ``up``, a bias behind ``qkv``, bias and residual elsewhere;
the bf16 product likewise. In fp8 ``qkv`` is timed in cuBLASLt, too.

Without a GPU, ``--dry_run true`` compiles and says what would be timed, for an H100.
"""

import json
import multiprocessing
import os
import statistics
import time
from collections import defaultdict
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from datetime import UTC, datetime
from functools import partial
from itertools import product as combinations
from pathlib import Path
from typing import Any, Literal

import torch
from jsonargparse import auto_cli
from torch import Tensor
from torch.nn import functional as F
from triton.runtime.errors import OutOfResources

from lit_compress.ops import launch, measured
from lit_compress.ops.cublaslt import library_product
from lit_compress.ops.linear import LinearArguments
from tools import aot, aot_jobs
from tools.bench import kernels as bench

# The most valuable first: what a minute less would leave out comes last.
ROWS = (32768, 4096, 128)
FORMATS = ("dense", "tall_blocks", "blocks")
# Fractions of blocks that are kept, of what is written to measured.json; launches are timed with the first.
DENSITIES = {"dense": (1.0,), "tall_blocks": (0.17, 0.33, 0.5), "blocks": (0.17, 0.33, 0.5)}
TILES = {name: tile for tile, name in launch.FORMATS.items()}
GRID = {
    "block_m": (64, 128, 256),
    "block_n": (64, 128, 256),
    "block_k": (64, 128),
    "warps": (4, 8),
    "stages": (3, 4, 5),
}


def tune(
    output: Path = Path("tuned"),
    minutes: float = 4.0,
    dtypes: tuple[Literal["int8", "fp8"], ...] = ("fp8", "int8"),
    formats: tuple[str, ...] = FORMATS,
    shapes: tuple[str, ...] = ("up", "down", "qkv", "out"),
    rows: tuple[int, ...] = ROWS,
    repetitions: int = 5,
    limit: int | None = None,
    dry_run: bool = False,
) -> None:
    """Time launches and write the fastest ones.

    Args:
        output: folder of both files.
        minutes: after which no further product is begun.
        dtypes: of the 8-bit numbers.
        formats: of the weight.
        shapes: which of qkv, out, up and down.
        rows: numbers of tokens.
        repetitions: measured calls of each candidate.
        limit: most candidates of a product; None is all.
        dry_run: compile, list the candidates, time nothing.

    """
    deadline = time.monotonic() + 60 * minutes
    here = torch.cuda.is_available()
    if not here and not dry_run:
        raise SystemExit("tune: no CUDA device here, nothing was measured; --dry_run true only compiles")
    device = torch.cuda.get_device_name() if here else "no GPU"
    capability = torch.cuda.get_device_capability() if here else (9, 0)
    fits: dict[measured.Shape, dict[launch.Product, bool]] = defaultdict(dict)
    with ProcessPoolExecutor(processors(), mp_context=multiprocessing.get_context("spawn")) as pool:
        for count, dtype, format, name in combinations(rows, dtypes, formats, shapes):
            shape = measured.Shape(device, format, dtype, *bench.SHAPES[name], count)
            if is_known(output, shape):
                continue
            if time.monotonic() > deadline:
                print(f"no minute left for {dtype} {format} {name} {count} and what comes after it")
                return
            tried = list(dict.fromkeys([ruled(shape), *candidates(format, capability)]))[:limit]
            kind = kind_of(shape)
            new = [candidate for candidate in tried if candidate not in fits[kind]]
            fits[kind] |= zip(new, pool.map(partial(is_fitting, kind, capability), new), strict=True)
            found = [candidate for candidate in tried if fits[kind][candidate]]
            print(f"{dtype} {format} {name} {count}: {len(found)} of {len(tried)} candidates fit", flush=True)
            if not dry_run:
                measure(output, shape, found, capability, repetitions)


def candidates(format: str, capability: tuple[int, int]) -> Iterator[launch.Product]:
    """Launches of the grid that a format's tiles allow and shared memory holds."""
    height, chunk, _ = TILES[format]
    for values in combinations(*GRID.values()):
        shape = launch.Product(**dict(zip(GRID, values, strict=True)))
        if (chunk and shape.block_k != chunk) or (height and height % shape.block_n):
            continue
        if shape.shared_bytes <= launch.SHARED_MEMORY[capability] and is_filling(shape):
            yield shape


def is_filling(shape: launch.Product) -> bool:
    """Whether a result has enough numbers for its threads and not more than their registers hold."""
    numbers = shape.block_m * shape.block_n / (32 * shape.warps)
    # Short steps need more of them under way; long ones leave no room for as many.
    return 32 <= numbers <= 128 and (shape.stages == 5) == (shape.block_k == 64)


def ruled(shape: measured.Shape) -> launch.Product:
    """What would be launched without being measured."""
    tile = TILES[shape.format]
    return launch.product_launch(shape.rows, shape.outputs, shape.inputs, tile, type_of(shape), torch.device("cuda"))


def kind_of(shape: measured.Shape) -> measured.Shape:
    """A shape for all products that are compiled to the same code."""
    outputs, inputs = bench.SHAPES["up" if shape.outputs > shape.inputs else "down"]
    return shape._replace(outputs=outputs, inputs=inputs, rows=0)


def is_fitting(shape: measured.Shape, capability: tuple[int, int], candidate: launch.Product) -> bool:
    """Whether the compiled kernel fits; without a disassembler in the wheel of Triton spills are not seen.

    On a GPU it runs once, so that Triton has it on disk and nothing is compiled one by one when it is timed.
    """
    target, epilogue = 10 * capability[0] + capability[1], aot_jobs.epilogue_of(shape.outputs, shape.inputs)
    evidence = aot.examine(
        aot_jobs.product(aot_jobs.DTYPES[shape.dtype], target, TILES[shape.format], candidate, epilogue)
    )
    if evidence.spills or evidence.shared > launch.SHARED_MEMORY[capability]:
        return False
    if not torch.cuda.is_available():
        return True
    ours, *_ = calls(shape._replace(rows=candidate.block_m), 1.0, copies=1)
    try:
        ours(candidate)(0)
        torch.cuda.synchronize()
    except OutOfResources:  # of this machine's version of Triton, which may need more than what was compiled here
        return False
    return True


def measure(
    output: Path, shape: measured.Shape, found: list[launch.Product], capability: tuple[int, int], repetitions: int
) -> None:
    """Write the rows of one product."""
    source = f"{shape.device}, {datetime.now(UTC):%Y-%m-%d}"
    common = shape._asdict() | {"capability": list(capability), "source": source}
    best: launch.Product | None = None
    for density in DENSITIES[shape.format]:
        ours, theirs, library, copies = calls(shape, density)
        if best is None:
            seconds = bench.time(
                {str(place): ours(candidate) for place, candidate in enumerate(found)}, copies, repetitions
            )
            micro = {place: statistics.median(seconds[str(place)]) * 1e6 for place in range(len(found))}
            place = min(micro, key=lambda place: micro[place])
            best = found[place]
            settings = {key: getattr(best, key) for key in measured.SETTINGS}
            write(output / measured.LAUNCHES, common | settings | {"us": round(micro[place], 1)})
        cases = {"kernel_us": ours(best), "dense_us": theirs} | ({"library_us": library} if library else {})
        seconds = bench.time(cases, copies, repetitions)
        figures = {case: round(statistics.median(seconds[case]) * 1e6, 1) for case in cases}
        write(output / measured.TIMES, common | {"density": density} | figures)


def calls(
    shape: measured.Shape, density: float, copies: int | None = None
) -> tuple[Any, bench.Call, bench.Call | None, int]:
    """What makes a call of a launch, the product in bf16, in cuBLASLt where it does the same, and how many inputs.

    Args:
        shape: of the product.
        density: fraction of the weight that is stored.
        copies: sets of inputs; None is more than the L2 cache holds.

    """
    from lit_compress.ops.kernels.quantized_linear import quantized_linear

    rows, outputs, inputs = shape.rows, shape.outputs, shape.inputs
    dtype, plain = type_of(shape), (outputs, inputs) == bench.SHAPES["qkv"]
    rounded = outputs > inputs and not plain
    copies = copies or bench.rotation(rows * inputs + outputs * inputs + 2 * rows * outputs)
    x, dense, residual = (
        [torch.randn(*size, device=bench.DEVICE, dtype=torch.bfloat16) for _ in range(copies)]
        for size in ((rows, inputs), (outputs, inputs), (rows, outputs))
    )
    bias = torch.randn(outputs, device=bench.DEVICE, dtype=torch.bfloat16)
    step = torch.tensor([0.5], device=bench.DEVICE)
    quantized = [bench.ops.quantize_rows(part, dtype) for part in x]
    weights = [bench.packed(weight, shape.format, 1 - density, dtype) for weight in dense]  # type: ignore[arg-type]

    def arguments(turn: int) -> LinearArguments:
        weight = weights[turn]
        stored = (weight.values, weight.w_scale, weight.columns, weight.offsets)
        if rounded:
            return LinearArguments(*quantized[turn], *stored, bias, None, "gelu_tanh", torch.bfloat16, step)
        added = None if plain else residual[turn]
        return LinearArguments(*quantized[turn], *stored, bias, added, "none", torch.bfloat16, None)

    def ours(candidate: launch.Product) -> bench.Call:
        return lambda turn: quantized_linear(arguments(turn), candidate)

    def theirs(turn: int) -> Tensor:
        y = F.linear(x[turn], dense[turn], bias)
        if plain:
            return y
        return F.gelu(y, approximate="tanh") if rounded else y + residual[turn]

    library = (lambda turn: library_product(arguments(turn))) if plain and is_dense_fp8(shape) else None
    return ours, theirs, library, copies


def is_dense_fp8(shape: measured.Shape) -> bool:
    """Whether the library multiplies such a weight."""
    return shape.format == "dense" and shape.dtype == "fp8"


def type_of(shape: measured.Shape) -> torch.dtype:
    """The 8-bit type of a product."""
    return torch.int8 if shape.dtype == "int8" else torch.float8_e4m3fn


def processors() -> int:
    """How many this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def is_known(output: Path, shape: measured.Shape) -> bool:
    """Whether a product has all its rows."""
    wanted = len(DENSITIES[shape.format])
    return sum(shape == _shape_of(row) for row in read(output / measured.TIMES)) >= wanted


def write(path: Path, row: dict[str, Any]) -> None:
    """Add a row, a line of JSON in a list; one of the same product and density is replaced."""
    kept = [old for old in read(path) if (_shape_of(old), old.get("density")) != (_shape_of(row), row.get("density"))]
    path.parent.mkdir(parents=True, exist_ok=True)
    new = path.with_suffix(".new")
    new.write_text("[\n" + ",\n".join(json.dumps(item) for item in [*kept, row]) + "\n]\n")
    new.replace(path)  # never half a file


def read(path: Path) -> list[dict[str, Any]]:
    """Rows of a file; none where there is none."""
    return json.loads(path.read_text()) if path.exists() else []


def _shape_of(row: dict[str, Any]) -> measured.Shape:
    return measured.Shape(*(row[key] for key in measured.Shape._fields))


if __name__ == "__main__":
    auto_cli(tune, as_positional=False)
