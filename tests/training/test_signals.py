"""A fit that is told to stop, for real: in training, in validation, before the first step, and twice."""

import multiprocessing
import os
import signal
import sys
import time

import pytest
import yaml
from contracts.training import differences, student_config
from processes import Python, run_python

from lit_compress.cli import main
from lit_compress.export import load_checkpoint
from lit_compress.training.signals import StopOnSignal

# Sends signals to its own process in a hook, at a batch of the run.
SENDER = """
import os
import signal
import time
from lightning.pytorch import Callback


class Send(Callback):
    def __init__(self, name: str, batch: int, hook: str = "on_train_batch_start", times: int = 1, pause: float = 0.0):
        self.signum, self.batch, self.times, self.pause = signal.Signals[name], batch, times, pause
        setattr(self, hook, self.send)

    def send(self, trainer, *_):
        if trainer.fit_loop.total_batch_idx == self.batch and not trainer.sanity_checking:
            for _ in range(self.times):
                os.kill(os.getpid(), self.signum)
                time.sleep(self.pause)

    def setup(self, trainer, module, stage):
        if self.batch < 0:
            os.kill(os.getpid(), self.signum)
"""
PARTS = ("state_dict", "optimizer_states", "lr_schedulers", "global_step")


@pytest.fixture(scope="session")
def command(tmp_path_factory, tiny_teacher, tiny_data):
    """A fit whose steps are two batches, with validations in the middle of some."""
    folder = tmp_path_factory.mktemp("stopping")
    config = student_config(tiny_teacher, tiny_data)
    config["data"]["init_args"]["batch_size"] = 8
    config["trainer"] |= {"accumulate_grad_batches": 2, "val_check_interval": 3, "enable_model_summary": False}
    (folder / "task.yaml").write_text(yaml.safe_dump(config))
    return ["fit", f"--config={folder / 'task.yaml'}", "--run=run"]


@pytest.fixture(scope="session")
def whole(tmp_path_factory, command):
    """The last checkpoint of the fit that nobody stops."""
    run = tmp_path_factory.mktemp("whole") / "run"
    main([*command, f"--run={run}"])
    return load_checkpoint(run / "checkpoints" / "last.ckpt")


def stopped(command, folder, environment=None, **options):
    (folder / "sending.py").write_text(SENDER)
    sender = [f"--trainer.callbacks.{name}={value}" for name, value in options.items()]
    arguments = ["-m", "lit_compress", *command, "--trainer.callbacks+=sending.Send", *sender]
    return run_python(arguments, cwd=folder, env=os.environ | (environment or {}), timeout=120)


@pytest.mark.parametrize(
    ("name", "batch", "hook", "status", "step", "validations"),
    [
        ("SIGTERM", 4, "on_train_batch_start", 143, 2, 3),  # the first of two batches
        ("SIGINT", 9, "on_train_batch_start", 130, 5, 2),
        ("SIGTERM", 2, "on_validation_batch_start", 143, 1, 4),
        ("SIGINT", 5, "on_train_batch_start", 130, 3, 3),  # a validation is due after it
        ("SIGTERM", 15, "on_train_epoch_end", 143, 8, 0),  # no batch comes any more
    ],
)
def test_it_saves_says_how_to_go_on_and_loses_nothing(
    name, batch, hook, status, step, validations, command, whole, tmp_path, monkeypatch, capsys
):
    # Twice at once: as a process of a group that was told, and from what started it.
    done = stopped(command, tmp_path, name=name, batch=batch, hook=hook, times=2)
    assert done.returncode == status, done.stderr[-2000:]
    assert "Traceback" not in done.stderr
    *_, said, again = done.stderr.strip().splitlines()
    assert f"stopped by {name} at step {step}, which is saved" in said
    assert (again.split()[:2], again.split()[-2:]) == (["lit_compress", "fit"], ["--ckpt_path", "last"])
    assert load_checkpoint(tmp_path / "run/checkpoints/last.ckpt")["global_step"] == step
    assert not (tmp_path / "run/model").exists()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.path", [str(tmp_path), *sys.path])
    capsys.readouterr()
    words = again.split()[1:]
    main([word for word in words if not word.startswith("--trainer.callbacks")])
    resumed = load_checkpoint("run/checkpoints/last.ckpt")
    assert (tmp_path / "run/model/config.json").is_file()
    assert [d for part in PARTS for d in differences(whole[part], resumed[part])] == []
    # A validation that was cut off, or due, is made again as a whole.
    assert capsys.readouterr().out.count("  validated  ") == validations


def test_before_the_first_step_there_is_nothing_to_save(command, tmp_path):
    done = stopped(command, tmp_path, name="SIGTERM", batch=-1)
    assert (done.returncode, (tmp_path / "run").exists()) == (143, False)
    assert "the same command starts over" in done.stderr.strip().splitlines()[-1]


def test_a_second_signal_ends_at_once(command, tmp_path):
    done = stopped(command, tmp_path, name="SIGTERM", batch=4, times=2, pause=0.6)
    assert done.returncode == -signal.SIGTERM
    assert not (tmp_path / "run/checkpoints/last.ckpt").exists()


def test_a_forked_process_ends_at_a_signal_that_is_for_it_alone(tmp_path):
    with StopOnSignal(tmp_path / "last.ckpt"):
        child = multiprocessing.get_context("fork").Process(target=time.sleep, args=(60,))
        child.start()
        os.kill(child.pid, signal.SIGINT)  # a terminal sends it to every process
        child.join(0.5)
        assert child.is_alive()
        child.terminate()
        child.join(20)
        assert child.exitcode == -signal.SIGTERM


def test_a_signal_to_all_processes_of_a_job_ends_no_worker_before_its_fit_has_saved(command, tmp_path):
    (tmp_path / "waiting.py").write_text(
        "import pathlib, time\nfrom lightning.pytorch import Callback\n\n\nclass Wait(Callback):\n"
        "    def on_train_batch_start(self, trainer, *_):\n        if trainer.fit_loop.total_batch_idx == 4:\n"
        "            pathlib.Path('waits').touch()\n            end = time.monotonic() + 2\n"
        "            while time.monotonic() < end:\n                time.sleep(0.01)\n"
    )
    options = ["--data.num_workers=1", "--data.batch_size=1", "--trainer.callbacks+=waiting.Wait"]
    with (tmp_path / "errors").open("w+") as errors:
        arguments = ["-m", "lit_compress", *command, *options]
        job = Python(arguments, cwd=tmp_path, errors=errors, start_new_session=True)
        while not (tmp_path / "waits").exists() and job.poll() is None:
            time.sleep(0.05)
        os.killpg(job.pid, signal.SIGTERM)
        assert job.wait(120) == 143, (tmp_path / "errors").read_text()[-2000:]
    assert "at step 2, which is saved" in (tmp_path / "errors").read_text()


def test_slurm_requeues_and_goes_on_by_itself(command, whole, tmp_path):
    (tmp_path / "scontrol").write_text('#!/bin/sh\necho "$@" > requeued\n')
    (tmp_path / "scontrol").chmod(0o755)
    slurm = {"SLURM_JOB_ID": "17", "SLURM_JOB_NAME": "fit", "SLURM_NTASKS": "1", "SLURM_PROCID": "0"}
    slurm |= {"SLURM_LOCALID": "0", "SLURM_NODEID": "0", "PATH": f"{tmp_path}:{os.environ['PATH']}"}
    done = stopped(command, tmp_path, slurm, name="SIGUSR1", batch=4)
    assert "at step 2, which is saved" in done.stderr, done.stderr[-2000:]
    assert (tmp_path / "requeued").read_text() == "requeue 17\n"
    assert not list((tmp_path / "run").glob("hpc_ckpt*"))
    done = stopped(command, tmp_path, slurm | {"SLURM_RESTART_COUNT": "1"}, name="SIGUSR1", batch=99)
    assert done.returncode == 0, done.stderr[-2000:]
    resumed = load_checkpoint(tmp_path / "run/checkpoints/last.ckpt")
    assert [d for part in PARTS for d in differences(whole[part], resumed[part])] == []
