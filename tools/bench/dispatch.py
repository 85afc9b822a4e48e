"""Times of the packed kernels and of dense 16-bit products on this GPU: the table that `ops/dispatch.py` decides by.

For every shape, format, dtype, density and number of rows: quantized inputs through the packed kernel with a bias, and
bf16 inputs through ``torch.nn.functional.linear``; four sets of inputs in turn, CUDA events, the median of several
rounds. The table replaces the entry of this GPU in the file.

Gate, for every entry: the kernel's result equals that of the reference within the rounding of its output.
"""

import itertools
import json
import statistics
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
from jsonargparse import auto_cli
from torch import Tensor, nn
from torch.nn import functional as F

from lit_compress import ops
from lit_compress.files import atomic_file
from lit_compress.models.fused_layer import density, precision
from lit_compress.nn.packed import PackedLinear
from lit_compress.nn.packed_buffers import DTYPES
from lit_compress.ops import reference
from lit_compress.ops.dispatch import MEASURED, ROW_BUCKETS
from tools.bench.measure import synchronize

# Outputs and inputs of the products of MiniLM, BERT-base and BERT-large, and of BERT-base with half the heads and a
# quarter of the neurons.
SHAPES = [
    *((1152, 384), (384, 384), (1536, 384), (384, 1536)),
    *((2304, 768), (768, 768), (3072, 768), (768, 3072)),
    *((3072, 1024), (1024, 1024), (4096, 1024), (1024, 4096)),
    *((1152, 768), (768, 384)),
]
Tiled = Literal["dense", "tall_blocks", "blocks"]
# Fractions of blocks that are kept.
DENSITIES = [1 / 2, 1 / 3, 1 / 6]


def dispatch(
    shapes: list[tuple[int, int]] = SHAPES,
    rows: list[int] = list(ROW_BUCKETS[:12]),  # noqa: B006 (jsonargparse shows and never changes it)
    formats: list[Tiled] = ["dense", "tall_blocks"],  # noqa: B006
    dtypes: list[Literal["int8", "fp8"]] = ["int8", "fp8"],  # noqa: B006
    rounds: int = 30,
    output: Path = MEASURED,
) -> None:
    """Measure kernels beside dense products and write the table.

    Args:
        shapes: outputs and inputs.
        rows: numbers of tokens, powers of two.
        formats: packed formats.
        dtypes: of the packed weights.
        rounds: calls of each; the median counts.
        output: table to write; one that exists keeps its other GPUs.

    """
    gpu = torch.cuda.is_available()
    if not gpu and output == MEASURED:
        raise SystemExit("dispatch: no GPU here; the table that ships holds GPUs only. Give another --output to try it")
    entries = [
        entry
        for shape, format, dtype in itertools.product(shapes, formats, dtypes)
        for share in (DENSITIES if format != "dense" else [1.0])
        for entry in measured(packed_linear(shape, format, dtype, share), rows, rounds)
    ]
    table = json.loads((output if output.exists() else MEASURED).read_text())
    table["gpus"][torch.cuda.get_device_name() if gpu else "cpu"] = entries
    with atomic_file(output) as path:
        path.write_text(json.dumps(table, indent=1) + "\n")
    print(f"{len(entries)} entries written to {output}")


def packed_linear(
    shape: tuple[int, int],
    format: Literal["dense", "tall_blocks", "blocks"],
    dtype: Literal["int8", "fp8"],
    share: float,
) -> PackedLinear:
    """A linear of random weights, of whose blocks a share is kept, evenly."""
    outputs, inputs = shape
    torch.manual_seed(0)
    linear = nn.Linear(inputs, outputs)
    if format != "dense":
        height, width = (128, 32) if format == "tall_blocks" else (64, 64)
        for start in range(0, outputs, height):
            kept = torch.randperm(inputs // width)[: max(round(share * inputs / width), 1)]
            mask = torch.zeros(inputs // width).index_fill(0, kept, 1.0).repeat_interleave(width)
            linear.weight.data[start : start + height] *= mask
    packed = PackedLinear.from_linear(linear, format, DTYPES[dtype])
    return packed.to("cuda" if torch.cuda.is_available() else "cpu")


@torch.inference_mode()
def measured(linear: PackedLinear, rows: Sequence[int], rounds: int) -> list[dict[str, Any]]:
    """Entries of the table for one weight."""
    device, half = linear.values.device, torch.bfloat16
    weight = torch.randn(linear.out_features, linear.in_features, device=device, dtype=half)
    bias = linear.bias
    assert bias is not None
    entries = []
    for count in rows:
        inputs = [torch.randn(count, linear.in_features, device=device, dtype=half) for _ in range(4)]
        quantized = [ops.quantize_rows(x, linear.values.dtype) for x in inputs]
        arguments = (linear.values, linear.w_scale, linear.columns, linear.offsets, bias, None, "none", half, None)
        got, expected = (where.quantized_linear(*quantized[0], *arguments) for where in (ops, reference))
        gate(got, expected)
        kernel = median_us([partial(ops.quantized_linear, *q, *arguments) for q in quantized], rounds)
        dense = median_us([partial(F.linear, x, weight, bias.to(half)) for x in inputs], rounds)
        entries.append(
            {
                "rows": count,
                "outputs": linear.out_features,
                "inputs": linear.in_features,
                "format": linear.format,
                "dtype": precision(linear),
                "density": round(density(linear), 4),
                "kernel_us": round(kernel, 2),
                "dense_us": round(dense, 2),
            }
        )
    return entries


def gate(got: Tensor, expected: Tensor) -> None:
    """Stop unless two results in bf16 are the same up to rounding."""
    error = float((got.float() - expected.float()).norm() / expected.float().norm())
    if not error < 5e-3:
        raise SystemExit(f"gate: the kernel differs from the reference by {error:.2%}; no table was written")


def median_us(calls: Sequence[Callable[[], Any]], rounds: int) -> float:
    """Median microseconds of a call; the calls in turn, the first of each not counted."""
    times = []
    for index in range(rounds + len(calls)):
        call = calls[index % len(calls)]
        if torch.cuda.is_available():
            start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            start.record()
            call()
            end.record()
            synchronize()
            seconds = start.elapsed_time(end) * 1e-3
        else:
            started = time.perf_counter()
            call()
            seconds = time.perf_counter() - started
        times.append(seconds * 1e6)
    return statistics.median(times[len(calls) :])


if __name__ == "__main__":
    auto_cli(dispatch, as_positional=False)
