"""`lit_compress report`: a run's compressed model beside the dense one."""

import json
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml
from transformers import PreTrainedModel

from lit_compress.errors import UserError
from lit_compress.export.checkpoint import find_checkpoint, load_checkpoint, student_from_checkpoint
from lit_compress.export.hf import MANIFEST_FILE
from lit_compress.export.run_folder import parse_file, validation_data
from lit_compress.files import atomic_folder
from lit_compress.models.load import load_model
from lit_compress.modules.tasks import make_task
from lit_compress.nn.quantizers import FakeQuantizer
from lit_compress.report.accuracy import evaluate
from lit_compress.report.card import markdown, print_table
from lit_compress.report.latency import median_latency
from lit_compress.report.machine import machine
from lit_compress.report.size import model_size
from lit_compress.strategies.monitor import sparsity_heatmap

__all__ = ["measure_run", "report", "save_report"]


def report(
    run: str,
    dense: str | None = None,
    output: str | None = None,
    batch_sizes: list[int] = [1, 32],  # noqa: B006 (jsonargparse shows and never changes it)
    repetitions: int = 10,
) -> None:
    """Measure accuracy, size, sparsity and latency of a run's model, beside the dense one; print and save them.

    Args:
        run: run folder of a `fit`.
        dense: folder or hub name to compare with; the run's teacher by default.
        output: folder for report.md, report.json and pictures; `report` in the run folder by default. Replaced.
        batch_sizes: batch sizes whose latency is measured, at the run's `max_length`.
        repetitions: forward passes per latency.

    """
    results = measure_run(run, dense, batch_sizes, repetitions)
    folder = save_report(results, output or Path(run) / "report")
    print_table(results, folder)


def measure_run(run: str | Path, dense: str | None, batch_sizes: Sequence[int], repetitions: int) -> dict[str, Any]:
    """The figures of a report, see :func:`report`; JSON types only."""
    for key, values in (("batch_sizes", batch_sizes), ("repetitions", [repetitions])):
        if not values or min(values) < 1:
            raise UserError(f"--{key}: {values} must be 1 or more")
    folder = Path(run)
    checkpoint = load_checkpoint(find_checkpoint(folder))
    config = parse_file(folder / "config.yaml", yaml.safe_load, ["data", "model"])
    data = validation_data(config["data"])
    labels = getattr(data, "labels", None)
    name = getattr(data, "task", None) or ("classification" if labels else "regression")
    task = make_task(name, labels)
    models, manifest = _models(folder, config, dense, name, labels)
    layers = manifest.get("linears", {})
    results: dict[str, Any] = {
        "run": str(folder),
        "config": str(folder / "config.yaml"),
        "command": shlex.join(["lit_compress", *sys.argv[1:]]),
        "machine": machine(),
        "data": {
            "validation_rows": len(data.val_dataloader().dataset),
            "max_length": config["data"]["init_args"]["max_length"],
        },
        "sparsity": {name: entry["sparsity"] for name, entry in layers.items() if entry["mask"]},
        "models": {},
    }
    tokens = results["data"]["max_length"]
    latencies = {batch: median_latency(models, batch, tokens, repetitions) for batch in batch_sizes}
    for name, model in models.items():
        sizes = model_size(model, layers, manifest.get("embeddings")) if name == "compressed" else model_size(model, {})
        results["models"][name] = {
            "accuracy": evaluate(model, data, task),
            "size": {part: vars(size) | {"compressed_bytes": size.compressed_bytes} for part, size in sizes.items()},
            "latency_ms": {str(batch): latencies[batch][name] for batch in batch_sizes},
        }
    student = student_from_checkpoint(checkpoint)
    if any(isinstance(m, FakeQuantizer) and m.enabled for m in student.modules()):
        results["models"]["compressed"]["accuracy_quantized_inputs"] = evaluate(student, data, task)
    return results


def save_report(results: dict[str, Any], folder: str | Path) -> Path:
    """Write report.md, report.json and the sparsity map; the folder appears whole or not at all."""
    with atomic_folder(folder, overwrite=True) as staging:
        if results["sparsity"]:
            sparsity_heatmap(results["sparsity"]).savefig(staging / "sparsity.png", dpi=150)
        (staging / "report.json").write_text(json.dumps(results, indent=1) + "\n")
        (staging / "report.md").write_text(markdown(results))
    return Path(folder)


def _models(
    run: Path, config: dict[str, Any], dense: str | None, task: str, labels: list[str] | None
) -> tuple[dict[str, PreTrainedModel], dict[str, Any]]:
    exported = run / "model"
    if not (exported / "config.json").is_file():
        raise UserError(
            f"--run: {str(run)!r} has no model/; export it: lit_compress export --run {run} --output {exported}"
        )
    manifest = parse_file(exported / MANIFEST_FILE, json.loads, ["lit_compress"])
    models = {}
    if dense := dense or config["model"]["init_args"].get("teacher"):
        models["dense"] = load_model(dense, task, labels, key="--dense").eval()
    # Beside the version, one entry for each kind of compression.
    name = "compressed" if len(manifest) > 1 else "model"
    models[name] = load_model(str(exported), task, labels, key="--run").eval()
    return models, manifest
