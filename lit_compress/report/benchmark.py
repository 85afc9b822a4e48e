"""`lit_compress benchmark`: models and their exports side by side, on every engine that runs them."""

import json
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from lit_compress.console import say
from lit_compress.errors import UserError
from lit_compress.export.check import of_tokens
from lit_compress.models.load import load_config
from lit_compress.models.packed import packed_of
from lit_compress.models.positions import longest_input
from lit_compress.progress import counted
from lit_compress.report.benchmark_table import check_results, print_results, save_results
from lit_compress.report.machine import command_line, instruction_sets, machine
from lit_compress.serve.engines import (
    ENGINES,
    EngineName,
    Variant,
    installed,
    local_folder,
    variants,
)
from lit_compress.serve.worker import Worker, batch_of
from lit_compress.serve.worker_process import WorkerProcess
from lit_compress.sources import check_safetensors

__all__ = [
    "Ask",
    "Case",
    "agreement",
    "allowed",
    "benchmark",
    "cases_of",
    "check_sizes",
    "keep_memory",
    "measure",
    "opened",
    "opened_here",
    "row",
    "runtimes",
    "without_padding",
]

Ask = Callable[..., dict[str, Any]]
# Batches that show whether two engines compute the same: rows and tokens, with padding.
_GATE = ((1, 7), (3, 16))
_GRAPHS = ("onnxruntime", "openvino")
_ENDS = ("start_logits", "end_logits")
# Seconds until the threads of the model before are quiet: those of ONNX Runtime wait actively for 40 ms after a call,
# on the cores that the next model needs.
_QUIET = 0.06
_DEFAULT: tuple[EngineName, ...] = ("eager", "onnxruntime", "openvino")


@dataclass(kw_only=True)
class Case:
    """One model on one engine.

    Attributes:
        model: name in the table; cases of one name are variants of one model.
        source: as it was given.
        variant: what is run.
        vocabulary: size, from the configuration.
        longest: input in tokens; None without a limit.
        results: figures by name.
        order: which of its classes each label of the data is; None where the order is the same.

    """

    model: str
    source: str
    variant: Variant
    vocabulary: int
    longest: int | None
    results: dict[str, Any] = field(default_factory=dict)
    order: list[int] | None = None

    @property
    def label(self) -> str:
        """Engine, and the file where there may be several."""
        if self.variant.engine in _GRAPHS:
            return f"{self.variant.engine} {self.variant.file.stem}"
        return f"packed, {self.variant.engine}" if self.variant.packed else self.variant.engine

    @property
    def is_int8(self) -> bool:
        """Whether it computes with 8-bit numbers: packed, or a graph whose file is named so."""
        name = self.variant.file.stem if self.variant.engine in _GRAPHS else ""
        return self.variant.packed or "int8" in name or "quantized" in name


def benchmark(
    models: list[str],
    engines: list[Literal["eager", "compile", "onnxruntime", "openvino"]] | None = None,
    batch_sizes: list[int] = [1, 16],  # noqa: B006 (jsonargparse shows and never changes it)
    lengths: list[int] = [128],  # noqa: B006 (likewise)
    threads: int | None = None,
    warmup: int = 3,
    repetitions: int = 20,
    tolerance: float = 0.05,
    device: Literal["auto", "cpu", "cuda"] = "auto",
    output: str | None = None,
    int8_tolerance: float = 0.5,
) -> None:
    """Measure latency, throughput, memory and size of models side by side; ratios are to the first.

    Options: :func:`lit_compress.commands.benchmark`.
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
        measure(cases, asks, shapes, warmup, repetitions)
        keep_memory(cases, asks)
    results = {
        "command": command_line(),
        "machine": machine() | {"threads": str(threads), "torch_device": chosen} | runtimes(cases),
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


def cases_of(models: Sequence[str], engines: Sequence[EngineName] | None) -> list[Case]:
    """What is measured: every model on every engine that can run it.

    Args:
        models: folders or hub names, ``name=folder`` where a name is wanted.
        engines: those asked for; None for what is installed.

    Raises:
        UserError: nothing to load, an engine that is not installed, or one that no folder has anything for.

    """
    wanted = tuple(engines) if engines else _DEFAULT
    for engine in wanted:
        if engine not in ENGINES:
            raise UserError(f"--engines: {engine!r} must be one of {', '.join(ENGINES)}")
        if engines and not installed(engine):
            extra = "onnx" if engine == "onnxruntime" else engine
            raise UserError(f"--engines: {engine} is not installed; pip install 'lit_compress[{extra}]'")
    if not models:
        raise UserError("benchmark: give one or more models: folders of exports, or names on the hub")
    cases = []
    for name, source in _named(models):
        folder = local_folder(source, "models")
        config: Any = load_config(str(folder), "models")
        found = variants(folder, packed_of(config) is not None)
        usable = [variant for variant in found if variant.engine in wanted and installed(variant.engine)]
        if not found:
            check_safetensors(str(folder), config.architectures, "models")
        if not usable:
            there = ", ".join(sorted({variant.engine for variant in found})) or "none"
            raise UserError(f"models: {source!r} runs on none of {', '.join(wanted)} here; it is made for: {there}")
        longest = longest_input(config)
        cases += [
            Case(model=name, source=source, variant=f, vocabulary=config.vocab_size, longest=longest) for f in usable
        ]
    for engine in engines or ():
        if not any(case.variant.engine == engine for case in cases):
            raise UserError(f"--engines: {engine} has nothing to run; no model has files for it")
    return cases


@contextmanager
def opened(cases: Sequence[Case], threads: int, device: str) -> Iterator[list[Ask]]:
    """Every case loaded in a process of its own, and how to ask each.

    Args:
        cases: see :func:`cases_of`.
        threads: of the processor.
        device: of PyTorch.

    """
    with ExitStack() as stack:
        # All start before the first is asked: what each imports takes longer than what it loads.
        started = [stack.enter_context(WorkerProcess(f"{case.model}, {case.label}")) for case in cases]
        for case, process in zip(cases, started, strict=True):
            _open(process.ask, case, threads, device)
        yield [process.ask for process in started]


@contextmanager
def opened_here(cases: Sequence[Case], threads: int) -> Iterator[list[Ask]]:
    """:func:`opened`, on the processor in this process: many small models run in less time than processes start.

    Args:
        cases: see :func:`cases_of`.
        threads: of the processor.

    """
    before, asks = torch.get_num_threads(), [partial(_ask, Worker()) for _ in cases]
    try:
        for case, ask in zip(cases, asks, strict=True):
            _open(ask, case, threads, "cpu")
        yield asks
    finally:
        torch.set_num_threads(before)


def _ask(worker: Worker, do: str, **options: Any) -> dict[str, Any]:
    answer = worker.answer({"do": do, **options})
    if "error" in answer:
        raise UserError(answer["error"])
    return answer


def _open(ask: Ask, case: Case, threads: int, device: str) -> None:
    variant = case.variant
    ask(
        "open",
        engine=variant.engine,
        file=str(variant.file),
        size=variant.bytes,
        packed=variant.packed,
        threads=threads,
        device=device,
    )


def keep_memory(cases: Sequence[Case], asks: Sequence[Ask]) -> None:
    """Give every case ``results["memory_bytes"]``: the most that its process has taken so far."""
    for case, ask in zip(cases, asks, strict=True):
        case.results["memory_bytes"] = ask("memory")["bytes"]


def allowed(cases: Sequence[Case], tolerance: float, int8_tolerance: float) -> list[float]:
    """How far each case may be from the first variant of its model, as a share of the largest output.

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

    Every case gets ``results["difference"]``: the largest difference from the first variant of its model, as a share of
    the largest output, without those of padding; None for the first.

    Args:
        cases: see :func:`cases_of`.
        asks: how to ask the process of each.
        limits: of :func:`allowed`.

    Raises:
        UserError: variants of one model differ by more than they may, in shape or in names, or are no numbers.

    """
    vocabulary = min(case.vocabulary for case in cases)
    firsts: dict[str, tuple[Case, list[dict[str, Tensor]]]] = {}
    for case, ask, most in zip(cases, asks, limits, strict=True):
        outputs = []
        for rows, tokens in _GATE:
            answer = ask("outputs", rows=rows, tokens=tokens, vocabulary=vocabulary)["outputs"]
            found = {name: torch.tensor(values) for name, values in answer.items()}
            if not all(values.isfinite().all() for values in found.values()):
                raise UserError(f"{case.model}, {case.label}: an output is no finite number; nothing was measured")
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
    """Outputs with a row for each token that is no padding, where they have a value of each; others as they are."""
    # Scores of starts and ends are (rows, tokens), as those of classes are (rows, classes).
    values = {name: value[..., None] if name in _ENDS else value for name, value in outputs.items()}
    return {name: of_tokens(value, mask) for name, value in values.items()}


def measure(
    cases: Sequence[Case], asks: Sequence[Ask], shapes: Sequence[tuple[int, int]], warmup: int, repetitions: int
) -> None:
    """Time every case at every shape; calls are interleaved, each after one that is not measured.

    Every case gets ``results["times"]``: for each shape milliseconds of every call, median, 90th percentile and rows
    per second.

    Args:
        cases: what to measure.
        asks: how to ask the process of each.
        shapes: rows and tokens.
        warmup: calls of each case before the first round.
        repetitions: rounds, in each of which every case is called once.

    """
    vocabulary = min(case.vocabulary for case in cases)
    calls = len(shapes) * repetitions * len(cases)
    with counted("Measuring", calls, "calls") as tell:
        done = 0
        for rows, tokens in shapes:
            batch = {"rows": rows, "tokens": tokens, "vocabulary": vocabulary}
            seconds: list[list[float]] = [[] for _ in cases]
            for ask in asks:
                ask("time", **batch, warmup=warmup, calls=0)
            for round_ in range(repetitions):
                for index in range(len(cases)):
                    # Who follows whom changes from round to round.
                    position = (index * (1 if round_ % 2 else -1) + round_) % len(cases)
                    time.sleep(_QUIET if len(cases) > 1 else 0)
                    seconds[position] += asks[position]("time", **batch, warmup=1, calls=1)["seconds"]
                    tell(done := done + 1)
            for case, measured in zip(cases, seconds, strict=True):
                case.results.setdefault("times", {})[f"{rows}x{tokens}"] = _times(rows, measured)


def _times(rows: int, seconds: Sequence[float]) -> dict[str, Any]:
    """Figures of the calls of one case at one shape."""
    times = [value * 1e3 for value in seconds]
    median = statistics.median(times)
    return {
        "median_ms": median,
        "p90_ms": float(np.percentile(times, 90)),
        "rows_per_second": rows * 1e3 / median,
        "times_ms": times,
    }


def runtimes(cases: Sequence[Case]) -> dict[str, str]:
    """Versions of the runtimes that were used, and what the processor has for 8-bit integers."""
    used = {case.variant.engine for case in cases}
    versions = {name: version(name) for name in ("onnxruntime", "openvino") if name in used}
    sets = instruction_sets()
    return versions | ({"processor": sets} if sets else {})


def _named(models: Sequence[str]) -> list[tuple[str, str]]:
    """Name and source; a folder is called by the last parts of its path that no other has."""
    given = []
    for text in models:
        name, equals, source = text.partition("=")
        given.append((name, source) if equals and name and "/" not in name else ("", text))
    paths = [Path(source.removeprefix("package:")).parts for name, source in given if not name]
    found = []
    for name, source in given:
        parts = Path(source.removeprefix("package:")).parts
        length = 1
        while not name and length < len(parts) and sum(other[-length:] == parts[-length:] for other in paths) > 1:
            length += 1
        found.append((name or "/".join(parts[-length:]) or source, source))
    return found


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


def row(case: Case) -> dict[str, Any]:
    """Figures of a case; JSON types only."""
    engine = {"model": case.model, "source": case.source, "engine": case.label, "bytes": case.variant.bytes}
    return json.loads(json.dumps(engine | case.results))
