import json
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from contracts import tasks
from contracts.errors import error_of
from contracts.labels import swapped
from contracts.training import STEPS, data, differences, fit
from datasets import Dataset
from lightning.pytorch import Callback, LightningDataModule
from torch.utils.data import DataLoader
from transformers import AutoModelForSequenceClassification

from lit_compress.export import load_checkpoint
from lit_compress.models import load_model
from lit_compress.modules import (
    AttentionDistillation,
    HiddenDistillation,
    LitStudent,
    LogitDistillation,
    Optimization,
    RelationDistillation,
)
from lit_compress.modules.cached_teacher import teacher_digest
from lit_compress.nn import FrozenTeacher
from lit_compress.tasks import Batch


class Record(Callback):
    """The distillation loss of every step that logs it."""

    def __init__(self):
        self.losses = []

    def on_train_batch_end(self, run, module, outputs, batch, batch_idx):
        self.losses.append(float(run.callback_metrics["train/kd"]))


@pytest.fixture
def asked(monkeypatch):
    """How many examples a teacher was asked about."""
    counted = []
    forward = FrozenTeacher.forward

    def count(self, *args, **kwargs):
        counted.append(len(kwargs["input_ids"]))
        return forward(self, *args, **kwargs)

    monkeypatch.setattr(FrozenTeacher, "forward", count)
    return counted


@pytest.fixture
def other_teacher(tmp_path, tiny_teacher):
    model = AutoModelForSequenceClassification.from_pretrained(tiny_teacher)
    with torch.no_grad():
        model.classifier.bias.add_(1.0)
    model.save_pretrained(tmp_path / "other-teacher")
    return tmp_path / "other-teacher"


@pytest.fixture
def run(tmp_path, tiny_model, tiny_data, tiny_teacher):
    def train(name, teacher=None, cache="cache", callbacks=(), ckpt_path=None, settings=None, **options):
        torch.manual_seed(0)
        module = LitStudent(
            str(tiny_model),
            str(teacher or tiny_teacher),
            labels=["0", "1"],
            optimization=Optimization(learning_rate=1e-2),
            teacher_cache=str(tmp_path / cache) if cache else None,
            **options,
        )
        record = Record()
        datamodule = data(tiny_data, tiny_model, **settings or {})
        fit(module, datamodule, [record, *callbacks], tmp_path / name, ckpt_path=ckpt_path, log_every_n_steps=1)
        return record.losses

    return train


def stores(tmp_path):
    return sorted(path.name for path in (tmp_path / "cache").iterdir())


def test_the_teacher_is_asked_once_and_the_loss_is_the_same(run, asked, tmp_path):
    plain = run("plain", cache=None)
    assert sum(asked) == 2 * 64
    asked.clear()
    cached = run("first")
    assert sum(asked) == 64
    assert cached == pytest.approx(plain, rel=1e-4)
    asked.clear()
    assert run("second") == cached
    assert asked == []
    assert len(stores(tmp_path)) == 1


def test_half_precision_is_close_and_half_the_size(run, tmp_path):
    whole = run("whole")
    half = run("half", cache="half", teacher_cache_dtype="float16")
    assert half == pytest.approx(whole, rel=1e-2)
    sizes = [np.load(next((tmp_path / name).glob("*/logits.npy"))).nbytes for name in ("cache", "half")]
    assert sizes == [64 * 2 * 4, 64 * 2 * 2]


def test_resume_is_exact_from_the_same_cache(run, asked, tmp_path):
    run("whole")
    asked.clear()
    run("resumed", ckpt_path=tmp_path / "whole/step=3.ckpt")
    assert asked == []
    expected, got = (load_checkpoint(tmp_path / name / f"step={STEPS}.ckpt") for name in ("whole", "resumed"))
    for part in ("state_dict", "optimizer_states", "TextClassification"):
        assert differences(expected[part], got[part]) == []
    assert not [key for key in expected["state_dict"] if "teacher" in key]


def test_other_things_to_answer_make_another_store(run, asked, other_teacher, tmp_path):
    run("first")
    run("teacher", teacher=other_teacher)
    run("shorter", settings={"max_length": 6})
    run("fewer", settings={"limit": 32})
    run("half", teacher_cache_dtype="float16")
    assert sum(asked) == 64 + 64 + 64 + 32 + 64
    assert len(stores(tmp_path)) == 5
    asked.clear()
    # Another batch size pads differently and asks nothing new.
    run("again", settings={"batch_size": 32})
    assert asked == []


def test_classes_in_another_order_are_the_same_answers(run, asked, tiny_teacher, tmp_path):
    expected = run("first")
    asked.clear()
    assert run("permuted", teacher=swapped(tiny_teacher, tmp_path / "permuted")) == expected
    names = swapped(tiny_teacher, tmp_path / "renamed", ("HIGH", "LOW"))
    assert run("renamed", teacher=names, label_map={"HIGH": 1, "LOW": 0}) == expected
    assert asked == []


@pytest.mark.parametrize("harm", ["flip", "cut", "description"])
def test_a_damaged_store_is_made_again(run, asked, tmp_path, harm):
    expected = run("first")
    (file,) = (tmp_path / "cache").glob("*/" + ("about.json" if harm == "description" else "logits.npy"))
    whole = file.read_bytes()
    file.write_bytes(whole[:-9] if harm != "flip" else whole[:-1] + bytes([whole[-1] ^ 1]))
    asked.clear()
    with pytest.warns(UserWarning, match="is damaged .* it is made again"):
        assert run("second") == expected
    assert sum(asked) == 64
    assert file.read_bytes() == whole


def test_an_interrupted_pass_leaves_nothing(run, asked, tmp_path, monkeypatch):
    forward, calls = FrozenTeacher.forward, []

    def die(self, *args, **kwargs):
        calls.append(1)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return forward(self, *args, **kwargs)

    monkeypatch.setattr(FrozenTeacher, "forward", die)
    with pytest.raises((KeyboardInterrupt, SystemExit)):
        run("broken")
    assert stores(tmp_path) == []
    monkeypatch.setattr(FrozenTeacher, "forward", forward)
    run("whole")
    assert len(stores(tmp_path)) == 1


def test_what_the_logits_depend_on_is_written_beside_them(run, tmp_path, tiny_teacher):
    run("first")
    (file,) = (tmp_path / "cache").glob("*/about.json")
    about = json.loads(file.read_text())
    model = AutoModelForSequenceClassification.from_pretrained(tiny_teacher)
    assert about["names"] == ["logits"]
    assert about["precision"] == "32-true"
    assert len(about["rows"]) == len(about["teacher"]) == len(about["sha256"]) == 64
    # Labels of the data are part of a teacher's configuration, as loaded; a model of other settings is another.
    assert teacher_digest(model) == teacher_digest(model)
    before = teacher_digest(model)
    model.config.hidden_act = "relu"
    assert teacher_digest(model) != before


def test_several_teachers_have_a_store_each(tmp_path, tiny_model, tiny_teacher, other_teacher, tiny_data, asked):
    def train(name, cache):
        torch.manual_seed(0)
        module = LitStudent(
            str(tiny_model),
            teachers={"one": str(tiny_teacher), "other": str(other_teacher)},
            labels=["0", "1"],
            teacher_cache=cache and str(tmp_path / cache),
        )
        record = Record()
        fit(module, data(tiny_data, tiny_model), [record], tmp_path / name, log_every_n_steps=1)
        return record.losses

    plain = train("plain", None)
    asked.clear()
    assert train("cached", "cache") == pytest.approx(plain, rel=1e-4)
    assert sum(asked) == 2 * 64
    assert len(stores(tmp_path)) == 2


@pytest.mark.parametrize(
    "term",
    [HiddenDistillation(), AttentionDistillation(), RelationDistillation(relation_heads=2)],
    ids=lambda term: type(term).__name__,
)
def test_a_cache_has_logits_only(run, term):
    message = error_of(run, "refused", distillation={"kd": LogitDistillation(), "inside": term})
    assert message.startswith("model.teacher_cache: ")
    assert "'inside' looks inside the teacher" in message


def test_a_cache_without_a_teacher(tiny_teacher, tmp_path):
    message = error_of(LitStudent, str(tiny_teacher), labels=["0", "1"], teacher_cache=str(tmp_path))
    assert message.startswith("model.teacher_cache: there is no teacher")


def test_a_type_without_a_cache_or_unknown(tiny_teacher):
    both = {"teacher": str(tiny_teacher), "labels": ["0", "1"]}
    assert "no effect" in error_of(LitStudent, str(tiny_teacher), **both, teacher_cache_dtype="float16")
    assert "'int8'" in error_of(LitStudent, str(tiny_teacher), **both, teacher_cache_dtype="int8")


def test_a_folder_that_cannot_be_written(run, tmp_path):
    (tmp_path / "cache").write_text("a file")
    message = error_of(run, "refused")
    assert message.startswith("model.teacher_cache: ")
    assert str(tmp_path / "cache") in message
    assert os.fspath(Path(tmp_path / "cache").read_text()) == "a file"


def test_data_without_numbers(tiny_teacher, tmp_path):
    rows = [Batch({"input_ids": torch.tensor([[6, 7]])}, {"labels": torch.tensor([0])}, {})]
    module = LitStudent(str(tiny_teacher), str(tiny_teacher), labels=["0", "1"], teacher_cache=str(tmp_path / "cache"))

    class Rows(LightningDataModule):
        def train_dataloader(self):
            return DataLoader(rows, batch_size=None)

    message = error_of(fit, module, Rows(), [], tmp_path)
    assert "no `index` and `length`" in message
    assert Dataset.__name__ not in message


@pytest.fixture
def of_task(tmp_path, tiny_model):
    """Fit a student of any task with a teacher of the same, and give the distillation losses."""

    def train(task, name, cache=None, **arguments):
        datamodule = tasks.data(task, tmp_path / "files", tiny_model)
        teacher = tmp_path / f"{task}-teacher"
        if not teacher.exists():
            torch.manual_seed(5)
            model = load_model(str(tiny_model), datamodule.task, "model.teacher")
            model.save_pretrained(teacher)
        torch.manual_seed(1)
        module = LitStudent(
            str(tiny_model),
            str(teacher),
            distillation={"kd": LogitDistillation(**arguments)},
            labels=datamodule.labels,
            task=task,
            teacher_cache=cache and str(tmp_path / cache),
        )
        record = Record()
        fit(module, datamodule, [record], tmp_path / name, log_every_n_steps=1)
        return record.losses

    return train


@pytest.mark.parametrize("task", ["question_answering", "token_classification"])
def test_answers_per_token_are_cached_without_their_padding(of_task, asked, task, tmp_path):
    plain = of_task(task, "plain")
    first = of_task(task, "first", cache="cache")
    asked.clear()
    assert of_task(task, "second", cache="cache") == first
    assert asked == []
    assert first == pytest.approx(plain, rel=1e-3)
    assert "'all' includes padding" in error_of(of_task, task, "all", cache="cache", tokens="all")


def test_masked_words_are_asked_about_at_each_step(of_task):
    assert all(loss > 0 for loss in of_task("masked_lm", "plain", tokens="masked"))
    assert "masks other tokens" in error_of(of_task, "masked_lm", "refused", cache="cache")


@pytest.mark.parametrize("tokens", [None, "all", "masked"])
def test_a_pretraining_student_learns_from_its_teacher(of_task, tokens):
    assert all(loss > 0 for loss in of_task("pretraining", "run", tokens=tokens))
