"""Models timed side by side: what is timed, in which process, and how."""

import json
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch

from lit_compress.errors import UserError
from lit_compress.models.load import load_config
from lit_compress.models.packed import packed_of
from lit_compress.models.positions import longest_input
from lit_compress.report.timing_rounds import undisturbed_rounds
from lit_compress.runtimes.engines import (
    ENGINES,
    EngineName,
    Variant,
    installed,
    local_folder,
    variants,
)
from lit_compress.runtimes.worker import Worker
from lit_compress.runtimes.worker_process import WorkerProcess
from lit_compress.sources import check_safetensors

__all__ = [
    "Ask",
    "Case",
    "cases_of",
    "keep_memory",
    "measure",
    "opened",
    "opened_here",
    "row",
    "runtimes",
]

Ask = Callable[..., dict[str, Any]]
_GRAPHS = ("onnxruntime", "openvino")
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


def measure(
    cases: Sequence[Case], asks: Sequence[Ask], shapes: Sequence[tuple[int, int]], warmup: int, repetitions: int
) -> dict[str, str]:
    """Time every case at every shape; calls are interleaved, each after others that are not measured.

    Rounds that something else disturbed are made again, see :mod:`~lit_compress.report.timing_rounds`. Every case gets
    ``results["times"]``: for each shape milliseconds of every call that counts, median, 90th percentile and rows per
    second.

    Args:
        cases: what to measure.
        asks: how to ask the process of each.
        shapes: examples and tokens.
        warmup: calls of each case before the first round.
        repetitions: rounds that count, in each of which every case is called once.

    Returns:
        To be said with the facts about the machine: the shapes at which it stayed busy; empty when it was quiet.

    """
    busy: dict[str, str] = {}
    vocabulary = min(case.vocabulary for case in cases)
    for rows, tokens in shapes:
        batch = {"rows": rows, "tokens": tokens, "vocabulary": vocabulary}
        for ask in asks:
            ask("time", **batch, warmup=warmup, calls=0)
        one_round = partial(_one_round, asks, batch)
        rounds = undisturbed_rounds(f"Measuring {rows}x{tokens}", len(cases), repetitions, one_round)
        busy |= rounds.busy_at(rows, tokens)
        for case, seconds in zip(cases, zip(*rounds.seconds, strict=True), strict=True):
            case.results.setdefault("times", {})[f"{rows}x{tokens}"] = _times(rows, seconds)
    return busy


def _one_round(asks: Sequence[Ask], batch: Mapping[str, int], number: int, tell: Callable[[], None]) -> list[float]:
    """Seconds of a call of each; who follows whom changes from round to round."""
    seconds = [0.0] * len(asks)
    for index in range(len(asks)):
        position = (index * (1 if number % 2 else -1) + number) % len(asks)
        time.sleep(_QUIET if len(asks) > 1 else 0)
        (seconds[position],) = asks[position]("time", **batch, warmup=1, calls=1)["seconds"]
        tell()
    return seconds


def _times(rows: int, seconds: Sequence[float]) -> dict[str, Any]:
    """Figures of the calls of one case at one shape."""
    times = [value * 1e3 for value in seconds]
    median = statistics.median(times)
    return {
        "median_ms": median,
        "p90_ms": float(np.percentile(times, 90)),
        "texts_per_second": rows * 1e3 / median,
        "times_ms": times,
    }


def runtimes(cases: Sequence[Case]) -> dict[str, str]:
    """Versions of the runtimes that were used."""
    used = {case.variant.engine for case in cases}
    return {name: version(name) for name in ("onnxruntime", "openvino") if name in used}


def row(case: Case) -> dict[str, Any]:
    """Figures of a case; JSON types only."""
    engine = {"model": case.model, "source": case.source, "engine": case.label, "bytes": case.variant.bytes}
    return json.loads(json.dumps(engine | case.results))
