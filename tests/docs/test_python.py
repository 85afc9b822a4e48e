"""The programs of docs/python.md, run as they stand on the page, each in a folder with a teacher and two tables."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from docs.blocks import ROOT, blocks
from transformers import AutoModelForSequenceClassification

from lit_compress.models.packed import packed_linears

PROGRAMS = {block.title: block for block in blocks(ROOT / "docs/python.md", "python")}


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
        names: dict = {"__name__": "__main__"}
        exec(compile(PROGRAMS[title].text, PROGRAMS[title].place, "exec"), names)
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
