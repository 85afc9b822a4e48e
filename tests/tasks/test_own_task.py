"""A task that the package does not know, in one file of a user's: trained, predicted, exported and reported."""

import json

import pytest
import yaml
from contracts.errors import error_of
from transformers import AutoModelForSequenceClassification

from lit_compress.cli import main

FILE = '''
"""Relevance of a text to a query, as a cross-encoder's score in [0, 1]."""

import numpy as np
import pyarrow
from torch.nn import functional as F
from torchmetrics import MetricCollection
from torchmetrics.classification import BinaryAUROC
from transformers import AutoModelForSequenceClassification

from lit_compress.data import TextClassification
from lit_compress.tasks import Outcomes, Task


class Relevance(Task):
    """One logit: binary cross-entropy with labels in [0, 1]; the fraction of labels on the right side of a half."""

    name = "relevance"
    head = AutoModelForSequenceClassification
    architectures = ("ForSequenceClassification",)
    pipeline_tag = "text-ranking"
    outputs = 1

    def loss(self, output, batch):
        return F.binary_cross_entropy_with_logits(output.logits[:, 0], batch.targets["labels"])

    def metrics(self, prefix):
        return MetricCollection({"auroc": BinaryAUROC()}, prefix=prefix)

    def update(self, metrics, output, batch):
        metrics.update(output.logits[:, 0], batch.targets["labels"].long())

    def predictions(self, output, batch):
        return output.logits[:, 0].float().sigmoid()

    def schema(self):
        return [("relevance", pyarrow.float32())]

    def record(self, predictions):
        return {"relevance": predictions[0]}

    def outcome_columns(self, output, batch):
        return {
            "score": self.predictions(output, batch).cpu().numpy(), "truth": batch.targets["labels"].cpu().numpy()
        }

    def outcomes(self, columns):
        better = columns["score"][:, None] - columns["score"]  # of each pair of a relevant and an irrelevant text
        pairs = (columns["truth"][:, None] > columns["truth"]) * 1.0
        won = ((better > 0) + 0.5 * (better == 0)) * pairs

        def score(weights):
            above, all_pairs = (np.einsum("ri,ij,rj->r", weights, part, weights) for part in (won, pairs))
            return {"auroc": above / np.maximum(all_pairs, 1e-9)}

        return Outcomes(unit="texts", lengths=columns["lengths"], score=score)


class Pairs(TextClassification):
    task = Relevance()
    labels = None
'''


@pytest.fixture
def home(tmp_path, monkeypatch):
    (tmp_path / "relevance.py").write_text(FILE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    return tmp_path


def test_a_task_in_one_file(home, tiny_model, tiny_data, capsys):
    pytest.importorskip("onnxruntime")
    options = {name: str(tiny_data / f"{part}.tsv") for name, part in (("train_file", "train"), ("val_file", "val"))}
    options |= {"task": "regression", "text_columns": ["sentence"], "max_length": 16}
    optimization = {"optimization": {"learning_rate": 3e-3}}
    config = {
        "model": {"class_path": "LitTeacher", "init_args": {"pretrained": str(tiny_model)} | optimization},
        "data": {"class_path": "relevance.Pairs", "init_args": options},
        "compression": [{"class_path": "MagnitudePruning", "init_args": {"sparsity": 0.5, "end": "50%"}}],
        "trainer": {"max_epochs": 3, "accelerator": "cpu", "logger": False, "enable_progress_bar": False},
    }
    (home / "task.yaml").write_text(yaml.safe_dump(config))
    main(["fit", "--config=task.yaml", "--run=run"])
    assert AutoModelForSequenceClassification.from_pretrained("run/model").config.num_labels == 1
    main(["predict", f"--file={tiny_data / 'val.tsv'}", "--run=run", "--output=got.jsonl"])
    rows = [json.loads(line) for line in (home / "got.jsonl").read_text().splitlines()]
    assert [row["row"] for row in rows] == list(range(16))
    assert all(0 <= row["relevance"] <= 1 for row in rows)
    # Its own predictions may be replaced, other files may not.
    main(["predict", f"--file={tiny_data / 'val.tsv'}", "--run=run", "--output=got.jsonl", "--overwrite=true"])
    (home / "other.jsonl").write_text('{"row": 0, "mine": 1}\n')
    again = ["predict", f"--file={tiny_data / 'val.tsv'}", "--run=run", "--output=other.jsonl", "--overwrite=true"]
    with pytest.raises(SystemExit, match="did not write"):
        main(again)
    main(["export", "--run=run", "--output=onnx", "--to=onnx-int8"])
    assert "auroc" in capsys.readouterr().out
    main(["report", "--run=run", "--repetitions=1", "--batch_sizes=[1]"])
    results = json.loads((home / "run/report/report.json").read_text())
    assert results["task"] == "relevance"
    measured = results["models"]["compressed"]["accuracy"]["auroc"]
    truth = [row % 2 for row in range(16)]
    scores = [row["relevance"] for row in rows]
    pairs = [(a > b) + 0.5 * (a == b) for a, i in zip(scores, truth, strict=True) for b, j in zip(scores, truth, strict=True) if i > j]  # noqa: E501  # fmt: skip
    assert measured == pytest.approx(sum(pairs) / len(pairs))
    assert measured > 0.6
    assert "pipeline_tag: text-ranking" in (home / "run/model/README.md").read_text()
    main(["validate", "--config=run/config.yaml", "--ckpt_path=last"])
    assert "val/auroc" in capsys.readouterr().out


def test_a_batch_of_an_own_data_module_that_is_no_batch(tiny_teacher):
    from lit_compress.modules import LitTeacher

    module = LitTeacher(str(tiny_teacher), labels=["0", "1"])
    assert "is a dict" in error_of(module, {"input_ids": None})
