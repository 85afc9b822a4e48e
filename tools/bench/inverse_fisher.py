"""How fast the inverse Fisher matrix of second-order pruning takes in gradients, and how much memory it needs.

Measured: the time to add ``gradients`` random gradients to the block-diagonal inverse of one weight tensor.

- *batched*: ours, ``lit_compress.functional.fisher.add_gradients_``: several gradients in one update of all blocks.
- *one by one*: the recursion as it is written down in the paper and in SparseML's ``modifier_pruning_obs.py``: one
  gradient at a time, all blocks of the tensor in one einsum and one batched rank-1 update, in place. (SparseML itself
  does not install beside a current torch; this is the same sequence of tensor operations.)

The cases take turns on the same gradients, and every turn is a repetition. Target: ours takes at most half the time.

Memory: in a process of its own, how far the update raises the peak (``VmHWM`` without a GPU, else
``torch.cuda.max_memory_allocated``) divided by ``inverse_bytes``, the documented formula. Target: at most 1.1. The
same process first runs the update on a toy tensor, so that libraries and thread pools are there already.

Gate, before any row is written: both inverses have the same diagonal.
"""

import gc
import multiprocessing
import statistics
import time
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import torch
from jsonargparse import auto_cli
from torch import Tensor

from lit_compress.functional import fisher
from tools.bench.measure import RESULTS, Row, interleave, milliseconds, publish, require_close, synchronize
from tools.bench.memory import peak_bytes, restart_peak

SPEED, MEMORY = "batched", "peak memory"


def inverse_fisher(
    rows: int = 768,
    columns: int = 3072,
    block_size: int = 50,
    gradients: int = 32,
    damping: float = 1e-7,
    repetitions: int = 5,
    output: Path = RESULTS,
) -> list[Row]:
    """Time the update of one weight's inverse Fisher matrix and measure its memory.

    Args:
        rows: outputs of the weight.
        columns: inputs of the weight.
        block_size: B.
        gradients: added in each repetition; of the 1024 of a real update.
        damping: lambda.
        repetitions: measured calls of each case.
        output: CSV to append to.

    """
    settings: dict[str, Any] = {"rows": rows, "columns": columns, "block_size": block_size, "gradients": gradients}
    settings |= {"damping": damping, "together": fisher.GRADIENTS_PER_UPDATE}
    seconds = time_cases(rows * columns, block_size, gradients, damping, repetitions)
    gc.collect()
    peaks = [in_new_process(rows * columns, block_size, gradients, damping) for _ in range(repetitions)]
    formula = fisher.inverse_bytes(rows * columns, block_size, device=device())
    settings["ms_per_gradient"] = {case: round(ms / gradients, 3) for case, ms in milliseconds(seconds).items()}
    settings["mebibytes"] = {"peak": round(statistics.median(peaks) / 2**20, 1), "formula": round(formula / 2**20, 1)}
    table = [
        Row(
            benchmark="inverse_fisher",
            case=SPEED,
            baseline="one by one",
            ratios=[a / b for a, b in zip(*seconds.values(), strict=True)],
            target=0.5,
            settings=settings,
        ),
        Row(
            benchmark="inverse_fisher",
            case=MEMORY,
            baseline="formula",
            ratios=[peak / formula for peak in peaks],
            target=1.1,
            settings=settings,
        ),
    ]
    publish(table, output)
    print(f"ms per gradient: {settings['ms_per_gradient']}; MiB: {settings['mebibytes']}")
    return table


def time_cases(numel: int, block_size: int, gradients: int, damping: float, repetitions: int) -> dict[str, list[float]]:
    """Seconds of each repetition by case; the gate is here."""
    sample = draw(gradients, numel)
    diagonals: dict[str, Tensor] = {}

    def timed(case: str) -> float:
        inverse = fisher.damped_inverse(numel, block_size, damping, sample.device)
        synchronize()
        started = time.perf_counter()
        CASES[case](inverse, sample)
        synchronize()
        seconds = time.perf_counter() - started
        diagonals[case] = inverse.diagonal(dim1=1, dim2=2).flatten()
        return seconds

    seconds = interleave({case: partial(timed, case) for case in CASES}, repetitions)
    ours, theirs = (diagonals[case] for case in CASES)
    difference = ((ours - theirs) / theirs).abs().max().item()
    require_close("diagonals of the inverses", [1 + difference], [1.0], 1e-3)
    return seconds


def batched(inverse: Tensor, sample: Tensor) -> None:
    """Ours, with the copies into the buffer that the strategy makes."""
    blocks, size = inverse.shape[:2]
    together = min(fisher.GRADIENTS_PER_UPDATE, len(sample))
    buffer = inverse.new_empty(blocks, together, size)
    for first in range(0, len(sample), together):
        taken = sample[first : first + together]
        for row, gradient in enumerate(taken):
            buffer[:, row] = fisher.to_blocks(gradient, size)
        fisher.add_gradients_(inverse, buffer[:, : len(taken)], len(sample))


def one_by_one(inverse: Tensor, sample: Tensor) -> None:
    """The literal recursion."""
    for gradient in sample:
        g = fisher.to_blocks(gradient, inverse.shape[-1])
        moved = torch.einsum("bij,bj->bi", inverse, g)
        moved /= (len(sample) + torch.einsum("bi,bi->b", g, moved)).sqrt().unsqueeze(1)
        inverse.baddbmm_(moved.unsqueeze(2), moved.unsqueeze(1), alpha=-1)


CASES = {SPEED: batched, "one by one": one_by_one}


def device() -> str:
    """Where it is measured."""
    return "cuda" if torch.cuda.is_available() else "cpu"


def draw(count: int, numel: int) -> Tensor:
    """Gradients the size of those of a fine-tuned encoder, some directions stronger than others."""
    generator = torch.Generator().manual_seed(0)
    sample = torch.randn(count, numel, generator=generator) * 1e-4
    return (sample * torch.rand(numel, generator=generator)).to(device())


def in_new_process(numel: int, block_size: int, gradients: int, damping: float) -> float:
    """:func:`footprint` in a process of its own."""
    context = multiprocessing.get_context("forkserver")
    with ProcessPoolExecutor(1, context) as pool:
        return pool.submit(footprint, numel, block_size, gradients, damping).result()


def footprint(numel: int, block_size: int, gradients: int, damping: float) -> float:
    """Bytes by which inverse, buffer and update raise the peak; the gradients are there before."""
    batched(fisher.damped_inverse(1000, block_size, damping, device()), draw(9, 1000))
    sample = draw(gradients, numel)
    gc.collect()
    before = restart_peak()
    batched(fisher.damped_inverse(numel, block_size, damping, device()), sample)
    return peak_bytes() - before


if __name__ == "__main__":
    auto_cli(inverse_fisher, as_positional=False)
