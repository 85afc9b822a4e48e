"""`lit_compress benchmark`: models and their exports side by side, on every engine that runs them."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from lit_compress.console import say
from lit_compress.errors import UserError
from lit_compress.export.check import of_tokens
from lit_compress.report.benchmark_table import check_results, print_results, save_results
from lit_compress.report.machine import command_line, machine
from lit_compress.report.timing import Ask, Case, cases_of, keep_memory, measure, opened, row, runtimes
from lit_compress.runtimes.worker import batch_of

__all__ = ["agreement", "allowed", "benchmark", "check_sizes", "without_padding"]

# Batches that show whether two engines compute the same: examples and tokens, with padding.
_GATE = ((1, 7), (3, 16))
_ENDS = ("start_logits", "end_logits")


def benchmark(
    models: list[str],
    engines: list[Literal["eager", "compile", "onnxruntime", "openvino"]] | None = None,
    batch_sizes: list[int] = [1, 16],  # noqa: B006 (jsonargparse shows and never changes it)
    lengths: list[int] = [128],  # noqa: B006 (as above)
    threads: int | None = None,
    warmup: int = 3,
    repetitions: int = 20,
    tolerance: float = 0.05,
    device: Literal["auto", "cpu", "cuda"] = "auto",
    output: str | None = None,
    int8_tolerance: float = 0.5,
) -> None:
    """Measure latency, throughput, memory and size of models side by side; ratios are to the first.

    Options: :func:`lit_compress.commands.results.benchmark`.
    """
    sizes = {"batch_sizes": batch_sizes, "lengths": lengths, "repetitions": [repetitions], "threads": [threads or 1]}
    check_sizes(sizes)
    _check(warmup, (tolerance, int8_tolerance), device, output)
    chosen = ("cuda" if torch.cuda.is_available() else "cpu") if device == "auto" else device
    cases = cases_of(models, engines)
    for case in cases:
        if case.longest and max(lengths) > case.longest:
            raise UserError(f"--lengths: {max(lengths)} is above {case.longest}, the longest input of {case.source!r}")
    threads = threads or torch.get_num_threads()
    settings = {"batch_sizes": batch_sizes, "lengths": lengths, "warmup": warmup, "repetitions": repetitions}
    shapes = [(rows, tokens) for tokens in lengths for rows in batch_sizes]
    limits = allowed(cases, tolerance, int8_tolerance)
    if wider := [f"{case.model}, {case.label}" for case, most in zip(cases, limits, strict=True) if most != tolerance]:
        say(
            f"Rounding to 8 bits may make {'; '.join(wider)} differ by {max(limits):g} of the largest output "
            f"(--int8_tolerance), other forms of one model by {tolerance:g} (--tolerance)"
        )
    with opened(cases, threads, chosen) as asks:
        agreement(cases, asks, limits)
        busy = measure(cases, asks, shapes, warmup, repetitions)
        keep_memory(cases, asks)
    results = {
        "command": command_line(),
        "machine": machine() | {"threads": str(threads), "torch_device": chosen} | runtimes(cases) | busy,
        "settings": settings | {"tolerance": tolerance, "int8_tolerance": int8_tolerance},
        "cases": [row(case) for case in cases],
    }
    print_results(results)
    if output:
        save_results(results, Path(output))


def check_sizes(sizes: Mapping[str, Sequence[int]]) -> None:
    """Raise ``UserError`` for an option, named without its dashes, that has no number or one below 1."""
    for key, values in sizes.items():
        if not values or min(values) < 1:
            raise UserError(f"--{key}: {values} must be 1 or more")


def _check(warmup: int, tolerances: tuple[float, float], device: str, output: str | None) -> None:
    if warmup < 0:
        raise UserError(f"--warmup: {warmup} must be at least 0")
    for name, value in zip(("tolerance", "int8_tolerance"), tolerances, strict=True):
        if not value > 0:
            raise UserError(f"--{name}: {value} must be above 0")
    if output and Path(output).suffix not in (".json", ".csv"):
        raise UserError(f"--output: {output!r} must end in .json or .csv")
    if output:
        check_results(Path(output))
    if device == "cuda" and not torch.cuda.is_available():
        raise UserError("--device: 'cuda' is not there; give cpu or auto")


def allowed(cases: Sequence[Case], tolerance: float, int8_tolerance: float) -> list[float]:
    """How far each case may be from the first variant of its model, as a fraction of the largest output.

    Args:
        cases: see :func:`cases_of`.
        tolerance: between floating-point variants, and the least of the others.
        int8_tolerance: where one of the two computes with 8-bit numbers.

    """
    firsts: dict[str, Case] = {}
    limits = []
    for case in cases:
        first = firsts.setdefault(case.model, case)
        rounds = case is not first and (case.is_int8 or first.is_int8)
        limits.append(max(tolerance, int8_tolerance) if rounds else tolerance)
    return limits


def agreement(cases: Sequence[Case], asks: Sequence[Ask], limits: Sequence[float]) -> None:
    """Compare what engines compute before anything is timed.

    Every case gets ``results["difference"]``: the largest difference from the first variant of its model, as a fraction
    of the largest output, without those of padding; None for the first.

    Args:
        cases: see :func:`cases_of`.
        asks: how to ask the process of each.
        limits: of :func:`allowed`.

    Raises:
        UserError: variants of one model differ by more than they may, in shape or in names, or are not numbers.

    """
    vocabulary = min(case.vocabulary for case in cases)
    firsts: dict[str, tuple[Case, list[dict[str, Tensor]]]] = {}
    for case, ask, most in zip(cases, asks, limits, strict=True):
        outputs = []
        for rows, tokens in _GATE:
            answer = ask("outputs", rows=rows, tokens=tokens, vocabulary=vocabulary)["outputs"]
            found = {name: torch.tensor(values) for name, values in answer.items()}
            if not all(values.isfinite().all() for values in found.values()):
                raise UserError(f"{case.model}, {case.label}: an output is not a finite number; nothing was measured")
            mask = batch_of(rows, tokens, vocabulary, padded=True)["attention_mask"]
            outputs.append(without_padding(found, torch.from_numpy(mask)))
        if case.model not in firsts:
            firsts[case.model] = case, outputs
            case.results["difference"] = None
            continue
        first, expected = firsts[case.model]
        difference = max(_difference(case, first, ours, theirs) for ours, theirs in zip(expected, outputs, strict=True))
        if difference > most:
            option = "--int8_tolerance" if case.is_int8 or first.is_int8 else "--tolerance"
            raise UserError(
                f"{case.model}: {case.label} differs from {first.label} by {difference:.2g} of the largest output; "
                f"{option} allows {most:g}; nothing was measured"
            )
        case.results["difference"] = difference


def without_padding(outputs: Mapping[str, Tensor], mask: Tensor) -> dict[str, Tensor]:
    """Outputs with a row for each token that is not padding, where they have a value of each; others as they are."""
    # Scores of starts and ends are (rows, tokens), as those of classes are (rows, classes).
    values = {name: value[..., None] if name in _ENDS else value for name, value in outputs.items()}
    return {name: of_tokens(value, mask) for name, value in values.items()}


def _difference(case: Case, first: Case, expected: Mapping[str, Tensor], found: Mapping[str, Tensor]) -> float:
    shared = [name for name in expected if name in found]
    if not shared:
        raise UserError(f"{case.model}: {case.label} gives {list(found)} where {list(expected)} is expected")
    worst = 0.0
    for name in shared:
        ours, theirs = expected[name], found[name]
        if (ours.shape[-1], theirs.shape[-1]) == (first.vocabulary, case.vocabulary):
            # Scores of words: tables may be filled up to a round number.
            words = min(first.vocabulary, case.vocabulary)
            ours, theirs = ours[..., :words], theirs[..., :words]
        if ours.shape != theirs.shape:
            raise UserError(
                f"{case.model}: {case.label} gives {name} of shape {tuple(theirs.shape)}, expected is "
                f"{tuple(ours.shape)}"
            )
        worst = max(worst, float((ours - theirs).abs().max() / ours.abs().max().clamp_min(1e-6)))
    return worst
