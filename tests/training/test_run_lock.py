"""A run folder has one writer at a time; what an interrupted start left is in nobody's way."""

import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import yaml
from contracts.errors import error_of
from contracts.training import student_config
from filelock import SoftFileLease
from lightning.pytorch import Callback
from processes import Python

from lit_compress import LitStudent, TextClassification, fit
from lit_compress.cli import main
from lit_compress.files import atomic_folder
from lit_compress.training import run_lock as module
from lit_compress.training.checkpoints import WholeCheckpoints
from lit_compress.training.run_lock import claim, discard

HOLD = """
import sys
import time
from pathlib import Path

from lit_compress.training import run_lock as module

module._LEASE, module._SIGN = 3.0, 0.5
run = Path(sys.argv[1])
with module.claim(run, new=True):
    (run / "config.yaml").write_text("")
    Path("held").touch()
    while not Path("enough").exists():
        time.sleep(0.02)
"""


@pytest.fixture(autouse=True)
def _impatient(monkeypatch):
    monkeypatch.setattr(module, "_LEASE", 3.0)
    monkeypatch.setattr(module, "_SIGN", 0.5)


@pytest.fixture
def other(tmp_path):
    """Another process that has claimed the run ``run``."""
    folder = tmp_path / "other"
    folder.mkdir()
    (folder / "hold.py").write_text(HOLD)
    process = Python(["hold.py", str(tmp_path / "run")], cwd=folder)
    while not (folder / "held").exists():
        assert process.poll() is None
        time.sleep(0.02)
    yield process
    (folder / "enough").touch()
    process.wait(30)


def enter(run, new=True):
    """Names of what is in a folder that was claimed."""
    with claim(run, new):
        return {path.name for path in run.iterdir()}


def claimed_by(run, **owner):
    """A run that an owner of these entries has claimed."""
    lock = run / "fit.lock"
    run.mkdir(exist_ok=True)
    with SoftFileLease(lock, lease_duration=3.0):
        lines = [line for line in lock.read_text().splitlines() if not line.startswith("start=")]
    changed = {name: f"{name}={value}" for name, value in owner.items()}
    lock.write_text("".join(f"{changed.get(line.split('=')[0], line)}\n" for line in lines))
    return run


@pytest.fixture
def elsewhere(tmp_path, _impatient):
    """The run ``run``, which process 7 of another host has claimed."""
    return claimed_by(tmp_path / "run", pid=7, host="elsewhere")


@pytest.mark.parametrize("new", [True, False])
def test_one_process_at_a_time(other, tmp_path, new):
    line = error_of(enter, tmp_path / "run", new)
    assert all(word in line for word in (f"process {other.pid}", socket.gethostname(), "in use", "--run"))
    assert {path.name for path in (tmp_path / "run").iterdir()} == {"config.yaml", "fit.lock", ".fit"}


def test_the_claim_of_a_killed_process_ends_with_it(other, tmp_path):
    other.kill()
    other.wait()
    assert (tmp_path / "run" / "fit.lock").is_file()
    assert enter(tmp_path / "run") == {".fit", "fit.lock"}


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux says in a file that a process is a zombie")
def test_the_claim_of_a_process_that_nobody_waited_for_ends_with_it(tmp_path):
    # In a container whose first process waits for no other, a killed one stays as a zombie.
    with subprocess.Popen(["true"]) as zombie:
        while b") Z " not in Path(f"/proc/{zombie.pid}/stat").read_bytes():
            time.sleep(0.02)
        run = claimed_by(tmp_path / "run", pid=zombie.pid)
        assert enter(run) == {".fit", "fit.lock"}


def test_a_process_that_was_suspended_still_has_its_claim(other, tmp_path):
    # It refreshes nothing, and this host knows that it is there.
    os.kill(other.pid, signal.SIGSTOP)
    try:
        assert "in use" in error_of(enter, tmp_path / "run")
    finally:
        os.kill(other.pid, signal.SIGCONT)


def test_a_process_of_another_host_that_shows_no_life_has_ended(elsewhere, caplog):
    # A container that starts again has another name.
    assert enter(elsewhere) == {".fit", "fit.lock"}
    waiting, taken = [record.getMessage() for record in caplog.records]
    assert "process 7 on 'elsewhere'; waiting up to 3 seconds" in waiting
    assert "process 7 on 'elsewhere' gave none" in taken


def test_a_process_of_another_host_that_shows_life_has_the_run(elsewhere):
    timer = threading.Timer(2, os.utime, [elsewhere / "fit.lock"])
    timer.start()
    before = (elsewhere / "fit.lock").read_text()
    line = error_of(enter, elsewhere)
    timer.cancel()
    assert all(word in line for word in ("process 7", "'elsewhere'", "in use"))
    assert (elsewhere / "fit.lock").read_text() == before


@pytest.mark.parametrize("kind", ["killed", "elsewhere"])
def test_a_file_system_that_cannot_exchange_files(kind, other, tmp_path, request, monkeypatch):
    monkeypatch.setattr("filelock._soft.exchange_names", lambda *_: False)
    if kind == "elsewhere":
        (tmp_path / "other" / "enough").touch()
        other.wait()
        run = request.getfixturevalue("elsewhere")
    else:
        other.kill()
        other.wait()
        run = tmp_path / "run"
    assert enter(run) == {".fit", "fit.lock"}


@pytest.mark.parametrize("ended", [False, True])
def test_who_lost_a_run_to_another_host_writes_nothing_more(ended, elsewhere, tmp_path):
    lock = elsewhere / "fit.lock"
    other = lock.read_text()
    lock.unlink()
    with claim(elsewhere, new=True) as own:
        checkpoints = WholeCheckpoints(elsewhere / "checkpoints" / "last.ckpt", claim=own)
        checkpoints.save_checkpoint({"step": 1}, elsewhere / "checkpoints" / "last.ckpt")
        before = (elsewhere / "checkpoints" / "last.ckpt").read_bytes()
        (tmp_path / "theirs").write_text(other)
        (tmp_path / "theirs").replace(lock)
        if ended:
            lock.unlink()
        line = error_of(checkpoints.save_checkpoint, {"step": 2}, elsewhere / "checkpoints" / "last.ckpt")
    assert "another `fit` has taken" in line
    assert (elsewhere / "checkpoints" / "last.ckpt").read_bytes() == before
    assert ended or lock.read_text() == other
    assert lock.exists() is not ended


@pytest.mark.parametrize("text", ["{", '{"host": "elsewhere", "pid": 7}', "filelock/2\npid="])
def test_a_damaged_lock_of_nobody(text, tmp_path):
    lock = tmp_path / "run" / "fit.lock"
    lock.parent.mkdir()
    lock.write_text(text)
    os.utime(lock, (0, 0))
    enter(tmp_path / "run")
    assert (tmp_path / "run").is_dir()  # made by someone else
    assert not list((tmp_path / "run").iterdir())


@pytest.mark.parametrize(("text", "word"), [("mine", "did not write"), ("", "remove that file")])
def test_a_lock_that_says_nothing_stays(text, word, tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "fit.lock").write_text(text)
    assert word in error_of(enter, tmp_path / "run")
    assert (tmp_path / "run" / "fit.lock").read_text() == text


def test_nothing_is_left_of_a_run_that_wrote_nothing(tmp_path):
    enter(tmp_path / "runs" / "run")
    assert not (tmp_path / "runs" / "run").exists()


@pytest.mark.parametrize("known_by", ["lock", "configuration"])
def test_a_start_without_a_checkpoint_is_in_nobodys_way(known_by, tmp_path):
    run = tmp_path / "run"
    for name in ("hparams.yaml", "events.out.tfevents.1.host", "checkpoints/last.ckpt.part", ".tokenizer.new-1/vocab"):
        (run / name).parent.mkdir(parents=True, exist_ok=True)
        (run / name).write_text("")
    with atomic_folder(run / "tokenizer", kind="tokenizer") as staging:
        (staging / "vocab.txt").write_text("")
    if known_by == "lock":
        (run / "fit.lock").write_text("filelock/2\n")
        os.utime(run / "fit.lock", (0, 0))
    else:
        (run / "config.yaml").write_text("run: run\ncompression: []\ncheckpoint_every: 500\n")
    assert enter(run) == {".fit", "fit.lock"}


@pytest.mark.parametrize("known_by", [".fit", "fit.lock", "config.yaml"])
def test_what_other_loggers_left_stays_and_is_in_nobodys_way(known_by, tmp_path):
    run = tmp_path / "run"
    texts = {".fit": "", "fit.lock": "filelock/2\n", "config.yaml": "run: run\ncompression: []\ncheckpoint_every: 5\n"}
    (run / "lightning_logs" / "version_0").mkdir(parents=True)
    for name in ("lightning_logs/version_0/metrics.csv", "lightning_logs/version_0/hparams.yaml", "wandb.log"):
        (run / name).write_text("years of work")
    (run / known_by).write_text(texts[known_by])
    os.utime(run / known_by, (0, 0))
    assert enter(run) == {".fit", "fit.lock", "lightning_logs", "wandb.log"}
    assert {path.read_text() for path in run.rglob("*") if path.is_file() and path.name != ".fit"} == {"years of work"}
    (run / "model").mkdir()
    (run / "model" / "mine").write_text("")
    assert "exists" in error_of(enter, run)


@pytest.mark.parametrize("name", ["config.yaml", "tokenizer/vocab.txt", "checkpoints/mine.part", "model/config.json"])
def test_what_somebody_put_in_the_place_of_a_result_stays(name, tmp_path):
    run = tmp_path / "run"
    (run / name).parent.mkdir(parents=True)
    (run / ".fit").write_text("")
    (run / name).write_text("mine: 1\n")
    assert "exists" in error_of(enter, run)
    discard(run)
    assert (run / name).read_text() == "mine: 1\n"


def test_what_somebody_put_beside_results_stays_and_is_in_nobodys_way(tmp_path):
    run = tmp_path / "run"
    run.mkdir()
    (tmp_path / "theirs.yaml").write_text("{}\n")
    (run / "config.yaml").write_text("run: run\ncompression: []\ncheckpoint_every: 500\n")
    for name in ("hparams.yaml", "events.out.tfevents.1.host", ".tokenizer.mine"):
        (run / name).write_text("mine: 1\n")
    (run / "events.out.tfevents.2.host").symlink_to(tmp_path / "theirs.yaml")
    assert enter(run) == {
        *(".fit", "fit.lock", "hparams.yaml", ".tokenizer.mine"),
        *("events.out.tfevents.1.host", "events.out.tfevents.2.host"),
    }


class Killed(Callback):
    def on_train_start(self, trainer, pl_module):
        shutil.copytree(trainer.default_root_dir, f"{trainer.default_root_dir}-killed")
        raise RuntimeError("killed")


@pytest.mark.parametrize("way", ["command", "python"])
def test_all_that_a_fit_left_before_its_first_checkpoint_is_known(way, tiny_teacher, tiny_data, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    if way == "command":
        (tmp_path / "task.yaml").write_text(yaml.safe_dump(student_config(tiny_teacher, tiny_data)))
        with pytest.raises(RuntimeError, match="killed"):
            main(["fit", "--config=task.yaml", "--run=run", f"--trainer.callbacks={__name__}.Killed"])
    else:
        files = {"train_file": str(tiny_data / "train.tsv"), "val_file": str(tiny_data / "val.tsv")}
        data = TextClassification(**files, tokenizer=str(tiny_teacher), text_columns=["sentence"], max_length=16)
        with pytest.raises(RuntimeError, match="killed"):
            fit(
                model=LitStudent(str(tiny_teacher), labels=data.labels),
                data=data,
                run="run",
                trainer={"accelerator": "cpu", "callbacks": [Killed()]},
            )
    left = {path.name.partition(".out.")[0] for path in (tmp_path / "run-killed").iterdir()}
    assert left == {".fit", "fit.lock", "config.yaml", "hparams.yaml", "events", "tokenizer"}
    discard(tmp_path / "run-killed")
    assert {path.name for path in (tmp_path / "run-killed").iterdir()} == {".fit", "fit.lock"}


def test_a_fit_with_another_logger_that_failed_at_its_start_begins_again(
    tiny_teacher, tiny_data, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "task.yaml").write_text(yaml.safe_dump(student_config(tiny_teacher, tiny_data)))
    args = ["fit", "--config=task.yaml", "--run=run", "--trainer.max_epochs=1"]
    args += ["--trainer.logger=CSVLogger", "--trainer.logger.save_dir=run"]
    with pytest.raises(SystemExit, match="none_such"):
        main(
            [
                *args,
                "--compression+=MagnitudePruning",
                "--compression.sparsity=0.5",
                "--compression.targets=[none_such]",
            ]
        )
    assert {path.name for path in (tmp_path / "run").iterdir()} == {".fit", "lightning_logs"}
    main(args)
    assert (tmp_path / "run/model/config.json").is_file()
    assert (tmp_path / "run/config.yaml").is_file()  # commands that are given the run read it there


@pytest.mark.parametrize(
    "name",
    [
        *("notes.txt", "checkpoints/last.ckpt", "model/config.json", "config.yaml/mine"),
        # Names of ours in a folder where no fit has begun.
        *("config.yaml", "tokenizer/vocab.txt", "events.out.tfevents.1.host"),
    ],
)
def test_anything_else_is_not_touched(name, tmp_path):
    run = tmp_path / "run"
    (run / name).parent.mkdir(parents=True)
    (run / name).write_text("mine")
    assert "exists" in error_of(enter, run)
    assert [path for path in run.rglob("*") if path.is_file()] == [run / name]


def test_discarding_leaves_what_others_put_there(tmp_path):
    for name in ("config.yaml", "notes.txt", "fit.lock"):
        (tmp_path / name).write_text("")
    discard(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {"notes.txt", "fit.lock"}
