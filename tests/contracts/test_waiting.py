"""No step of a training waits for the device, unless it logs or changes masks."""

import pytest
import torch
from contracts import tasks
from contracts.table import ROWS, TERMS, build, module_options
from contracts.training import data, fit, student
from contracts.waits import Waits
from lightning.pytorch import Callback

from lit_compress.modules import LitStudent, LogitDistillation
from lit_compress.tasks import ClassificationTask, MultiLabelTask

OPTIONS = {"log_every_n_steps": 3, "max_epochs": 3, "each_step": False}
# The first of 12 steps, every third, and the last batch of each epoch, which people look at.
LOGGED = (0, 2, 3, 5, 7, 8, 11)


@pytest.fixture
def waits(monkeypatch):
    return Waits(monkeypatch)


def assert_nothing_waited(waits, logged=LOGGED):
    ordinary = waits.ordinary(logged)
    assert {batch: waits.found[batch] for batch in ordinary if waits.found[batch]} == {}
    assert len(ordinary) > 1


@pytest.mark.parametrize(
    "wait",
    [
        lambda loss: loss.item(),
        lambda loss: float(loss * 2),
        lambda loss: loss.new_tensor([1.0]),
        lambda loss: torch.ones(4, device=loss.device)[torch.ones(4, device=loss.device) > loss],
        lambda loss: torch.stack([loss, loss]).nonzero(),
    ],
    ids=["item", "float", "upload", "index by a mask", "nonzero"],
)
def test_what_waits_is_found(wait, waits, tiny_teacher, tiny_data, tmp_path):
    class Waiting(Callback):
        def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx):
            wait(outputs["loss"])

    fit(student(tiny_teacher), data(tiny_data, tiny_teacher), [waits, Waiting()], tmp_path, **OPTIONS)
    assert all("test_waiting.py" in waits.found[batch][0] for batch in waits.ordinary(LOGGED))


# Whose quantizers are among those of qat-everything.
PARTS = {"qat", "qat-weights-only", "qat-embeddings", "qat-attention"}


@pytest.mark.parametrize("case", [case for case in ROWS if case not in PARTS])
def test_a_step_with_a_strategy_waits_for_nothing(case, waits, sparse_model, tiny_data, tmp_path):
    module = student(sparse_model, sparse_model, **module_options(case))
    fit(module, data(tiny_data, sparse_model), [waits, build(case)], tmp_path, **OPTIONS)
    assert_nothing_waited(waits)


# Those of vectors have data of their own; the next test has them.
@pytest.mark.parametrize("case", [case for case in TERMS if case != "embeddings"])
def test_a_step_with_a_teacher_waits_for_nothing(case, waits, tiny_teacher, wide_teacher, tiny_data, tmp_path):
    module = LitStudent(str(tiny_teacher), str(wide_teacher), distillation=TERMS[case](), labels=["0", "1"])
    strategies = [build("magnitude"), build("qat-everything")]
    fit(module, data(tiny_data, tiny_teacher), [waits, *strategies], tmp_path, **OPTIONS)
    assert_nothing_waited(waits)


@pytest.mark.parametrize("task", tasks.TASKS)
def test_a_step_of_a_task_waits_for_nothing(task, waits, tiny_model, tmp_path):
    datamodule = tasks.data(task, tmp_path / "files", tiny_model)
    teacher = tasks.student(task, tiny_model, datamodule).save(tmp_path / "teacher")
    fit(tasks.student(task, tiny_model, datamodule, teacher), datamodule, [waits], tmp_path, **OPTIONS)
    assert_nothing_waited(waits, logged=(0, *range(2, 100, 3), *_last_batches(datamodule)))


def _last_batches(datamodule):
    batches = len(datamodule.train_dataloader())
    return range(batches - 1, 3 * batches, batches)


def test_a_teacher_of_masked_words_is_not_waited_for(waits, tiny_model, tmp_path):
    datamodule = tasks.data("masked_lm", tmp_path / "files", tiny_model)
    teacher = tasks.student("masked_lm", tiny_model, datamodule).save(tmp_path / "teacher")
    terms = {"kd": LogitDistillation(tokens="masked")}
    module = LitStudent(str(tiny_model), str(teacher), distillation=terms, task=datamodule.task)
    fit(module, datamodule, [waits], tmp_path, **OPTIONS)
    assert_nothing_waited(waits, logged=(0, *range(2, 100, 3), *_last_batches(datamodule)))


@pytest.mark.parametrize("task", [ClassificationTask, MultiLabelTask])
def test_class_weights_are_on_the_device_once(task, waits, tiny_model, tiny_data, tmp_path):
    if task is MultiLabelTask:
        datamodule = tasks.data("multi_label_classification", tmp_path / "files", tiny_model)
    else:
        datamodule = data(tiny_data, tiny_model)
    module = LitStudent(str(tiny_model), task=task(datamodule.labels, class_weights=[1.0, 3.0]))
    fit(module, datamodule, [waits], tmp_path, **OPTIONS)
    assert_nothing_waited(waits, logged=(0, *range(2, 100, 3), *_last_batches(datamodule)))


def test_a_cached_teacher_is_read_before_the_batch_is_on_the_device(waits, tiny_teacher, tiny_data, tmp_path):
    module = student(tiny_teacher)
    module = LitStudent(str(tiny_teacher), str(tiny_teacher), labels=["0", "1"], teacher_cache=str(tmp_path / "cache"))
    fit(module, data(tiny_data, tiny_teacher), [waits], tmp_path, **OPTIONS)
    assert_nothing_waited(waits)


@pytest.mark.parametrize(
    "options",
    [
        {"precision": "bf16-mixed"},
        {"precision": "bf16-true"},
        {"gradient_clip_val": 0.1, "gradient_clip_algorithm": "value"},
        {"gradient_clip_val": 0},
    ],
    ids=str,
)
def test_a_step_waits_for_nothing_whatever_the_trainer_does(options, waits, tiny_teacher, tiny_data, tmp_path):
    fit(student(tiny_teacher, tiny_teacher), data(tiny_data, tiny_teacher), [waits], tmp_path, **OPTIONS | options)
    assert_nothing_waited(waits)


def test_an_accumulated_gradient_waits_for_nothing(waits, tiny_teacher, tiny_data, tmp_path):
    datamodule = data(tiny_data, tiny_teacher, batch_size=8)
    options = OPTIONS | {"accumulate_grad_batches": 2}
    fit(student(tiny_teacher, tiny_teacher), datamodule, [waits, build("movement")], tmp_path, **options)
    assert_nothing_waited(waits, logged=[batch for step in LOGGED for batch in (2 * step, 2 * step + 1)])


def test_what_is_logged_comes_in_one_transfer(waits, tiny_teacher, tiny_data, tmp_path):
    strategies = [build("magnitude", end="10%"), build("qat")]
    fit(student(tiny_teacher, tiny_teacher), data(tiny_data, tiny_teacher), [waits, *strategies], tmp_path, **OPTIONS)
    # The masks are counted at the first measurement after their last change, the end of the first epoch.
    logged = [batch for batch in LOGGED if batch not in waits.updated and batch != 3]
    assert {len(waits.found[batch]) for batch in logged} == {1}
