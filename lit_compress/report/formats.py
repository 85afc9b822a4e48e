"""`lit_compress formats`: a run's student in every format, loaded back, and how good, large and fast each is."""

import tempfile
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any, get_args

import numpy as np
import torch
from lightning.pytorch import LightningDataModule
from torch import Tensor

from lit_compress.console import say
from lit_compress.errors import UserError
from lit_compress.export.command import INTEGERS, Format, format_writer, write
from lit_compress.export.onnx import IntegerOptions, Processor
from lit_compress.export.run_folder import longest_text, run_config, task_of, validation_data
from lit_compress.export.source import from_source
from lit_compress.files import atomic_file, begins, check_file, check_folder, check_shared_folder
from lit_compress.models.labels import label_order
from lit_compress.models.load import load_config
from lit_compress.models.manifest_file import require_finished
from lit_compress.models.positions import check_length
from lit_compress.progress import counted
from lit_compress.report.benchmark import check_sizes, without_padding
from lit_compress.report.benchmark_table import check_results, fastest_form, markdown, print_results, save_results
from lit_compress.report.machine import command_line, machine
from lit_compress.report.measure import dense_of
from lit_compress.report.phrasing import speed
from lit_compress.report.timing import Ask, Case, cases_of, keep_memory, measure, opened, row, runtimes
from lit_compress.sentence_settings import settings_of
from lit_compress.sources import resolve_package
from lit_compress.tasks import EmbeddingTask, Task

__all__ = ["evaluate_cases", "formats"]

FIGURES, TABLE = "formats.json", "formats.md"


def formats(
    run: str,
    output: str,
    to: list[Format] | None = None,
    dense: str | None = None,
    data: dict[str, Any] = {},  # noqa: B006 (jsonargparse shows and never changes it)
    batch_sizes: list[int] = [1, 16],  # noqa: B006 (jsonargparse shows and never changes it)
    lengths: list[int] | None = None,
    threads: int | None = None,
    warmup: int = 3,
    repetitions: int = 10,
    unfinished: bool = False,
    overwrite: bool = False,
    label_map: dict[str, str | int] | None = None,
    processor: Processor = "any",
) -> None:
    """Export a run's student to each format, load each back, and compare accuracy, size, memory and speed.

    Options: :func:`lit_compress.commands.results.formats`.
    """
    if processor != "any" and to and not set(to) & set(INTEGERS):
        raise UserError(f"--processor: has no effect on {', '.join(to)}, only on {' and '.join(INTEGERS)}")
    check_shared_folder(output)
    dense = dense and resolve_package(dense, "--dense")
    places = {name: Path(output) / name for name in to or get_args(Format)}
    for place in places.values():
        check_folder(place, overwrite, inputs=(run, dense))
    check_results(Path(output) / FIGURES)
    check_file(Path(output) / TABLE, begins(r"\| model \| engine \|"))
    config = run_config(run, data)
    threads = threads or torch.get_num_threads()
    sizes = {"batch_sizes": batch_sizes, "repetitions": [repetitions], "threads": [threads]}
    check_sizes(sizes | ({"lengths": lengths} if lengths else {}))
    if warmup < 0:
        raise UserError(f"--warmup: {warmup} must be 0 or more")
    folded = from_source(run=run)
    require_finished(folded.manifest, unfinished)
    own = folded.model.config
    del folded
    validation = validation_data(config["data"], own)
    longest = longest_text(config["data"], validation)
    lengths = lengths or [longest]
    check_length(own, max(lengths), f"--run {run!r}", "--lengths")
    task = task_of(validation)
    dense, missing = dense_of(config, dense)
    order = None
    if dense:
        theirs = load_config(dense, "--dense")
        if theirs.architectures and not task.can_teach(theirs):
            made = ", ".join(theirs.architectures)
            raise UserError(f"--dense: {dense!r} is a {made}, which was not made for {task.name}; give one that was")
        if isinstance(task, EmbeddingTask) and settings_of(theirs) is None:
            raise UserError(f"--dense: {dense!r} does not say how it pools; give one that sentence-transformers saved")
        check_length(theirs, max(lengths), f"--dense {dense!r}", "--lengths")
        check_length(theirs, longest, f"--dense {dense!r}", "--data.max_length")
        label_map = label_map or config["model"]["init_args"].get("label_map")
        order = label_order(theirs, task.labels, label_map, dense, "--dense") if task.labels else None
    Path(output).mkdir(parents=True, exist_ok=True)
    left_out = _write_all(run, places, overwrite, processor)
    cases = cases_of(
        [*([f"dense={dense}"] if dense else []), *(f"{name}={place}" for name, place in places.items())], None
    )
    for case in cases:
        case.order = order if case.model == "dense" else None
    shapes = [(rows, tokens) for tokens in lengths for rows in batch_sizes]
    with opened(cases, threads, "cpu") as asks:
        busy = measure(cases, asks, shapes, warmup, repetitions)
        keep_memory(cases, asks)  # before batches of another size
        evaluate_cases(cases, asks, validation, task, reference="hf")
    settings = {"batch_sizes": batch_sizes, "lengths": lengths, "warmup": warmup, "repetitions": repetitions}
    results: dict[str, Any] = {
        "command": command_line(),
        "machine": machine() | {"threads": str(threads), "torch_device": "cpu"} | runtimes(cases) | busy,
        "settings": settings | {"processor": processor},
        "score": next(iter(cases[0].results["metrics"])),
        "validation_rows": len(validation.val_dataloader().dataset),
        "left_out": left_out,
        "cases": [row(case) for case in cases],
    }
    print_results(results)
    if missing:
        say(missing)
    said = [f"{name} left out: {reason}" for name, reason in left_out.items()]
    said.append(recommendation(results["cases"], task))
    for line in said:
        say(line)
    save_results(results, Path(output) / FIGURES)
    with atomic_file(Path(output) / TABLE) as staging:
        staging.write_text(markdown(results) + "\n" + "\n\n".join(said) + "\n")


def recommendation(cases: Sequence[Mapping[str, Any]], task: Task) -> str:
    """Which format to use: the fastest at the first shape whose score is at most a point below the first model's.

    Args:
        cases: of the results, the dense model (or, without it, any format) first.
        task: says how many points a score is worth, and which way is better.

    """
    shape = next(iter(cases[0]["times"]))
    first = fastest_form(cases, shape)
    score = next(iter(first["metrics"]))
    sign = -1 if score in task.lower_is_better else 1

    def milliseconds(case: Mapping[str, Any]) -> float:
        return case["times"][shape]["median_ms"]

    def loss(case: Mapping[str, Any]) -> float:
        """In points, or as fractions of the first case's score where points have no meaning."""
        scale = task.points(score) or 100.0 / max(abs(first["metrics"][score]), 1e-9)
        return sign * scale * (first["metrics"][score] - case["metrics"][score])

    faster = [case for case in cases if milliseconds(case) < milliseconds(first)]
    good = [case for case in faster if loss(case) <= 1.0]
    if not good:
        why = "is faster" if not faster else "that is faster loses at most a point"
        return f"Recommended: {first['model']} on {first['engine']}: none {why} at {shape}"
    best = min(good, key=milliseconds)
    times = speed(milliseconds(first), milliseconds(best))
    return (
        f"Recommended: {best['model']} on {best['engine']}: {times} the speed of {first['model']} on "
        f"{first['engine']} at {shape}, {score} {best['metrics'][score]:.4f} for "
        f"{first['metrics'][score]:.4f}"
    )


def _write_all(run: str, places: dict[str, Path], overwrite: bool, processor: Processor) -> dict[str, str]:
    """Write every format; what could not be is taken out of ``places``, and returned with the reason.

    Raises:
        UserError: no format holds this model.

    """
    left_out: dict[str, str] = {}
    for name, place in list(places.items()):
        folded = from_source(run=run)  # each format changes it in place
        try:
            fill = format_writer(name)
            if name in INTEGERS:
                fill = partial(fill, options=IntegerOptions(processor=processor))
            write(folded, place, fill, overwrite)
        except UserError as error:
            left_out[name] = str(error)
            del places[name]
    if not places:
        raise UserError(next(iter(left_out.values())))
    return left_out


def evaluate_cases(
    cases: Sequence[Case], asks: Sequence[Ask], data: LightningDataModule, task: Task, reference: str | None = None
) -> None:
    """Metrics of every case on the validation data, and how far its outputs are from those of a reference.

    Each case gets ``results["metrics"]``, by name, and ``results["difference"]``: the largest difference of an output
    at a token that is not padding, as a fraction of the reference's largest; None without a reference, and of the dense
    model before it.

    Args:
        cases: see :func:`~lit_compress.report.timing.cases_of`.
        asks: how to ask the process of each.
        data: after ``setup``.
        task: metrics.
        reference: name of the case whose outputs the later ones are compared with.

    """
    metrics = [task.metrics("") for _ in cases]
    after = next((index for index, case in enumerate(cases) if case.model == reference), len(cases))
    sizes: list[float] = []
    differences: list[list[float]] = [[] for _ in cases]
    total = len(data.val_dataloader())
    with tempfile.TemporaryDirectory() as folder, counted("Evaluating", total, "batches") as tell:
        # Batch by batch: scores of all words at all tokens of all texts fit into no memory.
        for number, batch in enumerate(data.val_dataloader(), 1):
            expected: dict[str, Tensor] = {}
            for index, ask in enumerate(asks):
                found = _asked(ask, batch.inputs, Path(folder))
                if (order := cases[index].order) is not None:
                    found["logits"] = found["logits"][..., order]
                task.update(metrics[index], SimpleNamespace(**found), batch)
                outputs = without_padding(found, batch.inputs["attention_mask"])
                if index == after:
                    expected = outputs
                    sizes += [float(value.abs().max()) for value in expected.values()]
                differences[index] += [float((expected[name] - outputs[name]).abs().max()) for name in expected]
            tell(number)
    for index, case in enumerate(cases):
        case.results["metrics"] = {name: float(value) for name, value in metrics[index].compute().items()}
        case.results["difference"] = _largest(differences[index]) / _largest([*sizes, 1e-6]) if index > after else None


def _largest(values: list[float]) -> float:
    return float(torch.tensor(values, dtype=torch.float64).max())  # NaN when there is one


def _asked(ask: Ask, batch: Mapping[str, Tensor], folder: Path) -> dict[str, Tensor]:
    """Outputs of a process for a batch; the arrays go through files."""
    given, found = folder / "inputs.npz", folder / "outputs.npz"
    np.savez(given, **{name: tensor.numpy() for name, tensor in batch.items()})  # type: ignore[arg-type]  (names of inputs)
    ask("run", inputs=str(given), outputs=str(found))
    with np.load(found) as arrays:
        return {name: torch.as_tensor(arrays[name]) for name in arrays.files}
