"""How fast the kernels are on this GPU, beside what torch and torchao offer for the same product.

Measured: matrix products of BERT-base's shapes with a bf16 result, dense and in tiles of every sparsity, and the dense
one with bias, GELU and rounding to 8 bit; LayerNorm with rounding. Baselines, in the same process: ``F.linear`` in
bf16; ``torch._scaled_mm`` in fp8 with a scale per row, with and without fast accumulation; ``torch._int_mm`` alone,
without what has to follow it; torchao's dynamic int8 and fp8, compiled, where it can be imported; for LayerNorm, a copy
of as many bytes. Nothing is tuned while it is compiled: that took minutes for a shape.

Inputs rotate over more memory than the L2 cache holds. The calls of one rotation are a CUDA graph, so that Python and
launches cost nothing; cases are interleaved, and every round is a repetition. Absolute times are medians, in the
settings.

Gate, before any row is written: every case of ours agrees with the reference, every baseline with bf16.

``--plots`` draws what was measured: time over sparsity against the dense products (break-even), and a roofline whose
roofs are the copy and the largest product measured here.
"""

import statistics
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from time import perf_counter
from typing import Any, Literal

import torch
from jsonargparse import auto_cli
from torch import Tensor

from lit_compress import ops
from lit_compress.ops import reference
from tools.bench.kernel_baselines import DEVICE, Call, baselines_of, gate
from tools.bench.kernel_plots import Curve, Point, break_even, roofline
from tools.bench.measure import RESULTS, Row, interleave, publish
from tools.bench.targets import GELU, MANY_ROWS, PRODUCTS, TALL_BLOCKS

# Outputs and inputs of BERT-base's four products.
SHAPES = {"qkv": (2304, 768), "out": (768, 768), "up": (3072, 768), "down": (768, 3072)}
SPARSITIES = (0.0, 0.25, 0.5, 0.67, 0.75, 0.83, 0.92, 0.97)
# Most blocks that are kept in a tile, as a multiple of four: a chunk.
CHUNK = 4

Format = Literal["dense", "tall_blocks", "blocks"]


@dataclass(frozen=True, kw_only=True)
class Weight:
    """A packed weight.

    Args:
        values: as ``ops.quantized_linear`` takes them, like the next three.
        w_scale: of the outputs.
        columns: of tiles.
        offsets: likewise.
        sparsity: share of the numbers that is not stored.

    """

    values: Tensor
    w_scale: Tensor
    columns: Tensor | None = None
    offsets: Tensor | None = None
    sparsity: float = 0.0


def kernels(
    rows: tuple[int, ...] = (16, 128, 1024, 4096, 32768),
    shapes: tuple[str, ...] = tuple(SHAPES),
    dtype: Literal["int8", "fp8"] = "fp8",
    sparsities: tuple[float, ...] = SPARSITIES,
    repetitions: int = 9,
    simulate: bool = False,
    output: Path = RESULTS,
    plots: Path | None = None,
) -> list[Row]:
    """Time the kernels on this machine's GPU.

    Args:
        rows: numbers of tokens.
        shapes: which of qkv, out, up and down.
        dtype: of the 8-bit numbers.
        sparsities: of weights in tiles.
        repetitions: measured calls of each case.
        simulate: go through everything on a CPU, with reference operators; the times mean nothing.
        output: CSV to append to.
        plots: folder for pictures; none are drawn without.

    """
    if DEVICE == "cpu" and not simulate:
        raise SystemExit("kernels: no CUDA device here, nothing was measured; run it on a machine with a GPU")
    eight = torch.int8 if dtype == "int8" else torch.float8_e4m3fn
    table: list[Row] = []
    curves: list[Curve] = []
    points: list[Point] = []
    for name in shapes:
        for count in rows:
            found, curve = products(name, count, eight, repetitions, sparsities)
            publish(found, output)  # at once: whatever ends this process does not take it away
            table += found
            curves.append(curve)
            points += of_roofline(curve, *SHAPES[name])
    norms = [norm(count, 768, eight, repetitions) for count in rows]
    publish(norms, output)
    table += norms
    if plots is not None:
        plots.mkdir(parents=True, exist_ok=True)
        break_even(curves, plots / f"break-even-{dtype}.png")
        copied = max(row.settings["copy_bytes_per_s"] for row in norms)
        roofline(points, copied, largest_product(eight), plots / f"roofline-{dtype}.png")
    return table


def products(
    name: str, rows: int, dtype: torch.dtype, repetitions: int, sparsities: tuple[float, ...] = SPARSITIES
) -> tuple[list[Row], Curve]:
    """Rows of the table and the curve of one shape and number of tokens."""
    outputs, inputs = SHAPES[name]
    copies = rotation(rows * inputs + outputs * inputs + 2 * rows * outputs)
    x = [torch.randn(rows, inputs, device=DEVICE, dtype=torch.bfloat16) for _ in range(copies)]
    dense = [torch.randn(outputs, inputs, device=DEVICE, dtype=torch.bfloat16) for _ in range(copies)]
    quantized = [ops.quantize_rows(part, dtype) for part in x]
    cases: dict[str, Call] = {}
    stored: dict[str, float] = {}
    for format in ("dense", "tall_blocks", "blocks"):
        for sparsity in sparsities if format != "dense" else (0.0,):
            weights = [packed(weight, format, sparsity, dtype) for weight in dense]
            case = f"{format} {weights[0].sparsity:.0%}"
            if case not in cases:
                cases[case] = partial(ours, quantized, weights)
                stored[case] = weights[0].sparsity
                gate(case, cases[case](0), expected(quantized[0], weights[0]))
    cases[GELU] = rounded_gelu(quantized, [packed(weight, "dense", 0.0, dtype) for weight in dense])
    baselines = dict(baselines_of(x, quantized, dense, dtype))
    seconds = time(cases | baselines, copies, repetitions)
    micro = {case: round(statistics.median(values) * 1e6, 2) for case, values in seconds.items()}
    settings = {"rows": rows, "shape": name, "outputs": outputs, "inputs": inputs, "copies": copies, "us": micro}
    return (
        list(comparisons(name, rows, seconds, settings | {"dtype": "int8" if dtype == torch.int8 else "fp8"})),
        Curve(
            title=f"{name} {rows} x {inputs} x {outputs}",
            rows=rows,
            formats={
                format: [(stored[case], micro[case]) for case in stored if case.startswith(format)]
                for format in ("dense", "tall_blocks", "blocks")
            },
            baselines={case: micro[case] for case in baselines},
        ),
    )


def comparisons(name: str, rows: int, seconds: dict[str, list[float]], settings: dict[str, Any]) -> Iterator[Row]:
    """What is said of the cases, with the bounds that the project aims at."""

    def row(case: str, baseline: str, target: float | None = None) -> Row:
        ratios = [a / b for a, b in zip(seconds[case], seconds[baseline], strict=True)]
        return Row(
            benchmark="kernels",
            case=f"{name} {rows} {case}",
            baseline=baseline,
            ratios=ratios,
            target=target,
            settings=settings,
        )

    others = [case for case in seconds if not case.startswith(("dense", "tall", "blocks"))]
    scaled = [case for case in others if case.startswith("_scaled_mm")]
    fastest = min(scaled, key=lambda case: statistics.median(seconds[case]), default=None)
    bounds = PRODUCTS[settings["dtype"]] if rows >= MANY_ROWS else {}
    for case in seconds:
        if case == "dense 0%":
            for baseline in others:
                yield row(case, baseline, bounds.get(case) if baseline == fastest else None)
        elif case == GELU and fastest is not None:
            yield row(case, fastest, bounds.get(case))
        elif case.startswith(("tall_blocks", "blocks")):
            yield row(case, "dense 0%", TALL_BLOCKS if case == "tall_blocks 50%" else None)


def packed(weight: Tensor, format: Format, sparsity: float, dtype: torch.dtype) -> Weight:
    """A weight of which every tile keeps as many random blocks as the sparsity leaves, a multiple of a chunk."""
    values, w_scale = ops.quantize_rows(weight, dtype)
    if format == "dense":
        return Weight(values=values, w_scale=w_scale)
    height, width, per_chunk = (128, 32, CHUNK) if format == "tall_blocks" else (64, 64, 1)
    outputs, inputs = weight.shape
    tiles, blocks = outputs // height, inputs // width
    kept = max(per_chunk, round(blocks * (1 - sparsity) / per_chunk) * per_chunk)
    picked = torch.rand(tiles, blocks, device=weight.device).argsort(1)[:, :kept].sort(1).values
    raw = values.view(torch.int8).reshape(tiles, height, blocks, width).transpose(1, 2)
    gathered = raw.gather(1, picked[:, :, None, None].expand(-1, -1, height, width))
    chunks = tiles * kept // per_chunk
    gathered = gathered.reshape(chunks, per_chunk, height, width).transpose(1, 2).reshape(chunks, height, -1)
    columns = torch.cat([picked.reshape(chunks, per_chunk), picked.new_zeros(1, per_chunk)]).to(torch.int32)
    offsets = torch.arange(tiles + 1, device=weight.device, dtype=torch.int32) * (kept // per_chunk)
    return Weight(
        values=gathered.contiguous().view(dtype),
        w_scale=w_scale,
        columns=columns,
        offsets=offsets,
        sparsity=1 - kept / blocks,
    )


def ours(quantized: list[tuple[Tensor, Tensor]], weights: list[Weight], turn: int) -> Tensor:
    """A kernel's product."""
    weight = weights[turn]
    return ops.quantized_linear(
        *quantized[turn], weight.values, weight.w_scale, weight.columns, weight.offsets, out_dtype=torch.bfloat16
    )


def rounded_gelu(quantized: list[tuple[Tensor, Tensor]], weights: list[Weight]) -> Call:
    """The product with all that follows it in a layer, as 8-bit numbers."""
    bias = torch.zeros(len(weights[0].w_scale), device=DEVICE, dtype=torch.bfloat16)
    step = torch.tensor([0.5], device=DEVICE)

    def arguments(turn: int) -> tuple[Any, ...]:
        weight = weights[turn]
        stored = (weight.values, weight.w_scale, weight.columns, weight.offsets)
        return *quantized[turn], *stored, bias, None, "gelu_tanh", torch.bfloat16, step

    gate(GELU, ops.quantized_linear(*arguments(0)), reference.quantized_linear(*arguments(0)))
    return lambda turn: ops.quantized_linear(*arguments(turn))


def expected(quantized: tuple[Tensor, Tensor], weight: Weight) -> Tensor:
    """The reference's product."""
    return reference.quantized_linear(
        *quantized,
        weight.values,
        weight.w_scale,
        weight.columns,
        weight.offsets,
        None,
        None,
        "none",
        torch.float32,
        None,
    )


def norm(rows: int, columns: int, dtype: torch.dtype, repetitions: int) -> Row:
    """LayerNorm with residual and rounding, beside a copy that moves as many bytes."""
    moved = rows * columns * (2 + 2 + 2 + 1) + 4 * rows
    copies = rotation(moved)
    x, other = (
        [torch.randn(rows, columns, device=DEVICE, dtype=torch.bfloat16) for _ in range(copies)] for _ in range(2)
    )
    weight, bias = torch.randn(2, columns, device=DEVICE, dtype=torch.bfloat16)
    source, target = (
        [torch.empty(moved // 2, device=DEVICE, dtype=torch.uint8).fill_(3) for _ in range(copies)] for _ in range(2)
    )

    def call(turn: int) -> Tensor:
        return ops.layernorm_quantize(x[turn], other[turn], weight, bias, 1e-5, dtype)[0]

    gate("layernorm", call(0), reference.layernorm_quantize(x[0], other[0], weight, bias, 1e-5, dtype)[0], 0.01)
    seconds = time({"ours": call, "copy": lambda turn: target[turn].copy_(source[turn])}, copies, repetitions)
    return Row(
        benchmark="kernels",
        case=f"layernorm_quantize {rows} x {columns}",
        baseline="copy of as many bytes",
        ratios=[a / b for a, b in zip(seconds["ours"], seconds["copy"], strict=True)],
        target=1 / 0.85,
        settings={
            "rows": rows,
            "columns": columns,
            "bytes": moved,
            "copy_bytes_per_s": moved / statistics.median(seconds["copy"]),
        },
    )


def of_roofline(curve: Curve, outputs: int, inputs: int) -> Iterator[Point]:
    """A point for each product of ours."""
    for format, measured in curve.formats.items():
        for sparsity, micro in measured:
            kept = 1 - sparsity
            operations = 2 * curve.rows * outputs * inputs * kept
            moved = curve.rows * inputs + outputs * inputs * kept + 2 * curve.rows * outputs
            yield Point(format=format, intensity=operations / moved, rate=operations / micro * 1e6)


def largest_product(dtype: torch.dtype) -> float:
    """Operations per second of a product large enough to be limited by nothing else."""
    size = 8192
    numbers = [ops.quantize_rows(torch.randn(size, size, device=DEVICE), dtype) for _ in range(2)]
    (q, q_scale), (w, w_scale) = numbers
    seconds = time({"product": lambda _: ops.quantized_linear(q, q_scale, w, w_scale, out_dtype=torch.bfloat16)}, 1, 9)
    return 2 * size**3 / min(seconds["product"])


def rotation(moved: int) -> int:
    """How many sets of inputs hold more than twice the L2 cache; at least four, at most sixty-four."""
    cache = torch.cuda.get_device_properties(0).L2_cache_size if DEVICE == "cuda" else 0
    return min(64, max(4, 2 * cache // moved + 1))


def time(cases: dict[str, Call], copies: int, repetitions: int) -> dict[str, list[float]]:
    """Seconds per call of each case, interleaved."""
    return interleave({name: captured(call, copies) for name, call in cases.items()}, repetitions)


def captured(call: Call, copies: int) -> Callable[[], float]:
    """A rotation as a CUDA graph; a turn replays it for at least some milliseconds. On a CPU its calls, once."""
    if DEVICE == "cpu":
        return partial(called, call, copies)
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for turn in range(copies):
            call(turn)
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for turn in range(copies):
            call(turn)

    def replay(times: int) -> float:
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        for _ in range(times):
            graph.replay()
        end.record()
        end.synchronize()
        return start.elapsed_time(end) / 1e3 / times / copies

    once = replay(3)
    times = max(3, round(5e-3 / (once * copies)))
    return partial(replay, times)


def called(call: Call, copies: int) -> float:
    """Seconds per call without a graph."""
    started = perf_counter()
    for turn in range(copies):
        call(turn)
    return (perf_counter() - started) / copies


if __name__ == "__main__":
    auto_cli(kernels, as_positional=False)
