"""The programs of docs/python.md and README.md, run as they stand, each in a folder with a teacher and two tables."""

import json
import shutil
import sys
from pathlib import Path

import pytest
import torch
import yaml
from docs.blocks import ROOT, blocks
from safetensors.torch import load_file
from transformers import AutoModelForSequenceClassification

from lit_compress.cli import main
from lit_compress.models.packed import packed_linears

PROGRAMS = {block.title: block for block in blocks(ROOT / "docs/python.md", "python")}
(README_PROGRAM,) = blocks(ROOT / "README.md", "python")
(README_YAML,) = blocks(ROOT / "README.md", "yaml")


@pytest.fixture
def run(tmp_path, monkeypatch, tiny_teacher, tiny_data):
    """Runs a program of the page; gives its names."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PL_GLOBAL_SEED", "0")
    shutil.copytree(tiny_teacher, "runs/teacher/model")
    for name in ("train", "val"):
        lines = (tiny_data / f"{name}.tsv").read_text().splitlines()[1:]
        rows = [f"{json.dumps(line.partition(chr(9))[0].replace(chr(34), ''))},{line[-1]}" for line in lines]
        Path(f"{name}.csv").write_text("\n".join(["text,label", *rows]) + "\n")

    def execute(title: str) -> dict:
        program = README_PROGRAM if title == "README.md" else PROGRAMS[title]
        names: dict = {"__name__": "__main__"}
        exec(compile(program.text, program.place, "exec"), names)
        return names

    return execute


def zeros(folder: str | Path) -> float:
    model = AutoModelForSequenceClassification.from_pretrained(folder)
    linears = [m.weight for m in model.bert.encoder.modules() if isinstance(m, torch.nn.Linear)]
    return sum(int((weight == 0).sum()) for weight in linears) / sum(weight.numel() for weight in linears)


def test_every_program_is_run():
    assert list(PROGRAMS) == ["run.py", "rate.py", "trainer.py", "loop.py"]


def test_a_learning_rate(run):
    made = run("rate.py")
    assert 1e-8 < made["search"].suggestion() < 1
    assert all(
        torch.equal(now, was)
        for now, was in zip(
            made["model"].student.parameters(),
            AutoModelForSequenceClassification.from_pretrained("runs/teacher/model").parameters(),
            strict=True,
        )
    )


def test_a_run(run, capsys):
    made = run("run.py")["run"]
    assert zeros(made.model) == pytest.approx(0.8, abs=0.01)
    assert made.metrics["val/accuracy"] > 0.4
    assert "runs/student/model" in capsys.readouterr().out


def test_python_and_yaml_of_the_readme_are_the_same_run(run, monkeypatch):
    header, *rows = Path("train.csv").read_text().splitlines()
    Path("train.csv").write_text("\n".join([header, *rows * 8]) + "\n")  # steps enough for ten prunings
    monkeypatch.delenv("PL_GLOBAL_SEED")
    made = run("README.md")["run"]
    monkeypatch.setattr(sys, "argv", ["lit_compress"])
    Path("student.yaml").write_text(README_YAML.text)
    main(["fit", "--config", "student.yaml", "--run", "runs/yaml"])
    python, by_yaml = (yaml.safe_load(Path(name, "config.yaml").read_text()) for name in (made.folder, "runs/yaml"))
    options = [[entry["init_args"] for entry in config["compression"]] for config in (python, by_yaml)]
    assert options[0] == options[1]
    weights = [load_file(Path(name, "model/model.safetensors")) for name in (made.folder, "runs/yaml")]
    assert weights[0].keys() == weights[1].keys()
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])


def test_a_student_in_a_stock_trainer_takes_thirty_lines(run):
    run("trainer.py")
    assert zeros("compressed/student") == pytest.approx(0.8, abs=0.01)
    lines = [line for line in PROGRAMS["trainer.py"].text.splitlines() if line.strip()]
    assert len(lines) <= 30


def test_a_loop_of_ones_own(run):
    losses = run("loop.py")
    assert zeros("compressed/plain") == pytest.approx(0.6, abs=0.01)
    packed = AutoModelForSequenceClassification.from_pretrained("compressed/packed")
    assert len(packed_linears(packed)) == 12
    batch = {name: value for name, value in losses["batch"].items() if name != "labels"}
    plain = AutoModelForSequenceClassification.from_pretrained("compressed/plain")
    with torch.no_grad():
        torch.testing.assert_close(packed(**batch).logits, plain(**batch).logits, rtol=0, atol=0.02)
