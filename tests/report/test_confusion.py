from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch.nn.functional import one_hot

from lit_compress.report.accuracy import Recorder
from lit_compress.report.confusion import confusion
from lit_compress.tasks import Batch, ClassificationTask, RegressionTask


def outcomes_of(task, truth, answers):
    ids = torch.ones(len(truth), 3, dtype=torch.long)
    recorder = Recorder(task)
    logits = one_hot(torch.tensor(answers), len(task.labels)).float()
    recorder.add(SimpleNamespace(logits=logits), Batch({"input_ids": ids}, {"labels": torch.tensor(truth)}, {}))
    return recorder.outcomes()


def test_a_row_for_each_right_class():
    task = ClassificationTask(["a", "b", "c"])
    outcomes = {"dense": outcomes_of(task, [0, 0, 2], [0, 0, 2]), "compressed": outcomes_of(task, [0, 0, 2], [0, 1, 1])}
    assert confusion(outcomes, task) == {
        "dense": [[2, 0, 0], [0, 0, 0], [0, 0, 1]],
        "compressed": [[1, 1, 0], [0, 0, 0], [0, 1, 0]],
    }


@pytest.mark.parametrize(("classes", "shown"), [(20, True), (21, False)])
def test_as_many_classes_as_can_be_read(classes, shown):
    task = ClassificationTask([str(number) for number in range(classes)])
    found = confusion({"compressed": outcomes_of(task, [3], [3])}, task)
    assert (found is not None) == shown
    assert found is None or np.sum(found["compressed"]) == 1


def test_other_tasks_have_none():
    assert confusion({}, RegressionTask()) is None
