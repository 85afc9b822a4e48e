"""Options of Lightning's: they work, or one line says why not, before anything is written or started."""

import csv
import json
import re

import pytest
import yaml
from contracts.errors import error_of
from contracts.training import data, student, student_config
from lightning.pytorch import Callback
from safetensors.torch import load_file
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from lit_compress import MagnitudePruning, fit
from lit_compress.cli import main
from lit_compress.export import load_checkpoint


@pytest.fixture(scope="session")
def task(tmp_path_factory, tiny_teacher, tiny_data):
    path = tmp_path_factory.mktemp("lightning") / "task.yaml"
    path.write_text(yaml.safe_dump(student_config(tiny_teacher, tiny_data)))
    return path


@pytest.fixture
def refusal(task, tmp_path):
    """The line with which a fit refuses options; there is no run folder then."""

    def line(*options):
        with pytest.raises(SystemExit) as caught:
            main(["fit", f"--config={task}", f"--run={tmp_path / 'refused'}", *options])
        assert not (tmp_path / "refused").exists()
        said = str(caught.value.code)
        assert "\n" not in said
        return said.removeprefix("lit_compress: error: ")

    return line


@pytest.fixture(scope="session")
def two_epochs(task, tmp_path_factory):
    run = tmp_path_factory.mktemp("two-epochs") / "run"
    main(["fit", f"--config={task}", f"--run={run}"])
    return run


REFUSED = {
    "--checkpoint_every=-1": "checkpoint_every: -1 must be 1 or more steps, or 0 for the end alone",
    "--seed_everything=-1": "seed_everything: -1 must be from 0 to 4294967295",
    "--seed_everything=4294967296": "seed_everything: 4294967296 must be from 0 to 4294967295",
    "--ckpt_path=best": "ckpt_path: 'best' is known to the process that trained alone; give 'last', or",
    "--ckpt_path=hpc": "checkpoint: 'hpc' does not exist",
    "--trainer.accumulate_grad_batches=0": "trainer.accumulate_grad_batches: 0 must be 1 or more",
    "--trainer.accelerator=tpu": "trainer.accelerator: 'tpu' is not on this machine; give one of auto, cpu",
    "--trainer.accelerator=abacus": "trainer.accelerator: 'abacus' is not on this machine; give one of auto, cpu",
    "--trainer.devices=999": "trainer.devices: 999 processes are more than this machine's CPU is for",
    "--trainer.devices=-1": "trainer: `devices` selected with `CPUAccelerator` should be an int > 0",
    "--trainer.limit_train_batches=0": "trainer.limit_train_batches: 0 leaves nothing to train on",
    "--trainer.limit_train_batches=0.01": "trainer.limit_train_batches: You requested to check 0.01 of the",
    "--trainer.limit_val_batches=0.01": "trainer.limit_val_batches: You requested to check 0.01 of the",
    "--trainer.max_epochs=-2": "trainer: `max_epochs` must be a non-negative integer or -1",
    "--trainer.limit_train_batches=2.5": "trainer: You have passed invalid value 2.5 for limit_train_batches",
    "--trainer.val_check_interval=99": "trainer.val_check_interval: `val_check_interval` (99) must be less than",
    "--trainer.strategy=nonsense": "trainer: You selected an invalid strategy name: `strategy='nonsense'`",
    "--trainer.max_time=soon": "trainer: `Timer(duration='soon')` is not a valid duration",
}


@pytest.mark.parametrize(("option", "line"), REFUSED.items(), ids=REFUSED)
def test_what_cannot_work_is_one_line(option, line, refusal):
    assert refusal(option).startswith(line)


@pytest.mark.parametrize("accelerator", ["gpu", "cuda", "mps"])
def test_an_accelerator_that_is_not_there_is_one_line(accelerator, refusal, monkeypatch):
    for kind in ("cuda.CUDAAccelerator", "mps.MPSAccelerator"):
        monkeypatch.setattr(f"lightning.pytorch.accelerators.{kind}.is_available", lambda: False)
    said = refusal(f"--trainer.accelerator={accelerator}")
    assert said == f"trainer.accelerator: '{accelerator}' is not on this machine; give one of auto, cpu"


LOGGERS = {
    "WandbLogger": ("wandb", "wandb"),
    "MLFlowLogger": ("mlflow", "mlflow"),
    "CometLogger": ("comet", "comet-ml"),
}


@pytest.mark.parametrize(("name", "of"), LOGGERS.items(), ids=LOGGERS)
def test_a_logger_without_its_package_names_it(name, of, refusal, monkeypatch):
    module, package = of
    missing = {"wandb": "_WANDB_AVAILABLE", "mlflow": "_MLFLOW_AVAILABLE", "comet": "_COMET_AVAILABLE"}[module]

    class Missing:
        def __bool__(self):
            return False

        def __str__(self):
            return f"Requirement '{package}>=1.0' not met. HINT: Try running `pip install -U '{package}>=1.0'`"

    monkeypatch.setattr(f"lightning.pytorch.loggers.{module}.{missing}", Missing())
    said = refusal(f"--trainer.logger={name}")
    assert said == f"trainer.logger: {name} needs '{package}', which is not installed; pip install {package}"
    pair = [{"class_path": "CSVLogger", "init_args": {"save_dir": "."}}, {"class_path": name}]
    assert refusal(f"--trainer.logger={json.dumps(pair)}") == said


def test_what_a_callback_refuses_is_one_line(refusal):
    early = ["--trainer.callbacks+=EarlyStopping", "--trainer.callbacks.monitor=val/loss"]
    said = refusal(*early, "--trainer.callbacks.mode=sideways")
    assert said == "trainer.callbacks: EarlyStopping: `mode` can be min, max, got sideways"


@pytest.mark.parametrize("limit", ["--trainer.max_epochs=1", "--trainer.max_steps=3"])
def test_a_run_cannot_end_before_its_checkpoint(limit, two_epochs, tmp_path):
    before = (two_epochs / "config.yaml").read_bytes()
    for checkpoint in ("last", two_epochs / "checkpoints/last.ckpt"):
        with pytest.raises(SystemExit) as caught:
            main(["fit", f"--config={two_epochs / 'config.yaml'}", f"--ckpt_path={checkpoint}", limit])
        key, value = limit.removeprefix("--").split("=")
        reached = {"1": 2, "3": 8}[value]
        assert str(caught.value.code) == (
            f"lit_compress: error: {key}: {value} is below {reached}, where the checkpoint is; give {reached} or more, "
            "or begin a new --run"
        )
    assert (two_epochs / "config.yaml").read_bytes() == before
    assert load_checkpoint(two_epochs / "checkpoints/last.ckpt")["epoch"] == 2


def test_python_is_told_the_same(tiny_model, tiny_teacher, tiny_data, tmp_path):
    made = {"model": student(tiny_teacher), "data": data(tiny_data, tiny_model), "run": tmp_path / "run"}
    said = error_of(fit, **made, seed=-1)
    assert said == "seed_everything: -1 must be from 0 to 4294967295"
    said = error_of(fit, **made, trainer={"accumulate_grad_batches": 0})
    assert said == "trainer.accumulate_grad_batches: 0 must be 1 or more"
    assert not (tmp_path / "run").exists()


class Seen(Callback):
    """Texts of every batch, by epoch."""

    def __init__(self):
        self.train, self.val = {}, {}

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        self.train.setdefault(trainer.current_epoch, []).append(batch.inputs["input_ids"].tolist())

    def on_validation_batch_start(self, trainer, pl_module, batch, batch_idx, dataloader_idx=0):
        if not trainer.sanity_checking:
            self.val.setdefault(trainer.current_epoch, []).append(batch.inputs["input_ids"].tolist())


@pytest.mark.parametrize(("given", "batches"), [(2, 2), (0.5, 2)])
def test_overfitting_sees_the_same_few_batches_in_every_epoch(
    given, batches, tiny_model, tiny_teacher, tiny_data, tmp_path
):
    seen = Seen()
    options = {"overfit_batches": given, "max_epochs": 3, "accelerator": "cpu", "callbacks": [seen]}
    made = {"model": student(tiny_teacher), "data": data(tiny_data, tiny_model, eval_batch_size=4)}
    fit(**made, run=tmp_path / "run", trainer=options, strategies=[MagnitudePruning(sparsity=0.5, end="50%")])
    for epochs in (seen.train, seen.val):
        assert len(epochs) == 3
        assert [len(held) for held in epochs.values()] == [batches] * 3
        assert epochs[0] == epochs[1] == epochs[2]
    assert {len(held) for held in seen.train[0]} == {16}


def test_overfitting_goes_on_after_a_resume(task, tmp_path):
    options = [f"--run={tmp_path / 'run'}", "--trainer.overfit_batches=1"]
    main(["fit", f"--config={task}", *options, "--trainer.max_epochs=1"])
    main(["fit", f"--config={tmp_path / 'run/config.yaml'}", "--ckpt_path=last", "--trainer.max_epochs=2"])
    assert load_checkpoint(tmp_path / "run/checkpoints/last.ckpt")["global_step"] == 2


CALLBACKS = {
    "StochasticWeightAveraging": ["--trainer.callbacks.swa_lrs=0.001"],
    "LearningRateFinder": ["--trainer.callbacks.update_attr=false"],
    "BatchSizeFinder": [],
    "BackboneFinetuning": [],
    "GradientAccumulationScheduler": ["--trainer.callbacks.scheduling={0: 1, 1: 2}"],
    "EMAWeightAveraging": ["--compression+=MagnitudePruning", "--compression.sparsity=0.5"],
    "WeightAveraging": ["--compression+=QuantAwareTraining"],
}


@pytest.mark.parametrize(("name", "options"), CALLBACKS.items(), ids=CALLBACKS)
def test_a_callback_with_which_a_training_would_go_wrong_is_one_line(name, options, refusal):
    said = refusal(f"--trainer.callbacks+={name}", *options)
    assert said.startswith(f"trainer.callbacks: {name} ")
    assert " give " in said or "leave it out" in said


def test_an_average_of_weights_without_compression(two_epochs, task, tiny_teacher, tmp_path):
    run = tmp_path / "run"
    average = ["--trainer.callbacks+=EMAWeightAveraging", "--trainer.callbacks.decay=0.5"]
    main(["fit", f"--config={task}", f"--run={run}", *average, "--compression+=FreezeEmbeddings"])
    weights = [
        load_file(folder / "model.safetensors") for folder in (tiny_teacher, two_epochs / "model", run / "model")
    ]
    name = "bert.encoder.layer.0.output.dense.weight"
    before, plain, averaged = (each[name] for each in weights)
    assert 0 < (averaged - before).norm() < (plain - before).norm()
    main(["fit", f"--config={run / 'config.yaml'}", "--ckpt_path=last", "--trainer.max_epochs=3"])
    assert load_checkpoint(run / "checkpoints/last.ckpt")["epoch"] == 3


def test_the_best_checkpoint_has_a_name_without_folders(task, tmp_path):
    best = ["monitor=val/accuracy", "mode=max", "filename={epoch}-{val/accuracy:.2f}", "auto_insert_metric_name=false"]
    options = [f"--trainer.callbacks.{option}" for option in best]
    main(["fit", f"--config={task}", f"--run={tmp_path / 'run'}", "--trainer.callbacks+=ModelCheckpoint", *options])
    folder = tmp_path / "run/checkpoints"
    names = sorted(str(path.relative_to(folder)) for path in folder.rglob("*.ckpt"))
    assert len(names) == 2
    assert names[-1] == "last.ckpt"
    assert re.fullmatch(r"[01]-0\.\d\d\.ckpt", names[0])
    main(["validate", f"--config={tmp_path / 'run/config.yaml'}", f"--ckpt_path={folder / names[0]}"])


WORK = {
    "time limit": ["--trainer.max_time=00:01:00:00"],
    "another logger": ["--trainer.logger=CSVLogger", "--trainer.logger.save_dir={run}/csv"],
    "two loggers": [
        "--trainer.logger+=TensorBoardLogger",
        "--trainer.logger.save_dir={run}",
        "--trainer.logger+=CSVLogger",
        "--trainer.logger.save_dir={run}/csv",
    ],
    "devices monitored": ["--trainer.callbacks+=DeviceStatsMonitor"],
    "profiler": ["--trainer.profiler=simple"],
    "deterministic": ["--trainer.deterministic=true"],
    "half precision": ["--trainer.precision=bf16-mixed"],
    "anomalies": ["--trainer.detect_anomaly=true"],
    "fewer batches": ["--trainer.limit_train_batches=2", "--trainer.limit_val_batches=1.0"],
    "no validation": ["--trainer.limit_val_batches=0"],
    "a random seed": ["--seed_everything=true"],
}


@pytest.mark.parametrize("options", WORK.values(), ids=WORK)
def test_what_works_can_be_resumed_from_its_configuration(options, task, tmp_path):
    run = tmp_path / "run"
    main(["fit", f"--config={task}", f"--run={run}", "--trainer.max_epochs=1", *(o.format(run=run) for o in options)])
    main(["fit", f"--config={run / 'config.yaml'}", "--ckpt_path=last", "--trainer.max_epochs=2"])
    assert load_checkpoint(run / "checkpoints/last.ckpt")["epoch"] == 2
    assert (run / "model/model.safetensors").is_file()


def test_two_loggers_are_told_the_same(task, tmp_path):
    run = tmp_path / "run"
    loggers = [
        {"class_path": "TensorBoardLogger", "init_args": {"save_dir": str(run)}},
        {"class_path": "CSVLogger", "init_args": {"save_dir": str(run / "csv")}},
    ]
    main(
        ["fit", f"--config={task}", f"--run={run}", f"--trainer.logger={json.dumps(loggers)}", "--trainer.max_epochs=2"]
    )
    (table,) = run.glob("csv/**/metrics.csv")
    with table.open() as file:
        rows = [*csv.DictReader(file)]
    events = EventAccumulator(str(next(run.rglob("events.out.tfevents*")).parent))
    events.Reload()
    for name in ("val/accuracy", "val/loss"):
        written = {int(row["step"]): float(row[name]) for row in rows if row[name]}
        assert len(written) == 2
        # TensorBoard has the last ones once more, with the hyper-parameters.
        assert written == pytest.approx(
            {event.step: event.value for event in events.Scalars(name) if event.step in written}
        )
