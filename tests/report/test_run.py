import inspect
import json
import shutil

import pytest
import torch
import yaml
from transformers import AutoModelForSequenceClassification

from lit_compress.cli import main
from lit_compress.errors import UserError
from lit_compress.report.card import rows
from lit_compress.report.run import report


@pytest.fixture(scope="session")
def finished(tmp_path_factory, tiny_teacher, tiny_data):
    """A finished run with pruning and quantization."""
    root = tmp_path_factory.mktemp("finished")
    config = {
        "model": {
            "class_path": "LitStudent",
            "init_args": {"pretrained": str(tiny_teacher), "teacher": str(tiny_teacher)},
        },
        "data": {
            "class_path": "TextClassification",
            "init_args": {
                "train_file": str(tiny_data / "train.tsv"),
                "val_file": str(tiny_data / "val.tsv"),
                "text_columns": ["sentence"],
                "batch_size": 16,
                "max_length": 16,
            },
        },
        "compression": [
            {"class_path": "MagnitudePruning", "init_args": {"sparsity": 0.75, "end": "50%"}},
            {"class_path": "QuantAwareTraining", "init_args": {"start": "50%"}},
        ],
        "trainer": {"max_epochs": 1, "accelerator": "cpu"},
    }
    (root / "task.yaml").write_text(yaml.safe_dump(config))
    main(["fit", f"--config={root / 'task.yaml'}", f"--run={root / 'run'}"])
    return root / "run"


@pytest.fixture
def run(finished, tmp_path):
    """A copy that a test may break."""
    return shutil.copytree(finished, tmp_path / "run")


def results_of(run, **arguments):
    report(run=str(run), batch_sizes=[1], repetitions=1, **arguments)
    return json.loads((run / "report" / "report.json").read_text())


def error_of(**arguments):
    with pytest.raises(UserError) as caught:
        report(**{"batch_sizes": [1], "repetitions": 1} | arguments)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_a_report_is_complete(run, capsys):
    results = results_of(run)
    assert sorted(path.name for path in (run / "report").iterdir()) == ["report.json", "report.md", "sparsity.png"]
    assert list(results["models"]) == ["dense", "compressed"]
    text, shown = (run / "report" / "report.md").read_text(), capsys.readouterr().out
    for row in rows(results):
        assert "| " + " | ".join(row) + " |" in text
        assert row[0] in shown
    assert results["data"] == {"validation_rows": 16, "max_length": 16}


def test_figures_are_those_of_the_folder(run, tiny_teacher):
    results = results_of(run)
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


def test_accuracy_is_that_of_training(run, capsys):
    """The student with its quantized inputs is what the run validated last."""
    results = results_of(run)
    capsys.readouterr()
    main(["validate", f"--config={run / 'config.yaml'}", f"--run={run}", "--ckpt_path=last"])
    shown = capsys.readouterr().out
    for name, value in results["models"]["compressed"]["accuracy_quantized_inputs"].items():
        assert f"val/{name} {value:.4g}" in shown


def test_a_run_that_removed_heads_neurons_and_ranks(tmp_path, finished, tiny_teacher):
    config = yaml.safe_load((finished / "config.yaml").read_text())
    config["compression"] = [
        {"class_path": "StructuredPruning", "init_args": {"heads": 1, "neurons": 10, "prunings": 1}},
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


def test_an_existing_report_is_replaced(run):
    (run / "report").mkdir()
    (run / "report" / "stale").touch()
    results_of(run)
    assert not (run / "report" / "stale").exists()
    assert (run / "report" / "report.md").is_file()


def test_another_folder(run, tmp_path):
    report(run=str(run), output=str(tmp_path / "elsewhere"), batch_sizes=[2], repetitions=1)
    assert (tmp_path / "elsewhere" / "report.md").is_file()
    assert not (run / "report").exists()
    assert list(json.loads((tmp_path / "elsewhere/report.json").read_text())["models"]["dense"]["latency_ms"]) == ["2"]


def test_nothing_else_of_a_run_changes(run):
    before = {path: path.stat().st_mtime_ns for path in run.rglob("*") if path.is_file()}
    results_of(run)
    after = {path: path.stat().st_mtime_ns for path in run.rglob("*") if path.is_file()}
    assert {path: time for path, time in after.items() if path.parent.name != "report"} == before


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


@pytest.mark.parametrize(
    ("missing", "words"),
    [
        ("", ["--run", "is no folder"]),
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
    text = inspect.getdoc(report)
    assert [name for name in inspect.signature(report).parameters if f"{name}:" not in text] == []
