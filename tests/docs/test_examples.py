"""The examples of docs/extending.md, trained as they stand on the page."""

import json
import sys
from pathlib import Path

import pytest
import torch
from docs.blocks import ROOT, blocks
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from lit_compress.cli import main
from lit_compress.export import load_checkpoint

FILES = {block.title: block.text for block in blocks(ROOT / "docs/extending.md") if block.title}


@pytest.fixture
def run(tmp_path, monkeypatch, tiny_model, tiny_teacher, tiny_data):
    """Train with one of the page's YAML fragments in a folder that holds the page's files; gives the run folder."""
    for name, text in FILES.items():
        (tmp_path / name).write_text(text)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setattr(sys, "argv", ["lit_compress"])
    monkeypatch.setenv("PL_GLOBAL_SEED", "0")

    def fit(name: str, **changes: str) -> Path:
        files = [str(ROOT / "configs/sst2/student.yaml"), f"{name}.yaml"]
        options = {
            "run": "run",
            "model.pretrained": tiny_teacher,
            "model.teacher": tiny_teacher,
            "data.train_file": tiny_data / "train.tsv",
            "data.val_file": tiny_data / "val.tsv",
            "data.batch_size": 16,
            "data.max_length": 16,
            "trainer.accelerator": "cpu",
            "trainer.max_epochs": 1,
            "trainer.log_every_n_steps": 1,
            "trainer.enable_model_summary": False,
        } | changes
        arguments = ["fit", *(word for file in files for word in ("--config", file))]
        main(arguments + [word for key, value in options.items() for word in (f"--{key}", str(value))])
        return tmp_path / "run"

    yield fit
    for name in FILES:
        sys.modules.pop(name.removesuffix(".py"), None)


def layers(folder: Path) -> dict:
    return json.loads((folder / "model/compression.json").read_text())["linears"]


def logged(folder: Path) -> set[str]:
    events = EventAccumulator(str(folder))
    events.Reload()
    return set(events.Tags()["scalars"])


def test_each_example_is_a_file_and_a_yaml():
    names = {Path(title).stem for title in FILES}
    assert set(FILES) == {f"{name}{suffix}" for name in names for suffix in (".py", ".yaml")}
    assert len(names) == 6


def test_importance(run):
    sparse = layers(run("my_importance"))
    assert len(sparse) == 12
    assert all(layer["sparsity"] == pytest.approx(0.6, abs=1e-3) for layer in sparse.values())


def test_strategy(run):
    folder = run("my_strategy")
    assert all(layer["sparsity"] == pytest.approx(0.5, abs=1e-3) for layer in layers(folder).values())
    weights = load_checkpoint(folder / "checkpoints/last.ckpt")["state_dict"]
    masks = [name for name in weights if name.endswith(".weight_mask")]
    assert len(masks) == 12
    assert all(torch.all(weights[n.removesuffix("_mask")][~weights[n]] == 0) for n in masks)


def test_distillation_term(run):
    assert {"train/task", "train/kd", "train/cosine"} <= logged(run("my_term"))


def test_penalty(run):
    folder = run("my_penalty")
    assert {"train/task", "train/kd", "train/hidden", "train/rows"} <= logged(folder)
    assert all(layer["sparsity"] == pytest.approx(0.5, abs=1e-3) for layer in layers(folder).values())


def test_task(run, tiny_data, tiny_model):
    # The student of the page's other examples is distilled from a classifier; this one starts over.
    alone = {"model.pretrained": tiny_model, "model.teacher": "null", "model.distillation": "null"}
    names = logged(run("my_task", **alone))
    assert {"val/pearson", "val/spearman"} <= names
    assert "accuracy" not in str(names)
    main(["predict", f"--file={tiny_data / 'val.tsv'}", "--run=run", "--output=relevance.csv"])
    values = [float(row.split(",")[1]) for row in Path("relevance.csv").read_text().splitlines()[1:]]
    assert all(0 < value < 1 for value in values)


def test_data(run, tiny_data, tiny_teacher, tmp_path):
    assert "class_path: my_data.WebText" in (run("my_data") / "config.yaml").read_text()
    web = tmp_path / "web.tsv"
    web.write_text("sentence\tlabel\n&quot;good&quot; &amp; bad\t0\ngood\t1\n")
    data = sys.modules["my_data"].WebText(
        train_file=str(web), text_columns=["sentence"], tokenizer=str(tiny_teacher), max_length=16
    )
    assert data.rows("train")["sentence"][0] == '"good" & bad'
