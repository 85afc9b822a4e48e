import numpy as np
import pytest
import torch
from torchmetrics.functional.classification import multiclass_calibration_error

from lit_compress.report.calibration import calibration


def test_by_hand():
    # Three bins of a tenth: off by |0.95 - 0.5|, |0.75 - 1| and 0, weighing 2, 1 and 1 of 4 rows.
    found = calibration(np.array([0.93, 0.97, 0.75, 0.0]), np.array([True, False, True, False]), bins=10)
    assert found["ece"] == pytest.approx((2 * 0.45 + 0.25 + 0) / 4)
    assert [entry["rows"] for entry in found["bins"]] == [1, 1, 2]
    assert found["bins"][-1] == pytest.approx({"low": 0.9, "high": 1.0, "rows": 2, "confidence": 0.95, "accuracy": 0.5})


@pytest.mark.parametrize("classes", [2, 5])
def test_the_error_is_that_of_torchmetrics(classes):
    torch.manual_seed(0)
    probabilities, labels = torch.randn(500, classes).mul(2).softmax(-1), torch.randint(classes, (500,))
    confidence, guess = probabilities.max(-1)
    found = calibration(confidence.numpy(), (guess == labels).numpy())
    assert found["ece"] == pytest.approx(
        float(multiclass_calibration_error(probabilities, labels, classes, n_bins=15)), rel=1e-4
    )


def test_sure_and_right():
    found = calibration(np.ones(3), np.ones(3, dtype=bool))
    assert found["ece"] == 0
    assert len(found["bins"]) == 1
