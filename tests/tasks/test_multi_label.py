"""Labels that do not exclude each other: scores, distillation, and from training to a stock pipeline."""

import csv
import json

import pytest
import torch
import yaml
from contracts import tasks
from contracts.errors import error_of
from sklearn.metrics import accuracy_score, f1_score
from torch.nn import functional as F
from transformers import BertConfig, pipeline

from lit_compress.cli import main
from lit_compress.init_args import settings_of
from lit_compress.models import check_compatible
from lit_compress.modules import LitTeacher, LogitDistillation
from lit_compress.tasks import Batch, MultiLabelTask

LABELS = ["a", "b", "c"]


class Output:
    def __init__(self, logits):
        self.logits = logits


@pytest.mark.parametrize("threshold", [0.5, 0.3])
def test_scores_are_those_of_scikit_learn(threshold):
    draw = torch.Generator().manual_seed(0)
    logits = torch.randn(30, 3, generator=draw)
    truth = (torch.rand(30, 3, generator=draw) < torch.tensor([0.5, 0.2, 0.0])).float()
    task, metrics = MultiLabelTask(LABELS, threshold), MultiLabelTask(LABELS, threshold).metrics("")
    for rows in torch.arange(30).chunk(4):
        task.update(metrics, Output(logits[rows]), Batch({}, {"labels": truth[rows]}, {}))
    guess = (logits.sigmoid() > threshold).numpy()
    expected = {f"f1_{name}": f1_score(truth, guess, average=name, zero_division=0) for name in ("micro", "macro")}
    expected["exact_match"] = accuracy_score(truth, guess)
    assert {name: float(value) for name, value in metrics.compute().items()} == pytest.approx(expected)


def test_the_loss_is_the_mean_over_labels():
    batch = Batch({}, {"labels": torch.tensor([[1.0, 0.0, 1.0]])}, {})
    logits = torch.tensor([[2.0, -1.0, 0.0]])
    expected = -(F.logsigmoid(logits[0, 0]) + F.logsigmoid(-logits[0, 1]) + F.logsigmoid(logits[0, 2])) / 3
    assert torch.isclose(MultiLabelTask(LABELS).loss(Output(logits), batch), expected)


def test_distillation_softens_each_label_by_itself():
    term = LogitDistillation(hardness=1.0, temperature=2.0)
    term.prepare(BertConfig(num_labels=3, problem_type="multi_label_classification"), [])
    ours, theirs = torch.randn(4, 3), torch.randn(4, 3)
    p, q = (theirs / 2).sigmoid(), (ours / 2).sigmoid()
    divergence = p * (p / q).log() + (1 - p) * ((1 - p) / (1 - q)).log()
    got = term(Output(ours), Output(theirs), Batch({}, {}, {}))
    assert torch.isclose(got, 4 * divergence.mean(), rtol=1e-4)


def test_a_teacher_of_classes_that_exclude_each_other():
    student = BertConfig(num_labels=3)
    teacher = BertConfig(
        num_labels=3, problem_type="single_label_classification", architectures=["BertForSequenceClassification"]
    )
    message = error_of(check_compatible, student, teacher, "bert", MultiLabelTask(LABELS))
    assert "single_label_classification" in message


def test_from_fit_to_a_stock_pipeline(tmp_path, tiny_model, monkeypatch, capsys):
    pytest.importorskip("onnxruntime")
    monkeypatch.chdir(tmp_path)
    train, val = (tasks.labelled(tmp_path / f"{name}.jsonl", rows, seed) for name, rows, seed in (("t", 64, 0), ("v", 24, 1)))  # noqa: E501  # fmt: skip
    config = {
        "model": {
            "class_path": "LitTeacher",
            "init_args": {"pretrained": str(tiny_model), "optimization": {"learning_rate": 3e-3}},
        },
        "data": {
            "class_path": "MultiLabelClassification",
            "init_args": {"train_file": str(train), "val_file": str(val), "max_length": 16, "batch_size": 8},
        },
        "compression": [{"class_path": "MagnitudePruning", "init_args": {"sparsity": 0.5, "end": "50%"}}],
        "trainer": {"max_epochs": 3, "accelerator": "cpu", "logger": False, "enable_progress_bar": False},
    }
    (tmp_path / "task.yaml").write_text(yaml.safe_dump(config))
    main(["fit", "--config=task.yaml", "--run=run"])
    assert json.loads((tmp_path / "run/model/config.json").read_text())["problem_type"] == "multi_label_classification"
    again = LitTeacher.load_from_checkpoint("run/checkpoints/last.ckpt", weights_only=True)
    assert settings_of(again.task) == settings_of(MultiLabelTask(["good", "great"]))
    main(["predict", f"--file={val}", "--run=run", "--output=run.csv"])
    alone = ["--model=run/model", "--data.max_length=16", "--data.batch_size=8"]
    main(["predict", f"--file={val}", "--output=model.csv", *alone])
    assert (tmp_path / "run.csv").read_bytes() == (tmp_path / "model.csv").read_bytes()
    rows = list(csv.DictReader((tmp_path / "run.csv").open()))
    texts = [json.loads(line) for line in val.read_text().splitlines()]
    found = pipeline("text-classification", model="run/model", top_k=None)([row["text"] for row in texts])
    for row, scores in zip(rows, found, strict=True):
        for score in scores:
            assert float(row[f"probability_{score['label']}"]) == pytest.approx(score["score"], abs=1e-5)
        assert json.loads(row["labels"]) == [s["label"] for s in sorted(scores, key=lambda s: s["label"] != "good") if s["score"] > 0.5]  # noqa: E501  # fmt: skip
    exact = sum(json.loads(a["labels"]) == b["labels"] for a, b in zip(rows, texts, strict=True)) / len(rows)
    main(["report", "--run=run", "--repetitions=1", "--batch_sizes=[1]"])
    results = json.loads((tmp_path / "run/report/report.json").read_text())
    assert results["models"]["compressed"]["accuracy"]["exact_match"] == pytest.approx(exact)
    assert set(results["comparison"]["classes"]) == {"good", "great"}
    capsys.readouterr()
    main(["export", "--run=run", "--output=onnx", "--to=onnx-int8"])
    assert "f1_micro" in capsys.readouterr().out
    # A threshold of one's own changes what is predicted, not the probabilities.
    main(["predict", f"--file={val}", "--run=run", "--output=all.csv", "--data.threshold=0.0001"])
    assert all(json.loads(row["labels"]) == ["good", "great"] for row in csv.DictReader((tmp_path / "all.csv").open()))
