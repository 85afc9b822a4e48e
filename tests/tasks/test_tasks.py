import math
from types import SimpleNamespace

import pytest
import torch
from scipy import stats

from lit_compress.tasks import Batch, ClassificationTask, RegressionTask


def output(logits):
    return SimpleNamespace(logits=logits)


def labelled(labels):
    return Batch({}, {"labels": labels}, {})


NOTHING = Batch({}, {}, {})


def measure(task, logits, labels, batches=1):
    metrics = task.metrics("val/")
    for part, answers in zip(logits.chunk(batches), labels.chunk(batches), strict=True):
        task.update(metrics, output(part), labelled(answers))
    return {name: float(value) for name, value in metrics.compute().items()}


def one_hot(predictions, classes):
    return torch.eye(classes)[torch.tensor(predictions)]


# predictions, labels -> accuracy, F1 and Matthews correlation from the table of hits and misses.
BINARY = {
    # tp 2, tn 1, fp 1, fn 1
    "mixed": ([1, 1, 0, 1, 0], [1, 0, 0, 1, 1], 3 / 5, 4 / 6, 1 / math.sqrt(3 * 3 * 2 * 2)),
    "all right": ([0, 1, 1], [0, 1, 1], 1.0, 1.0, 1.0),
    "all wrong": ([1, 0, 0], [0, 1, 1], 0.0, 0.0, -1.0),
    "one class only": ([0, 0, 0, 0], [0, 0, 1, 1], 0.5, 0.0, 0.0),
}


@pytest.mark.parametrize(("predictions", "labels", "accuracy", "f1", "matthews"), BINARY.values(), ids=BINARY)
def test_two_classes_are_measured_on_class_one(predictions, labels, accuracy, f1, matthews):
    got = measure(ClassificationTask(["no", "yes"]), one_hot(predictions, 2), torch.tensor(labels))
    expected = {"val/accuracy": accuracy, "val/f1": f1, "val/matthews": matthews}
    assert got == pytest.approx(expected, abs=1e-6)


def test_three_classes_average_f1_and_not_accuracy():
    # Counts differ between classes, so that the macro and the micro average differ.
    predictions, labels = [0, 0, 0, 1, 1, 2, 0, 0], [0, 0, 0, 1, 2, 2, 1, 0]
    f1 = (2 * 4 / (2 * 4 + 1) + 2 * 1 / (2 * 1 + 1 + 1) + 2 * 1 / (2 * 1 + 1)) / 3
    # Matthews for several classes is the correlation of the one-hot columns, summed over classes.
    seen, true = (one_hot(ids, 3) - one_hot(ids, 3).mean(0) for ids in (predictions, labels))
    matthews = float((seen * true).sum() / math.sqrt((seen * seen).sum() * (true * true).sum()))
    got = measure(ClassificationTask(["a", "b", "c"]), one_hot(predictions, 3), torch.tensor(labels), batches=2)
    assert got == pytest.approx({"val/accuracy": 6 / 8, "val/f1": f1, "val/matthews": matthews}, abs=1e-6)


def test_correlations_equal_scipy():
    generator = torch.Generator().manual_seed(5)
    labels = torch.rand(40, generator=generator).mul(20).round() / 4  # STS-B: many ties
    logits = (labels + torch.randn(40, generator=generator)).unsqueeze(1)
    got = measure(RegressionTask(), logits, labels, batches=4)
    values = logits[:, 0].numpy()
    expected = {
        "val/pearson": stats.pearsonr(values, labels.numpy()).statistic,
        "val/spearman": stats.spearmanr(values, labels.numpy()).statistic,
    }
    assert got == pytest.approx(expected, abs=1e-5)


def test_correlations_of_half_precision_logits_are_computed_in_full():
    labels = torch.linspace(0, 5, 64)
    logits = labels.unsqueeze(1).bfloat16()
    assert RegressionTask().predictions(output(logits), NOTHING).dtype == torch.float32
    assert measure(RegressionTask(), logits, labels)["val/pearson"] == pytest.approx(1, abs=1e-4)


def test_classification_loss():
    logits = torch.tensor([[2.0, 0.0], [0.0, 1.0]])
    expected = (math.log(1 + math.exp(-2)) + math.log(1 + math.exp(1))) / 2
    assert ClassificationTask(["no", "yes"]).loss(
        output(logits), labelled(torch.tensor([0, 0]))
    ).item() == pytest.approx(expected)


def test_regression_loss_compares_row_with_row():
    logits, labels = torch.tensor([[1.0], [2.0], [4.0]]), torch.tensor([1.0, 0.0, 1.0])
    assert RegressionTask().loss(output(logits), labelled(labels)).item() == pytest.approx((0 + 4 + 9) / 3)
    assert RegressionTask().predictions(output(logits), NOTHING).tolist() == [1, 2, 4]


@pytest.mark.parametrize(
    ("task", "dtype"), [(ClassificationTask(["no", "yes"]), torch.long), (RegressionTask(), torch.float32)]
)
def test_metrics_are_fresh_each_time(task, dtype):
    first, second = task.metrics("val/"), task.metrics("test/")
    first.update(torch.tensor([0.0, 1.0]).to(dtype), torch.tensor([0, 1]).to(dtype))
    assert not any(metric.update_called for metric in second.values())
    assert {name.partition("/")[0] for name in second} == {"test"}
