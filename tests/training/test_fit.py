"""`lit_compress.fit`: the same run as the command's, from objects."""

import logging
import os
import signal

import numpy as np
import pytest
import torch
import yaml
from contracts.training import differences, student_config
from lightning.pytorch import Callback, LightningDataModule, seed_everything
from lightning.pytorch.callbacks import EarlyStopping, LearningRateMonitor, ModelCheckpoint, ProgressBar
from torch.utils.data import DataLoader
from transformers import AutoModelForSequenceClassification

from lit_compress import (
    FreezeEmbeddings,
    LitStudent,
    LogitDistillation,
    MagnitudePruning,
    Optimization,
    QuantAwareTraining,
    TextClassification,
    UserError,
    fit,
)
from lit_compress.cli import main
from lit_compress.export import load_checkpoint
from lit_compress.progress import ProgressLines
from lit_compress.strategies import CompressionMonitor

OPTIONS = {"max_epochs": 1, "accelerator": "cpu", "enable_progress_bar": False, "enable_model_summary": False}


@pytest.fixture(autouse=True)
def _nothing_of_earlier_fits(monkeypatch):
    monkeypatch.setenv("PL_GLOBAL_SEED", "42")
    monkeypatch.setattr("sys.argv", ["lit_compress"])


@pytest.fixture
def make(tiny_teacher, tiny_data):
    """Fresh objects of a run, as keyword arguments of `fit`."""

    def objects(**options):
        files = {"train_file": str(tiny_data / "train.tsv"), "val_file": str(tiny_data / "val.tsv")}
        data = TextClassification(
            **files, tokenizer=str(tiny_teacher), text_columns=["sentence"], batch_size=16, max_length=16
        )
        model = LitStudent(
            str(tiny_teacher),
            teacher=str(tiny_teacher),
            distillation={"kd": LogitDistillation(temperature=2.0)},
            labels=data.labels,
            optimization=Optimization(learning_rate=1e-3),
        )
        strategies = [MagnitudePruning(sparsity=0.75, end="50%"), QuantAwareTraining(start="50%")]
        return {"model": model, "data": data, "strategies": strategies, "trainer": OPTIONS} | options

    return objects


def test_it_is_the_run_of_the_command(make, tiny_teacher, tiny_data, tmp_path):
    seed_everything(42)
    run = fit(**make(run=tmp_path / "python"))
    config = student_config(
        tiny_teacher,
        tiny_data,
        compression=[
            {"class_path": "MagnitudePruning", "init_args": {"sparsity": 0.75, "end": "50%"}},
            {"class_path": "QuantAwareTraining", "init_args": {"start": "50%"}},
        ],
        trainer=OPTIONS,
    )
    config["model"]["init_args"] |= {
        "distillation": {"kd": {"class_path": "LogitDistillation", "init_args": {"temperature": 2.0}}},
        "optimization": {"learning_rate": 1e-3},
    }
    (tmp_path / "task.yaml").write_text(yaml.safe_dump(config))
    main(["fit", f"--config={tmp_path / 'task.yaml'}", f"--run={tmp_path / 'command'}"])
    command, python = (load_checkpoint(tmp_path / name / "checkpoints/last.ckpt") for name in ("command", "python"))
    for key in ("state_dict", "optimizer_states", "lr_schedulers", "lit_compress"):
        assert not differences(command[key], python[key])
    left = [
        [path.name.partition("tfevents")[0] for path in (tmp_path / name).iterdir()] for name in ("command", "python")
    ]
    assert sorted(left[0]) == sorted(left[1])
    assert 0 <= run.metrics["val/accuracy"] <= 1
    assert run.checkpoint.is_file()
    weight = AutoModelForSequenceClassification.from_pretrained(run.model).bert.encoder.layer[0].output.dense.weight
    assert (weight == 0).float().mean() == pytest.approx(0.75, abs=0.01)


def test_plain_values_of_python_are_kept_as_a_configuration_has_them(make, tmp_path):
    class Number(int):
        pass

    class Text(str):
        __slots__ = ()

    pruning = MagnitudePruning(sparsity=np.linspace(0, 1, 5)[2], every=Text("1 steps"))
    options = {"callbacks": [pruning, FreezeEmbeddings()], "max_epochs": Number(1), "log_every_n_steps": np.int64(2)}
    options |= {"default_root_dir": tmp_path / "root", "limit_val_batches": np.float64(1)}
    run = fit(**make(run=tmp_path / "run", strategies=[], trainer=OPTIONS | options, checkpoint_every=np.int64(2)))
    kept = yaml.safe_load((run.folder / "config.yaml").read_text())
    first, second = kept["trainer"]["callbacks"]
    assert first["init_args"] | {"sparsity": 0.5, "every": "1 steps"} == first["init_args"]
    assert second["class_path"].endswith(".FreezeEmbeddings")
    assert (kept["checkpoint_every"], kept["trainer"]["limit_val_batches"]) == (2, 1.0)
    assert kept["trainer"]["default_root_dir"] == str(tmp_path / "root")
    fit(**make(run=run.folder, strategies=[], trainer=OPTIONS | options | {"max_epochs": 2}, resume="last"))


def test_commands_know_its_run(make, tmp_path, capsys):
    run = fit(**make(run=tmp_path / "run"))
    main(["report", f"--run={run.folder}"])
    assert (run.folder / "report/report.html").is_file()
    main(["fit", f"--config={run.folder / 'config.yaml'}", "--ckpt_path=last", "--trainer.max_epochs=2"])
    assert load_checkpoint(run.checkpoint)["epoch"] == 2


class Interrupt(Callback):
    def on_train_batch_end(self, trainer, *_):
        if trainer.global_step == 2:
            os.kill(os.getpid(), signal.SIGINT)


def test_an_interrupted_run_goes_on(make, tmp_path):
    whole = fit(**make(run=tmp_path / "whole"))
    with pytest.raises(KeyboardInterrupt, match="SIGINT; resume with resume='last'"):
        fit(**make(run=tmp_path / "run", trainer=OPTIONS | {"callbacks": [Interrupt()]}))
    run = fit(**make(run=tmp_path / "run", resume="last"))
    first, second = load_checkpoint(whole.checkpoint), load_checkpoint(run.checkpoint)
    assert not differences(first["state_dict"], second["state_dict"])


def test_what_cannot_work_is_said_before_anything_is_written(make, tmp_path, tiny_teacher):
    model = LitStudent(str(tiny_teacher), labels=["1", "0"])
    with pytest.raises(
        UserError, match=r"^model\.labels: \['1', '0'\], but the data's are .* give labels=data\.labels$"
    ):
        fit(**make(model=model, run=tmp_path / "run"))
    model = LitStudent(str(tiny_teacher), task="token_classification", labels=["0", "1"])
    with pytest.raises(UserError, match=r"^model\.task: 'token_classification', but the data's is 'classification'"):
        fit(**make(model=model, run=tmp_path / "run"))
    with pytest.raises(UserError, match=r"^data: DataLoader must be a LightningDataModule"):
        fit(**make(data=DataLoader([]), run=tmp_path / "run"))
    assert not (tmp_path / "run").exists()
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/notes.txt").write_text("mine")
    with pytest.raises(UserError, match=r"^run: .* exists"):
        fit(**make(run=tmp_path / "mine"))
    assert [path.name for path in (tmp_path / "mine").iterdir()] == ["notes.txt"]


def test_a_monitor_and_a_progress_bar_of_ones_own_are_the_only_ones(make, tmp_path, capsys):
    given = [CompressionMonitor(every=3), ProgressLines(seconds=0), LearningRateMonitor("step")]
    options = OPTIONS | {"enable_progress_bar": True, "callbacks": given}
    objects = make(run=tmp_path / "run", trainer=options)
    fit(**objects)
    found = objects["model"].trainer.callbacks
    for kind in (CompressionMonitor, ProgressBar, LearningRateMonitor):
        assert [each for each in found if isinstance(each, kind)] == [each for each in given if isinstance(each, kind)]
    assert capsys.readouterr().out.count(" batch ") == 4


class Wrapped(LightningDataModule):
    """Somebody's own, which does not say how it was made."""

    def __init__(self, inner):
        super().__init__()
        self.inner = inner

    def train_dataloader(self):
        self.inner.setup("fit")
        return self.inner.train_dataloader()


def test_what_is_not_kept_is_said(make, tmp_path, caplog):
    given = make()
    given |= {"data": Wrapped(given["data"]), "trainer": OPTIONS | {"callbacks": [Callback()]}, "run": tmp_path / "run"}
    with caplog.at_level(logging.WARNING):
        fit(**given)
    assert "data: not kept in config.yaml: Wrapped does not say how it was made" in caplog.text
    assert "trainer.callbacks: not kept in config.yaml" in caplog.text
    kept = yaml.safe_load((tmp_path / "run/config.yaml").read_text())
    assert kept["data"] == {}
    assert kept["compression"][0]["init_args"]["sparsity"] == 0.75
    assert torch.load(tmp_path / "run/checkpoints/last.ckpt", weights_only=True)["global_step"] == 4


@pytest.mark.parametrize("first", [{"max_steps": 2}, {"max_steps": 6}, {"max_steps": 4}])
def test_a_run_that_ended_inside_an_epoch_goes_on_with_the_rest_of_it(first, make, tiny_teacher, tmp_path):
    def objects(name, **options):
        optimization = Optimization(learning_rate=1e-3, warmup="0%", decay="constant")
        model = LitStudent(str(tiny_teacher), labels=["0", "1"], optimization=optimization)
        resume = options.pop("resume", None)
        trainer = OPTIONS | {"max_epochs": 2} | options
        return make(model=model, strategies=[], run=tmp_path / name, trainer=trainer, resume=resume)

    whole = fit(**objects("whole"))
    fit(**objects("parts", **first))
    parts = fit(**objects("parts", resume="last"))
    expected, got = load_checkpoint(whole.checkpoint), load_checkpoint(parts.checkpoint)
    assert (got["global_step"], got["epoch"]) == (8, 2)
    assert not differences(expected["state_dict"], got["state_dict"])
    assert parts.metrics["val/loss"] == whole.metrics["val/loss"]


@pytest.mark.parametrize(
    ("callback", "options", "said"),
    [
        (EarlyStopping("val_accuracy"), {}, "EarlyStopping monitors 'val_accuracy', which nothing logs; did you mean"),
        (ModelCheckpoint(monitor="val/acuracy"), {}, "ModelCheckpoint monitors 'val/acuracy', which nothing logs"),
        (EarlyStopping("train/los"), {}, "conditioned on metric `train/los` which is not available"),
        (EarlyStopping("val/loss"), {"limit_val_batches": 0}, "'val/loss', and trainer.limit_val_batches is 0"),
        (
            EarlyStopping("val_loss"),
            {"num_sanity_val_steps": 0},
            "conditioned on metric `val_loss` which",
        ),
        (LearningRateMonitor(), {"logger": False}, "LearningRateMonitor"),
    ],
)
def test_a_monitor_that_nothing_logs_is_one_line_before_the_training_is_lost(callback, options, said, make, tmp_path):
    trainer = OPTIONS | options | {"callbacks": [callback]}
    with pytest.raises(UserError, match=r"^trainer\.callbacks: ") as caught:
        fit(**make(run=tmp_path / "run", trainer=trainer))
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "run" / "model").exists()


class Later(Callback):
    """Logs a metric of its own, and not before the training."""

    def on_validation_epoch_end(self, trainer, pl_module):
        if not trainer.sanity_checking:
            pl_module.log("val/own", 1.0)


def test_a_metric_that_somebodys_own_callback_logs_later_can_be_monitored(make, tmp_path):
    trainer = OPTIONS | {"callbacks": [Later(), EarlyStopping("val/own")]}
    assert fit(**make(run=tmp_path / "run", trainer=trainer)).metrics["val/own"] == 1.0
