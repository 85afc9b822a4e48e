import itertools
import json
import math
from importlib import import_module

import numpy as np
import pytest
import torch
from contracts import tasks
from contracts.errors import error_of
from contracts.labels import swapped
from contracts.training import STEPS, data, fit, student, trainer
from lightning.pytorch import Callback, seed_everything
from torch import nn
from transformers import AutoModelForSequenceClassification, AutoModelForTokenClassification

from lit_compress.cli import main
from lit_compress.errors import UserError
from lit_compress.export import load_checkpoint
from lit_compress.init_args import settings_of
from lit_compress.modules import Distillation, LitEncoder, LitStudent, LitTeacher, Optimization
from lit_compress.nn import compressible_layers, describe
from lit_compress.strategies import MagnitudePruning, QuantAwareTraining
from lit_compress.tasks import Batch, ClassificationTask, MultiLabelTask, QuestionAnsweringTask


class Seen(Callback):
    """The training loss of each step, and metrics as they are logged."""

    def __init__(self):
        self.losses, self.names = [], set()

    def on_train_batch_end(self, run, module, outputs, batch, batch_idx):
        self.losses.append(float(outputs["loss"]))
        self.names |= run.callback_metrics.keys()


class Ended(Callback):
    """Ends a training after its second step, as `max_time` would."""

    def on_train_batch_end(self, run, *_):
        run.should_stop = run.global_step == 2


class BrokenAt(Distillation):
    """A term that is not a number from its n-th call on."""

    def __init__(self, call):
        super().__init__()
        self.calls, self.call = 0, call

    def forward(self, student, teacher, batch):
        self.calls += 1
        return student.logits.mean() * (math.nan if self.calls > self.call else 1.0)


@pytest.fixture
def strategies():
    return lambda: [
        MagnitudePruning(sparsity=0.75, end="25%", every="1 steps"),
        QuantAwareTraining(start="50%", freeze_observers="75%"),
    ]


@pytest.fixture(scope="session")
def compressed(tmp_path_factory, tiny_teacher, tiny_data):
    """A student that was pruned and quantized, its trainer, and its last checkpoint."""
    root = tmp_path_factory.mktemp("compressed")
    module = student(tiny_teacher, tiny_teacher)
    strategies = [
        MagnitudePruning(sparsity=0.75, end="25%", every="1 steps"),
        QuantAwareTraining(start="50%", freeze_observers="75%"),
    ]
    run = fit(module, data(tiny_data, tiny_teacher), strategies, root)
    return module, run, root / f"step={STEPS}.ckpt"


def test_a_model_saves_itself_as_an_export_does(compressed, tmp_path):
    module, _, checkpoint = compressed
    before = {name: value.clone() for name, value in module.state_dict().items()}
    assert module.save(tmp_path / "saved") == tmp_path / "saved"
    main(["export", f"--checkpoint={checkpoint}", f"--output={tmp_path / 'exported'}"])
    files = [{path.name: path.read_bytes() for path in (tmp_path / name).iterdir()} for name in ("saved", "exported")]
    assert files[0].keys() == files[1].keys()
    assert [name for name, content in files[0].items() if content != files[1][name]] == []
    assert all(torch.equal(value, before[name]) for name, value in module.state_dict().items())
    with pytest.raises(UserError, match="overwrite"):
        module.save(tmp_path / "saved")
    module.save(tmp_path / "saved", overwrite=True)


def test_a_model_is_saved_before_it_is_trained(tiny_teacher, tmp_path):
    LitTeacher(str(tiny_teacher), labels=["0", "1"]).save(tmp_path / "saved")
    saved, began = (AutoModelForSequenceClassification.from_pretrained(at) for at in (tmp_path / "saved", tiny_teacher))
    assert all(torch.equal(one, other) for one, other in zip(saved.parameters(), began.parameters(), strict=True))


def test_a_saved_model_says_how_its_outputs_are_read(tiny_teacher, tmp_path):
    task = MultiLabelTask(["0", "1"], threshold=0.25)
    LitTeacher(str(tiny_teacher), task=task).save(tmp_path / "saved")
    assert (
        "To read its outputs: a label is predicted where its probability" in (tmp_path / "saved/README.md").read_text()
    )


def test_a_model_that_was_saved_too_early_says_so(tiny_teacher, tiny_data, tmp_path):
    module = student(tiny_teacher, tiny_teacher)
    late = [MagnitudePruning(sparsity=0.75, end="100%", every="1 steps")]
    fit(module, data(tiny_data, tiny_teacher), late, tmp_path / "run", callbacks=[Ended()])
    module.save(tmp_path / "saved")
    (left,) = json.loads((tmp_path / "saved" / "compression.json").read_text())["unfinished"]
    assert (left["strategy"], left["step"]) == ("MagnitudePruning", 2)
    assert "not finished: MagnitudePruning" in (tmp_path / "saved" / "README.md").read_text()


@pytest.fixture
def batch():
    ids = torch.randint(5, 40, (4, 6))
    return Batch({"input_ids": ids, "attention_mask": torch.ones_like(ids)}, {"labels": torch.tensor([0, 1, 1, 0])}, {})


def test_a_loss_that_is_not_finite_names_step_and_part_and_spares_the_checkpoint(tiny_teacher, tiny_data, tmp_path):
    module = LitStudent(
        str(tiny_teacher), teacher=str(tiny_teacher), distillation={"odd": BrokenAt(3)}, labels=["0", "1"]
    )
    with pytest.raises(UserError) as caught:
        fit(module, data(tiny_data, tiny_teacher), [], tmp_path)
    message = str(caught.value)
    assert "\n" not in message
    assert "nan at step 3 (part: odd)" in message
    checkpoints = sorted(tmp_path.glob("*.ckpt"))
    assert [path.name for path in checkpoints] == [f"step={step}.ckpt" for step in (1, 2, 3)]
    state = load_checkpoint(checkpoints[-1])["state_dict"]
    assert all(torch.isfinite(value).all() for value in state.values())
    assert all(torch.isfinite(p).all() for p in module.parameters())


def test_every_part_of_the_loss_is_logged(tiny_teacher, tiny_data, tmp_path):
    seen = Seen()
    run = fit(student(tiny_teacher, tiny_teacher), data(tiny_data, tiny_teacher), [seen], tmp_path)
    assert {name for name in seen.names if name.startswith("train/")} == {
        f"train/{part}" for part in ("loss", "task", "kd", "hidden")
    }
    assert float(run.callback_metrics["train/loss"]) == pytest.approx(seen.losses[-1])
    assert len(seen.losses) == STEPS


def test_a_teacher_trains_on_the_task(tiny_model, tiny_data, tmp_path):
    module = LitTeacher(str(tiny_model), labels=["0", "1"], optimization=Optimization(learning_rate=5e-3))
    seen = Seen()
    fit(module, data(tiny_data, tiny_model), [seen], tmp_path, max_epochs=10)
    assert sum(seen.losses[-4:]) < 0.5 * sum(seen.losses[:4])


def test_predictions_of_a_classifier_are_probabilities(tiny_teacher, batch):
    module = student(tiny_teacher).eval()
    probabilities = module.predict_step(batch, 0)
    assert probabilities.shape == (4, 2)
    assert torch.allclose(probabilities.sum(1), torch.ones(4))
    assert torch.equal(probabilities.argmax(1), module(batch).logits.argmax(1))


def test_predictions_of_a_regression_are_values(tiny_model, batch):
    module = LitEncoder(str(tiny_model)).eval()
    assert torch.equal(module.predict_step(batch, 0), module(batch).logits[:, 0])


def test_predictions_need_no_labels(tiny_teacher, batch):
    module = student(tiny_teacher).eval()
    assert torch.equal(module.predict_step(batch._replace(targets={}), 0), module.predict_step(batch, 0))


def test_a_checkpoint_alone_gives_the_module_back(compressed, batch):
    module, _, path = compressed
    again = LitStudent.load_from_checkpoint(path, weights_only=True)
    assert describe(again.student) == describe(module.student)
    assert any(
        entry["mask"] and entry["weight_quantizer"]["enabled"] for entry in describe(again.student)["linears"].values()
    )
    assert again.state_dict().keys() == module.state_dict().keys()
    with torch.no_grad():
        assert torch.equal(again.eval()(batch).logits, module.eval()(batch).logits)


def test_a_checkpoint_without_callbacks_validates_like_the_training_run(compressed, tiny_teacher, tiny_data, tmp_path):
    _, run, path = compressed
    expected = {name: float(value) for name, value in run.callback_metrics.items() if name.startswith("val/")}
    assert expected.keys() == {"val/loss", "val/accuracy", "val/f1", "val/matthews"}
    fresh = student(tiny_teacher, tiny_teacher)
    (got,) = trainer(tmp_path, []).validate(
        fresh, data(tiny_data, tiny_teacher), ckpt_path=path, verbose=False, weights_only=True
    )
    assert got == expected


def test_a_dense_checkpoint_is_no_start_for_a_compressed_run(tiny_teacher, tiny_data, tmp_path, strategies):
    fit(student(tiny_teacher), data(tiny_data, tiny_teacher), [], tmp_path / "dense")
    with pytest.raises(UserError, match=r"ckpt_path.*compression") as caught:
        fit(
            student(tiny_teacher), data(tiny_data, tiny_teacher), strategies(), tmp_path / "resumed",
            ckpt_path=tmp_path / "dense" / "step=4.ckpt",
        )  # fmt: skip
    assert "\n" not in str(caught.value)


def test_a_checkpoint_of_something_else_is_a_one_line_error(tiny_teacher, tiny_data, tmp_path):
    module = student(tiny_teacher)
    fit(module, data(tiny_data, tiny_teacher), [], tmp_path)
    path = tmp_path / "step=1.ckpt"
    checkpoint = torch.load(path, weights_only=True)
    del checkpoint["lit_compress"]
    torch.save(checkpoint, path)
    with pytest.raises(UserError) as caught:
        LitStudent.load_from_checkpoint(path, weights_only=True)
    assert "\n" not in str(caught.value)


def losses_of(tiny_teacher, tiny_data, root, seed, **kwargs):
    seen = Seen()
    module = student(tiny_teacher)
    seed_everything(seed)
    run = trainer(root, [seen], **kwargs)
    run.fit(module, data(tiny_data, tiny_teacher))
    return seen.losses


def test_losses_follow_from_seed_and_step(tiny_teacher, tiny_data, tmp_path):
    def losses(name, seed, **kwargs):
        return losses_of(tiny_teacher, tiny_data, tmp_path / name, seed, **kwargs)

    first = losses("first", 1)
    assert losses("again", 1) == first
    # Random numbers that someone else draws in between change nothing.
    assert losses("unvalidated", 1, limit_val_batches=0, num_sanity_val_steps=0) == first
    assert losses("other", 2)[0] != pytest.approx(first[0], rel=1e-4)


def test_every_seed_epoch_step_and_rank_has_its_own_dropout(tiny_teacher, tmp_path, monkeypatch):
    module = student(tiny_teacher)
    module.trainer = trainer(tmp_path, [])
    positions = list(itertools.product((3, 4), (0, 1), (0, 1), (0, 1)))
    values = []
    for seed, epoch, step, rank in positions * 2:
        seed_everything(seed)
        monkeypatch.setattr(type(module), "global_rank", rank)
        monkeypatch.setattr(type(module.trainer), "current_epoch", epoch)
        module.on_train_batch_start(None, step)
        values.append(torch.rand(1).item())
    assert values[: len(positions)] == values[len(positions) :]
    assert len(set(values)) == len(positions)


def test_gradients_of_pruned_weights_are_zero(tiny_teacher, tiny_data, tmp_path):
    class Gradients(Callback):
        def on_before_optimizer_step(self, run, module, optimizer):
            self.pruned = [layer.weight.grad[~layer.weight_mask] for _, layer in compressible_layers(module.student)]
            self.kept = [layer.weight.grad[layer.weight_mask] for _, layer in compressible_layers(module.student)]

    gradients = Gradients()
    one_shot = MagnitudePruning(sparsity=0.5, schedule="constant", end="0%")
    fit(student(tiny_teacher), data(tiny_data, tiny_teacher), [one_shot, gradients], tmp_path, max_steps=2)
    assert all(len(part) and not part.any() for part in gradients.pruned)
    assert all(part.any() for part in gradients.kept)


@pytest.mark.parametrize("precision", ["bf16-mixed", "bf16-true"])
def test_half_precision_trains(precision, tiny_teacher, tiny_data, tmp_path, strategies):
    module = student(tiny_teacher, tiny_teacher)
    before = {name: tensor.clone() for name, tensor in module.student.named_parameters()}
    run = fit(module, data(tiny_data, tiny_teacher), strategies(), tmp_path, precision=precision)
    assert run.global_step == STEPS
    assert all(torch.isfinite(p).all() for p in module.parameters())
    moved = [not torch.equal(before[name].to(p.dtype), p) for name, p in module.student.named_parameters()]
    assert sum(moved) / len(moved) > 0.5
    for _, layer in compressible_layers(module.student):
        assert int((~layer.weight_mask).sum()) == round(0.75 * layer.weight.numel())
        assert not layer.effective_weight()[~layer.weight_mask].any()


def test_hyperparameters_are_plain_and_complete(tiny_teacher):
    module = student(tiny_teacher, tiny_teacher)
    expected = {"pretrained": str(tiny_teacher), "teacher": str(tiny_teacher), "labels": ["0", "1"]}
    assert expected.items() <= dict(module.hparams).items()
    assert json.loads(json.dumps(dict(module.hparams))) == dict(module.hparams)


def test_a_module_is_in_training_mode_from_the_start(tiny_teacher):
    module = student(tiny_teacher, tiny_teacher)
    assert all(child.training for child in module.student.modules() if isinstance(child, nn.Dropout))


def own_module(name, text, folder, monkeypatch):
    (folder / f"{name}.py").write_text(text)
    monkeypatch.syspath_prepend(folder)
    return import_module(name)


TASK = """
from lit_compress.tasks import ClassificationTask

class Weighted(ClassificationTask):
    name = "weighted"

    def __init__(self, labels, weight=1.0, inner=None):
        super().__init__(labels)
        self.weight, self.inner = weight, inner
"""


def made_tasks(own):
    return {
        "threshold": MultiLabelTask(["0", "1"], threshold=np.float64(0.3)),
        "no_answer": QuestionAnsweringTask(no_answer=True),
        "own": own.Weighted(["0", "1"], weight=2.0),
    }


@pytest.mark.parametrize("name", ["threshold", "no_answer", "own"])
def test_a_task_has_its_settings_again_from_a_checkpoint(name, tiny_model, tmp_path, monkeypatch):
    task = made_tasks(own_module("my_weighted", TASK, tmp_path, monkeypatch))[name]
    module = LitTeacher(str(tiny_model), task=task)
    run = trainer(tmp_path, [])
    module.trainer = run
    run.strategy.connect(module)
    run.save_checkpoint(tmp_path / "a.ckpt")
    again = LitTeacher.load_from_checkpoint(tmp_path / "a.ckpt", weights_only=True)
    assert type(again.task) is type(task)
    assert settings_of(again.task) == settings_of(task)
    # And from those of the one that was loaded.
    assert settings_of(LitTeacher(**again.hparams).task) == settings_of(task)


def test_a_task_that_does_not_say_how_it_was_made_is_given_again(tiny_model, tmp_path, monkeypatch):
    own = own_module("my_opaque", TASK, tmp_path, monkeypatch)
    task = own.Weighted(["0", "1"], inner=torch.ones(2))
    module = LitTeacher(str(tiny_model), task=task)
    message = error_of(LitTeacher, **module.hparams)
    assert message.startswith("model.task: 'my_opaque.Weighted' ")
    assert LitTeacher(**{**module.hparams, "task": task}).task is task


def test_settings_of_no_task(tiny_model):
    settings = {"class_path": "my_missing.Task", "init_args": {}}
    assert error_of(LitTeacher, str(tiny_model), task=settings).startswith("model.task: 'my_missing.Task' ")


def test_a_label_map_is_for_the_classes_of_a_task(tiny_teacher, tmp_path):
    renamed = swapped(tiny_teacher, tmp_path / "renamed", ("HIGH", "LOW"))
    names = {"HIGH": "1", "LOW": "0"}
    module = LitTeacher(str(renamed), task=ClassificationTask(["0", "1"]), label_map=names)
    assert module.student.config.id2label == {0: "0", 1: "1"}
    message = error_of(LitTeacher, str(tiny_teacher), task="masked_lm", labels=["0", "1"], label_map=names)
    assert message == "model.label_map: the task has no classes; leave it out"


@pytest.mark.parametrize("task", ["classification", "masked_lm", "question_answering", "token_classification"])
def test_a_longest_input_beyond_the_positions_is_refused_before_training(
    task, tmp_path, tiny_model, tiny_data, short_teacher
):
    if task == "classification":
        datamodule = data(tiny_data, tiny_model, max_length=24)
    else:
        datamodule = tasks.data(task, tmp_path, tiny_model, max_length=24)
    module = LitEncoder(str(short_teacher), labels=datamodule.labels, task=task)
    message = error_of(trainer(tmp_path, []).fit, module, datamodule)
    assert message == f"data.max_length: 24 is above 12, the longest input of model.pretrained {str(short_teacher)!r}"


def test_a_longest_input_beyond_the_positions_of_the_teacher(tmp_path, tiny_model, tiny_data, short_teacher):
    module = LitStudent(str(tiny_model), str(short_teacher), labels=["0", "1"])
    message = error_of(trainer(tmp_path, []).fit, module, data(tiny_data, tiny_model))
    assert message == f"data.max_length: 16 is above 12, the longest input of model.teacher {str(short_teacher)!r}"


def test_a_module_alone_has_the_task_and_labels_of_its_model(tiny_teacher, tiny_model, tmp_path):
    names = {0: "bad", 1: "good"}
    AutoModelForSequenceClassification.from_pretrained(tiny_teacher, id2label=names).save_pretrained(tmp_path / "named")
    AutoModelForTokenClassification.from_pretrained(tiny_model, id2label={0: "O", 1: "B"}).save_pretrained(
        tmp_path / "t"
    )
    named, tags = LitStudent(str(tmp_path / "named")), LitTeacher(str(tmp_path / "t"))
    assert (named.task.name, named.labels, named.hparams["labels"]) == (
        "classification",
        ["bad", "good"],
        ["bad", "good"],
    )
    assert (tags.task.name, tags.labels) == ("token_classification", ["O", "B"])
    assert LitTeacher(str(tiny_model)).task.name == "regression"
