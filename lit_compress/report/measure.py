"""`lit_compress report`: a run's compressed model compared with the dense one."""

import json
import shlex
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from transformers import PreTrainedModel

from lit_compress.console import say
from lit_compress.errors import UserError
from lit_compress.export.checkpoint import last_checkpoint, student_from_checkpoint
from lit_compress.export.run_folder import longest_text, parse_file, run_config, task_of, validation_data
from lit_compress.files import check_folder
from lit_compress.models.labels import LabelMap
from lit_compress.models.load import load_config, load_model
from lit_compress.models.manifest_file import MANIFEST_FILE, UNFINISHED
from lit_compress.models.positions import check_length
from lit_compress.nn.quantizers import FakeQuantizer
from lit_compress.report.accuracy import evaluate_units
from lit_compress.report.bootstrap import compare_outcomes
from lit_compress.report.calibration import calibration
from lit_compress.report.changed_predictions import changed_answers
from lit_compress.report.confusion import confusion
from lit_compress.report.curves import training_curves
from lit_compress.report.exported import exports_in
from lit_compress.report.latency import latencies
from lit_compress.report.layers import describe_layers
from lit_compress.report.machine import command_line, machine
from lit_compress.report.markdown import print_table
from lit_compress.report.model_card import update_model_card
from lit_compress.report.save import save_report
from lit_compress.report.size import model_size
from lit_compress.sources import resolve_package
from lit_compress.tasks import Outcomes, Task

__all__ = ["SCHEMA", "dense_of", "has_dense", "measure_run", "report"]

# Of report.json; grows when `compare` needs a figure that older ones lack, so that it measures their runs again.
SCHEMA = 4


def report(
    run: str,
    dense: str | None = None,
    output: str | None = None,
    data: dict[str, Any] = {},  # noqa: B006 (jsonargparse shows and never changes it)
    batch_sizes: list[int] = [1, 32],  # noqa: B006 (jsonargparse shows and never changes it)
    repetitions: int = 10,
    label_map: dict[str, str | int] | None = None,
) -> None:
    """Measure accuracy, size, sparsity and latency of a run's model, and compare with the dense model.

    Options: :func:`lit_compress.commands.results.report`.
    """
    folder, dense = Path(output or Path(run) / "report"), dense and resolve_package(dense, "--dense")
    check_folder(folder, overwrite=True, kind="report", inputs=(run, dense))
    compared, missing = dense_of(run_config(run, data), dense)
    if compared is None and has_dense(folder):
        raise UserError(f"{missing}; {str(folder)!r} has it and is kept; write one without it to another --output")
    results = measure_run(run, dense, batch_sizes, repetitions, data, label_map)
    save_report(results, folder)
    print_table(results, folder)
    # Last: whoever may not write into the model's folder has the report all the same.
    update_model_card(Path(run) / "model" / "README.md", results)


def dense_of(config: Mapping[str, Any], asked: str | None) -> tuple[str | None, str]:
    """What a run is compared with, and why nothing when its teacher is gone.

    Args:
        config: of the run.
        asked: model to compare with; None for the run's teacher.

    """
    teacher = config["model"]["init_args"].get("teacher")
    if asked is None and teacher is not None:
        try:
            load_config(teacher, "--dense")
        except UserError as error:
            return None, f"no dense model to compare with; {error}"
    return asked or teacher, ""


def has_dense(folder: Path) -> bool:
    """Whether a folder has a report that compares with a dense model."""
    try:
        return "dense" in json.loads((folder / "report.json").read_text())["models"]
    except (OSError, ValueError, KeyError, TypeError):
        return False


def measure_run(
    run: str | Path,
    dense: str | None,
    batch_sizes: Sequence[int],
    repetitions: int,
    data_options: Mapping[str, Any] | None = None,
    label_map: LabelMap | None = None,
) -> dict[str, Any]:
    """The figures of a report, see :func:`report`; JSON types only.

    Every model answers the validation data once; all figures about its answers follow from that.
    """
    for key, values in (("batch_sizes", batch_sizes), ("repetitions", [repetitions])):
        if not values or min(values) < 1:
            raise UserError(f"--{key}: {values} must be 1 or more")
    folder = Path(run)
    _, checkpoint = last_checkpoint(folder)
    config = run_config(folder, data_options or {})
    exported = _exported(folder)
    data = validation_data(config["data"], load_config(str(exported), "--run"))
    task = task_of(data)
    dense, missing = dense_of(config, dense)
    if missing:
        say(missing)
    label_map = label_map or config["model"]["init_args"].get("label_map")
    tokens = longest_text(config["data"], data)
    models, manifest = _models(exported, dense, task, label_map, tokens)
    layers = manifest.get("linears", {})
    times: dict[int, dict[str, list[float]]] = {}
    busy: dict[str, str] = {}
    for batch in batch_sizes:
        times[batch], disturbed = latencies(models, batch, tokens, repetitions)
        busy |= disturbed
    entries: dict[str, Any] = {}
    outcomes: dict[str, Outcomes] = {}
    for model_name, model in models.items():
        compressed = model_name == "compressed"
        sizes = model_size(model, layers, manifest.get("embeddings")) if compressed else model_size(model, {})
        accuracy, outcomes[model_name] = evaluate_units(model, data, task, model_name)
        entries[model_name] = {
            "accuracy": accuracy,
            "size": {part: vars(size) | {"compressed_bytes": size.compressed_bytes} for part, size in sizes.items()},
            "latency_ms": {str(batch): statistics.median(times[batch][model_name]) for batch in batch_sizes},
            "latency_spread_ms": {str(batch): _spread(times[batch][model_name]) for batch in batch_sizes},
        }
    student = student_from_checkpoint(checkpoint)
    if any(isinstance(m, FakeQuantizer) and m.enabled for m in student.modules()):
        name = "compressed_quantized_inputs"
        entries["compressed"]["accuracy_quantized_inputs"], outcomes[name] = evaluate_units(student, data, task, name)
    own = "compressed" if "compressed" in models else "model"
    reference = _reference(models, own, config["model"]["init_args"].get("pretrained"), task)
    for entry in entries.values():
        for part, size in entry["size"].items():
            size["times_smaller"] = {
                whose: round(full / max(size["compressed_bytes"], 1), 4)
                for whose, full in (("than_reference", reference[part]), ("than_own_fp32", size["dense_bytes"]))
            }
    return {
        "schema": SCHEMA,
        "run": str(folder),
        "config": str(folder / "config.yaml"),
        "command": command_line(),
        "machine": machine() | busy,
        "task": task.name,
        "labels": task.labels,
        "pipeline_tag": task.pipeline_tag,
        "points": {metric: task.points(metric) for metric in entries[own]["accuracy"]},
        "lower_is_better": sorted(task.lower_is_better),
        "class_metric": task.class_metric,
        "data": {
            "validation_rows": len(data.val_dataloader().dataset),
            "max_length": tokens,
            "source": _source(config["data"]),
        },
        "dense": dense,
        "reference": reference,
        "settings": _settings(config),
        "config_text": (folder / "config.yaml").read_text(),
        UNFINISHED: manifest.get(UNFINISHED, []),
        "sparsity": {name: entry["sparsity"] for name, entry in layers.items() if entry["mask"]},
        "models": entries,
        "comparison": compare_outcomes(outcomes),
        "calibration": {
            name: calibration(outcome.confidence, outcome.right)
            for name, outcome in outcomes.items()
            if outcome.confidence is not None and outcome.right is not None
        },
        "changes": _changes(outcomes, own),
        "constant": {name: outcome.constant for name, outcome in outcomes.items() if outcome.constant is not None},
        "majority": _majority(outcomes[own]),
        "tuned": dict(outcomes[own].tuned),
        "confusion": confusion(outcomes, task),
        "changed": changed_answers(outcomes["dense"], outcomes[own], data) if "dense" in models else None,
        "curves": training_curves(folder, next(iter(entries[own]["accuracy"])), config, checkpoint),
        "exports": exports_in(folder),
    } | describe_layers(models[own], manifest, models.get("dense"))


def _reference(models: Mapping[str, PreTrainedModel], own: str, pretrained: str | None, task: Task) -> dict[str, Any]:
    """What sizes are compared with, in bytes of fp32: the dense model, or what the student began as, or itself."""
    found, model = ("dense", models["dense"]) if "dense" in models else ("own", models[own])
    if found == "own" and pretrained is not None:
        try:
            found, model = "pretrained", load_model(pretrained, task, key="model.pretrained")
        except UserError:  # it is gone, or its head is for other labels: the name says what the figures are of
            found, model = "own", models[own]
    return {"name": found} | {part: size.dense_bytes for part, size in model_size(model, {}).items()}


def _majority(outcome: Outcomes) -> dict[str, Any] | None:
    return None if outcome.majority is None else dict(zip(("answer", "share"), outcome.majority, strict=True))


def _changes(outcomes: Mapping[str, Outcomes], own: str) -> dict[str, int] | None:
    """How many answers became wrong, and how many right; None without a dense model or right answers."""
    before, after = (outcomes[name].right if name in outcomes else None for name in ("dense", own))
    if before is None or after is None:
        return None
    counts = {
        "both_right": before & after,
        "lost": before & ~after,
        "gained": ~before & after,
        "both_wrong": ~before & ~after,
    }
    return {name: int(mask.sum()) for name, mask in counts.items()}


def _spread(times: list[float]) -> list[float]:
    """The times that a tenth of the passes are below and above."""
    return [float(value) for value in np.quantile(times, [0.1, 0.9])]


def _source(section: Mapping[str, Any]) -> str:
    """Where the validation examples come from, in words."""
    settings = section["init_args"]
    if settings.get("hub") and not settings.get("val_file"):
        return " ".join(filter(None, (settings["hub"], settings.get("hub_config"))))
    held_out = f"held out of {settings['train_file']}" if settings.get("train_file") else None
    # A data module of somebody's own reads what it wants.
    return str(settings.get("val_file") or held_out or section["class_path"])


def _settings(config: Mapping[str, Any]) -> dict[str, Any]:
    """What a reader wants to know of a configuration: model, strategies, distillation, length and seed."""
    arguments = config["model"]["init_args"]
    distillation = arguments.get("distillation") or {}
    return {
        "module": _short(config["model"].get("class_path")),
        "pretrained": arguments.get("pretrained"),
        "teacher": arguments.get("teacher"),
        "compression": [_named(entry) for entry in config.get("compression") or []],
        "distillation": [_named(entry) for entry in distillation.values()] if isinstance(distillation, dict) else [],
        "epochs": (config.get("trainer") or {}).get("max_epochs"),
        "steps": (config.get("trainer") or {}).get("max_steps"),
        "learning_rate": (arguments.get("optimization") or {}).get("learning_rate"),
        "seed": config.get("seed_everything"),
    }


def _named(entry: Mapping[str, Any]) -> dict[str, Any]:
    return {"name": _short(entry.get("class_path")), "settings": dict(entry.get("init_args") or {})}


def _short(class_path: str | None) -> str:
    return str(class_path or "").rpartition(".")[2]


def _exported(run: Path) -> Path:
    exported = run / "model"
    if not (exported / "config.json").is_file():
        raise UserError(
            f"--run: {str(run)!r} has no model/; export it: "
            f"{shlex.join(['lit_compress', 'export', '--run', str(run), '--output', str(exported)])}"
        )
    return exported


def _models(
    exported: Path, dense: str | None, task: Task, label_map: LabelMap | None, tokens: int
) -> tuple[dict[str, PreTrainedModel], dict[str, Any]]:
    manifest = parse_file(exported / MANIFEST_FILE, json.loads, ["lit_compress"])
    models = {}
    if dense is not None:
        check_length(load_config(dense, "--dense"), tokens, f"--dense {dense!r}", "--data.max_length")
        models["dense"] = load_model(dense, task, "--dense", label_map).eval()
    # Apart from the version, one entry for each kind of compression.
    name = "compressed" if len(manifest) > 1 else "model"
    models[name] = load_model(str(exported), task, key="--run").eval()
    return models, manifest
