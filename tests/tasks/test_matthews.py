"""The Matthews correlation of collapsed and ordinary predictions."""

import pytest
import torch

from lit_compress.tasks.classification import ClassScore


@pytest.mark.parametrize(
    ("predictions", "labels", "expected"),
    [
        ([0, 0, 0, 0], [0, 0, 0, 1], 0.0),
        ([0, 1, 0, 1], [1, 1, 1, 1], 0.0),
        ([0, 1, 0, 1], [0, 1, 0, 1], 1.0),
        ([1, 0, 1, 0], [0, 1, 0, 1], -1.0),
        ([1, 1, 0, 0], [1, 0, 0, 0], 1 / 3**0.5),
    ],
)
def test_matthews_correlation(predictions, labels, expected):
    metric = ClassScore(2)
    metric.update(torch.tensor(predictions), torch.tensor(labels))
    assert metric.compute()["matthews"].item() == pytest.approx(expected)
