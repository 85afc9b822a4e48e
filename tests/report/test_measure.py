import inspect
import json
import os
import shutil
from functools import partial

import pytest
import torch
import yaml
from contracts import errors
from contracts.labels import swapped
from contracts.own_data import OwnRows, use_own_rows
from transformers import AutoModelForSequenceClassification

from lit_compress import commands
from lit_compress.cli import main
from lit_compress.report import measure
from lit_compress.report.accuracy import evaluate_units
from lit_compress.report.figures import FIGURES
from lit_compress.report.markdown import rows
from lit_compress.report.measure import measure_run, report


@pytest.fixture
def run(finished, tmp_path):
    """A copy that a test may break."""
    return shutil.copytree(finished, tmp_path / "run")


def results_of(run, **arguments):
    report(run=str(run), batch_sizes=[1], repetitions=1, **arguments)
    return json.loads((run / "report" / "report.json").read_text())


@pytest.fixture(scope="session")
def reported(finished, tmp_path_factory):
    """A run with its report, for the tests that only look, and the results."""
    run = shutil.copytree(finished, tmp_path_factory.mktemp("reported") / "run")
    return run, results_of(run)


error_of = partial(errors.error_of, report, batch_sizes=[1], repetitions=1)


def test_a_report_is_complete(run, capsys):
    results = results_of(run)
    names = {path.name for path in (run / "report").iterdir()}
    pictures = {f"{name}.png" for name in FIGURES}
    events = {name for name in names if name.startswith("events.out.tfevents")}
    assert len(events) == 1
    assert names == {"report.html", "report.json", "report.md", ".lit_compress.json"} | pictures | events
    assert list(results["models"]) == ["dense", "compressed"]
    text, shown = (run / "report" / "report.md").read_text(), capsys.readouterr().out
    for row in rows(results):
        assert "| " + " | ".join(row) + " |" in text
        assert row[0] in shown
    assert (results["data"]["validation_rows"], results["data"]["max_length"]) == (16, 16)
    page = (run / "report" / "report.html").read_text()
    assert page.count("<svg ") == len(FIGURES)
    assert "MagnitudePruning: sparsity 0.75" in page


# The keys of report.json, as docs/report.md has them. Others may be added; none may change or go.
ESTIMATE = {"value": float, "low": float, "high": float}
DIFFERENCE = ESTIMATE | {"worse": int, "better": int, "p": float, "few": bool}
METRIC = {"models": {"dense": ESTIMATE, "compressed": ESTIMATE}, "differences": {"compressed": DIFFERENCE}}
PART = {"units": int, "metrics": dict}
SIZE = dict.fromkeys(["parameters", "nonzeros", "dense_bytes", "value_bytes", "index_bytes", "compressed_bytes"], int)
SIZE |= {"times_smaller": {"than_reference": float, "than_own_fp32": float}}
MODEL = {
    "accuracy": {"accuracy": float, "f1": float, "matthews": float},
    "size": {"encoder": SIZE, "model": SIZE},
    "latency_ms": {"1": float},
    "latency_spread_ms": {"1": [float]},
}
SCHEMA_OF = {
    "schema": int,
    "run": str,
    "config": str,
    "command": str,
    "machine": {"device": str, "threads": str, "python": str, "torch": str},
    "task": str,
    "labels": [str],
    "data": {"validation_rows": int, "max_length": int, "source": str},
    "dense": str,
    "reference": {"name": str, "encoder": int, "model": int},
    "settings": {
        "module": str,
        "pretrained": str,
        "teacher": str,
        "compression": [{"name": str, "settings": dict}],
        "distillation": list,
        "epochs": int,
        "steps": int,
        "learning_rate": float,
        "seed": int,
    },
    "config_text": str,
    "sparsity": dict,
    "models": {"dense": MODEL, "compressed": MODEL | {"accuracy_quantized_inputs": MODEL["accuracy"]}},
    "comparison": {
        "unit": str,
        "units": int,
        "confidence": float,
        "resamples": int,
        "seed": int,
        "metrics": {"accuracy": METRIC, "f1": METRIC, "matthews": METRIC},
        "classes": {"0": PART, "1": PART},
        "slices": dict,
    },
    "calibration": {
        name: {
            "ece": float,
            "bins": [{"low": float, "high": float, "rows": int, "confidence": float, "accuracy": float}],
        }
        for name in ("dense", "compressed", "compressed_quantized_inputs")
    },
    "changes": {"both_right": int, "lost": int, "gained": int, "both_wrong": int},
    "constant": dict,
    "majority": {"answer": str, "share": float},
    "confusion": {name: [[int]] for name in ("dense", "compressed", "compressed_quantized_inputs")},
    "changed": {"count": int, "rows": list},
    "curves": {
        "values": {"val/loss": [[float | int]], "val/accuracy": [[float | int]]},
        "windows": [{"name": str, "start": int, "end": int}],
    },
    "exports": [{"file": str, "engine": str, "bytes": int, "check": None}],
    "layers": [
        {"layer": int, "heads": int, "dense_heads": int, "neurons": int, "dense_neurons": int, "sparsity": float}
        | {"weights": str, "inputs": str}
    ],
    "dense_layers": int,
    "matrices": [
        {"name": str, "layer": int, "matrix": str, "shape": [int], "dense_shape": [int], "sparsity": float}
        | {"weights": str, "inputs": str, "bytes": int}
    ],
    "tables": [{"name": str, "rows": int, "width": int, "rank": None, "weights": None}],
    "attention": list,
    "blocks": dict,
}


def departures(value, wanted, place="report"):
    """Where a value is not of the form that is promised."""
    if isinstance(wanted, dict):
        if not isinstance(value, dict):
            return [place]
        missing = [f"{place}.{key}" for key in wanted if key not in value]
        inside = (departures(value[key], entry, f"{place}.{key}") for key, entry in wanted.items() if key in value)
        return [*missing, *(wrong for found in inside for wrong in found)]
    if isinstance(wanted, list):
        if not isinstance(value, list) or not value:
            return [place]
        return [wrong for entry in value for wrong in departures(entry, wanted[0], f"{place}[]")]
    good = value is None if wanted is None else isinstance(value, wanted)
    return [] if good else [f"{place}: {value!r}"]


def test_the_form_of_the_json_is_kept(reported):
    assert departures(reported[1], SCHEMA_OF) == []


def test_intervals_are_around_the_accuracy_of_the_folder(reported):
    results = reported[1]
    for metric, entry in results["comparison"]["metrics"].items():
        for name, estimate in entry["models"].items():
            model, key = ("compressed", "accuracy_quantized_inputs") if "inputs" in name else (name, "accuracy")
            assert estimate["value"] == pytest.approx(results["models"][model][key][metric], abs=1e-6)
            assert estimate["low"] <= estimate["value"] <= estimate["high"]
    assert sum(results["changes"].values()) == results["comparison"]["units"] == 16


def test_each_model_answers_the_data_once(run, monkeypatch):
    asked = []

    def counted(model, *arguments):
        asked.append(type(model).__name__)
        return evaluate_units(model, *arguments)

    monkeypatch.setattr("lit_compress.report.measure.evaluate_units", counted)
    results_of(run)
    assert len(asked) == 3  # dense, folded, and with its quantizers


def test_progress_is_shown(run, monkeypatch, capsys):
    monkeypatch.setattr("lit_compress.progress._SECONDS", 0.0)
    results_of(run)
    said = capsys.readouterr().err
    for work in ("dense", "compressed", "compressed_quantized_inputs"):
        assert f"Evaluating {work}: 1 of 1 batches, " in said
    assert "Measuring latency, batch 1: 2 of 2 calls, " in said


def test_a_report_says_that_the_machine_was_busy(run, monkeypatch):
    monkeypatch.setattr("lit_compress.report.timing_rounds.undisturbed", lambda rounds: [])
    assert results_of(run)["machine"]["busy at 1x16"] == "1 of 1 timed rounds were disturbed"
    for name in ("report.md", "report.html"):
        assert "1 of 1 timed rounds were disturbed" in (run / "report" / name).read_text()


def test_the_model_card_gets_the_results(reported):
    run, results = reported
    text = (run / "model" / "README.md").read_text()
    assert f"value: {results['models']['compressed']['accuracy']['accuracy']}" in text
    assert "library_name: transformers" in text
    assert text.count("# Measured\n") == 1


def test_figures_are_those_of_the_folder(reported, tiny_teacher):
    run, results = reported
    for name, folder in (("dense", tiny_teacher), ("compressed", run / "model")):
        size = results["models"][name]["size"]["model"]
        parameters = list(AutoModelForSequenceClassification.from_pretrained(folder).parameters())
        assert size["parameters"] == sum(p.numel() for p in parameters)
        assert size["nonzeros"] == sum(int(torch.count_nonzero(p)) for p in parameters)
    encoder = results["models"]["compressed"]["size"]["encoder"]
    # 2 layers of 4 x 32 x 32 and 2 x 32 x 64 weights: a quarter is left, some of it rounds to 0 on the grid.
    assert encoder["parameters"] == 2 * (4 * 32 * 32 + 2 * 32 * 64)
    assert 0.9 * encoder["parameters"] / 4 < encoder["nonzeros"] <= encoder["parameters"] / 4
    scales = 2 * (4 * 32 + 64 + 32) * 4
    assert encoder["compressed_bytes"] == encoder["nonzeros"] + encoder["parameters"] // 8 + scales
    assert len(results["sparsity"]) == 12
    assert all(value >= 0.75 for value in results["sparsity"].values())


def test_accuracy_is_that_of_training(reported, capsys):
    """The student with its quantized inputs is what the run validated last."""
    run, results = reported
    capsys.readouterr()
    main(["validate", f"--config={run / 'config.yaml'}", f"--run={run}", "--ckpt_path=last"])
    shown = capsys.readouterr().out
    for name, value in results["models"]["compressed"]["accuracy_quantized_inputs"].items():
        assert f"val/{name} {value:.4g}" in shown


def test_a_run_that_removed_heads_neurons_and_ranks(tmp_path, finished, tiny_teacher):
    config = yaml.safe_load((finished / "config.yaml").read_text())
    config["compression"] = [
        {"class_path": "StructuredPruning", "init_args": {"heads": 1, "neurons": 10, "pruning_steps": 1}},
        {"class_path": "LowRankEmbedding", "init_args": {"rank": 4}},
    ]
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(config))
    main(["fit", f"--config={tmp_path / 'config.yaml'}", f"--run={tmp_path / 'run'}"])
    results = results_of(tmp_path / "run")
    dense, compressed = (results["models"][name]["size"] for name in ("dense", "compressed"))
    layers = 2 * (4 * 32 * 16 + 2 * 10 * 32)
    assert compressed["encoder"]["parameters"] == layers
    words = AutoModelForSequenceClassification.from_pretrained(tiny_teacher).get_input_embeddings().num_embeddings
    gone = dense["encoder"]["parameters"] - layers + words * 32 - (words + 32) * 4 + 2 * (3 * 16 + 54)  # and biases
    assert compressed["model"]["parameters"] == dense["model"]["parameters"] - gone
    assert compressed["model"]["dense_bytes"] == 4 * compressed["model"]["parameters"]
    assert results["sparsity"] == {}
    assert set(results["models"]["compressed"]["accuracy"]) == set(results["models"]["dense"]["accuracy"])

    # Every ratio is to the dense model, also where it is not among the models that are shown.
    for name, size in dense.items():
        assert results["reference"][name] == size["dense_bytes"]
        times = compressed[name]["times_smaller"]
        assert times["than_reference"] == pytest.approx(size["dense_bytes"] / compressed[name]["dense_bytes"], rel=1e-3)
        assert times["than_own_fp32"] == 1
        shown = f"{times['than_reference']:.1f}x"
        for text in ("report.md", "report.html"):
            assert shown in (tmp_path / "run" / "report" / text).read_text()
        assert shown in (tmp_path / "run" / "model" / "README.md").read_text()
    edit_config(tmp_path / "run", lambda config: config["model"]["init_args"].pop("teacher"))
    shutil.rmtree(tmp_path / "run" / "report")
    alone = results_of(tmp_path / "run")
    assert alone["reference"] == results["reference"] | {"name": "pretrained"}
    assert alone["models"]["compressed"]["size"] == results["models"]["compressed"]["size"]
    edit_config(tmp_path / "run", lambda config: config["model"]["init_args"].update(pretrained="/nowhere"))
    alone = results_of(tmp_path / "run")
    assert alone["reference"]["name"] == "own"
    assert alone["models"]["compressed"]["size"]["model"]["times_smaller"]["than_reference"] == 1


@pytest.mark.parametrize("older", [False, True])
def test_an_existing_report_is_replaced(run, older):
    results_of(run)
    if older:
        for name in (".lit_compress.json", "confusion.png", "curves.png"):  # which earlier versions did not write
            (run / "report" / name).unlink()
    for path in (run / "report").iterdir():
        os.utime(path, (0, 0))
    results_of(run)
    assert min(path.stat().st_mtime for path in (run / "report").iterdir()) > 0


def test_another_folder(run, tmp_path):
    report(run=str(run), output=str(tmp_path / "elsewhere"), batch_sizes=[2], repetitions=1)
    assert (tmp_path / "elsewhere" / "report.md").is_file()
    assert not (run / "report").exists()
    assert list(json.loads((tmp_path / "elsewhere/report.json").read_text())["models"]["dense"]["latency_ms"]) == ["2"]


def test_nothing_else_of_a_run_changes(run):
    before = {path: path.stat().st_mtime_ns for path in run.rglob("*") if path.is_file()}
    results_of(run)
    after = {path: path.stat().st_mtime_ns for path in run.rglob("*") if path.is_file()}
    card = run / "model" / "README.md"
    changed = {path for path, time in after.items() if path.parent.name != "report" and before.get(path) != time}
    assert changed == {card}


def edit_config(run, edit):
    config = yaml.safe_load((run / "config.yaml").read_text())
    edit(config)
    (run / "config.yaml").write_text(yaml.safe_dump(config))


def test_without_a_teacher_there_is_one_model(run):
    edit_config(run, lambda config: config["model"]["init_args"].update(teacher=None))
    assert list(results_of(run)["models"]) == ["compressed"]


def test_any_dense_model(run, tiny_teacher, tmp_path):
    model = AutoModelForSequenceClassification.from_pretrained(tiny_teacher)
    torch.nn.init.zeros_(model.classifier.weight)
    model.save_pretrained(tmp_path / "dense")
    results = results_of(run, dense=str(tmp_path / "dense"))
    sizes = {name: entry["size"]["model"] for name, entry in results["models"].items()}
    assert sizes["dense"]["nonzeros"] <= sizes["dense"]["parameters"] - 64


def test_a_data_module_of_ones_own_has_the_length_of_its_longest_text(run, tiny_data, tiny_teacher):
    edit_config(run, lambda config: use_own_rows(config, tiny_data, tiny_teacher))
    data = OwnRows(str(tiny_data), str(tiny_teacher), ["0", "1"])
    data.setup("validate")
    longest = max(int(batch.inputs["attention_mask"].sum(1).max()) for batch in data.val_dataloader())
    found = results_of(run)["data"]
    assert found == {"validation_rows": 16, "max_length": longest, "source": "contracts.own_data.OwnRows"}


@pytest.mark.parametrize(
    ("missing", "words"),
    [
        ("", ["--run", "is not a folder"]),
        ("checkpoints", ["--run", "no checkpoints/last.ckpt"]),
        ("config.yaml", ["--run", "config.yaml"]),
        ("model", ["--run", "no model/", "lit_compress export --run"]),
        ("model/config.json", ["--run", "no model/"]),
        ("model/model.safetensors", ["model"]),
    ],
)
def test_a_run_that_is_not_whole(missing, words, run):
    path = run / missing
    shutil.rmtree(path) if path.is_dir() else path.unlink()
    message = error_of(run=str(run))
    assert str(run) in message
    assert [word for word in words if word not in message] == []
    assert not (run / "report").exists()


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("config.yaml", b""),
        ("config.yaml", b"data: ["),
        ("config.yaml", b"seed_everything: 1\n"),
        ("model/config.json", b"{"),
        ("model/model.safetensors", b"half"),
        ("model/compression.json", b"{"),
        ("checkpoints/last.ckpt", b"half"),
    ],
)
def test_a_damaged_file_of_a_run(name, content, run):
    (run / name).write_bytes(content)
    message = error_of(run=str(run))
    assert str(run) in message
    assert not (run / "report").exists()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"dense": "/nowhere"}, ["--dense", "/nowhere"]),
        ({"repetitions": 0}, ["--repetitions", "0"]),
        ({"batch_sizes": [0]}, ["--batch_sizes", "0"]),
        ({"output": "/proc/nowhere/report"}, ["--output", "cannot be written"]),
    ],
)
def test_wrong_arguments_are_one_line(arguments, words, run):
    message = error_of(run=str(run), **arguments)
    assert [word for word in words if word not in message] == []


def test_data_that_has_moved(run):
    edit_config(run, lambda config: config["data"]["init_args"].update(val_file="/gone/val.tsv"))
    message = error_of(run=str(run))
    assert "/gone/val.tsv" in message


def test_a_dense_model_with_other_labels(run, tiny_teacher, tmp_path):
    model = AutoModelForSequenceClassification.from_pretrained(tiny_teacher, num_labels=3, ignore_mismatched_sizes=True)
    model.save_pretrained(tmp_path / "three")
    assert "3 labels" in error_of(run=str(run), dense=str(tmp_path / "three"))


def test_every_argument_is_explained():
    text = inspect.getdoc(commands.report)
    assert [name for name in inspect.signature(report).parameters if f"{name}:" not in text] == []


def test_a_dense_model_without_positions_for_the_longest_input(finished, short_teacher):
    message = error_of(run=str(finished), dense=str(short_teacher))
    assert f"--data.max_length: 16 is above 12, the longest input of --dense {str(short_teacher)!r}" in message


def test_a_dense_model_with_its_classes_in_another_order(finished, tiny_teacher, tmp_path):
    expected = measure_run(finished, None, [1], 1)["models"]["dense"]["accuracy"]
    permuted = swapped(tiny_teacher, tmp_path / "permuted")
    assert measure_run(finished, str(permuted), [1], 1)["models"]["dense"]["accuracy"] == expected
    renamed = swapped(tiny_teacher, tmp_path / "renamed", ("HIGH", "LOW"))
    assert "--label_map" in error_of(run=str(finished), dense=str(renamed))
    results = measure_run(finished, str(renamed), [1], 1, label_map={"HIGH": 1, "LOW": 0})
    assert results["models"]["dense"]["accuracy"] == expected


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"hub": "glue", "hub_config": "sst2"}, "glue sst2"),
        ({"hub": "glue", "val_file": "own.tsv"}, "own.tsv"),
        ({"train_file": "train.tsv", "val_file": "own.tsv"}, "own.tsv"),
        ({"train_file": "train.tsv"}, "held out of train.tsv"),
        ({}, "mine.Rows"),
    ],
)
def test_a_report_says_what_was_validated_on(options, said):
    assert measure._source({"class_path": "mine.Rows", "init_args": options}) == said
