import pytest
import torch
import torchmetrics
from contracts.training import data
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from lit_compress.report.accuracy import evaluate_units
from lit_compress.tasks import ClassificationTask, RegressionTask

ROWS = [("good film", 1), ("bad film", 0), ("a very dull and boring plot it was not", 0), ("lovely", 1), ("it is", 1)]


@pytest.fixture
def folder(tmp_path):
    """Rows of very different lengths, so that batches are padded and the last one is short."""
    for name in ("train", "val"):
        text = "".join(f"{sentence}\t{label}\n" for sentence, label in ROWS)
        (tmp_path / f"{name}.tsv").write_text("sentence\tlabel\n" + text)
    return tmp_path


def one_by_one(model, tokenizer):
    """Logits of each row alone, without any padding."""
    with torch.no_grad():
        return torch.cat([model(**tokenizer(sentence, return_tensors="pt")).logits for sentence, _ in ROWS])


@pytest.mark.parametrize("batch_size", [2, 5])
def test_classification_equals_row_by_row(folder, tiny_teacher, batch_size):
    model = AutoModelForSequenceClassification.from_pretrained(tiny_teacher).eval()
    datamodule = data(folder, tiny_teacher, batch_size=batch_size)
    datamodule.setup("validate")
    with torch.no_grad():  # a random head answers every row alike; this one answers some with 0 and some with 1
        first, second = one_by_one(model, datamodule.tokenizer).unbind(1)
        model.classifier.bias[0] += (second - first).sort().values[1:3].mean()
    predictions = one_by_one(model, datamodule.tokenizer).argmax(1)
    labels = torch.tensor([label for _, label in ROWS])
    assert sorted(predictions.tolist()) == [0, 0, 1, 1, 1]
    metrics = {
        "accuracy": torchmetrics.functional.accuracy(predictions, labels, "binary"),
        "f1": torchmetrics.functional.f1_score(predictions, labels, "binary"),
        "matthews": torchmetrics.functional.matthews_corrcoef(predictions, labels, "binary"),
    }
    got, _ = evaluate_units(model, datamodule, ClassificationTask(["0", "1"]))
    assert got == pytest.approx({name: float(value) for name, value in metrics.items()})
    assert all(type(value) is float for value in got.values())


def test_regression_equals_row_by_row(folder, tiny_model):
    torch.manual_seed(0)
    model = AutoModelForSequenceClassification.from_pretrained(tiny_model, num_labels=1).eval()
    datamodule = data(folder, tiny_model, batch_size=2, task="regression")
    datamodule.setup("validate")
    values = one_by_one(model, AutoTokenizer.from_pretrained(tiny_model))[:, 0]
    labels = torch.tensor([float(label) for _, label in ROWS])
    expected = {
        "pearson": float(torchmetrics.functional.pearson_corrcoef(values, labels)),
        "spearman": float(torchmetrics.functional.spearman_corrcoef(values, labels)),
    }
    got, _ = evaluate_units(model, datamodule, RegressionTask())
    assert got == pytest.approx(expected, abs=1e-4)
