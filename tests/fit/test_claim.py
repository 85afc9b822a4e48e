"""A run folder has one writer at a time; what an interrupted start left is in nobody's way."""

import json
import os
import socket
import subprocess
import sys

import pytest
from contracts.errors import error_of

from lit_compress.fit.claim import claim, discard

OWN = {"host": socket.gethostname(), "pid": os.getpid(), "job": None, "restart": "0", "new": True}

HOLD = """
import sys
from pathlib import Path

from lit_compress.fit.claim import claim

run = Path(sys.argv[1])
with claim(run, new=True):
    (run / "config.yaml").write_text("")
    print("held", flush=True)
    sys.stdin.read()
"""


@pytest.fixture
def other(tmp_path):
    """Another process that has claimed the run ``run``."""
    command = [sys.executable, "-c", HOLD, str(tmp_path / "run")]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "held\n"
    yield process
    process.communicate(timeout=30)


def enter(run, new=True):
    with claim(run, new):
        return set(run.iterdir())


def write_owner(run, **entries):
    run.mkdir()
    (run / "fit.lock").write_text(json.dumps(OWN | entries))


@pytest.mark.parametrize("new", [True, False])
def test_one_process_at_a_time(other, tmp_path, new):
    line = error_of(enter, tmp_path / "run", new)
    assert all(word in line for word in (f"process {other.pid}", socket.gethostname(), "in use", "--run"))
    assert {path.name for path in (tmp_path / "run").iterdir()} == {"config.yaml", "fit.lock"}


def test_the_claim_of_a_killed_process_ends_with_it(other, tmp_path):
    other.kill()
    other.wait()
    assert (tmp_path / "run" / "fit.lock").is_file()
    assert enter(tmp_path / "run") == {tmp_path / "run" / "fit.lock"}


def test_a_number_that_another_process_has_now(tmp_path):
    write_owner(tmp_path / "run", pid=1)
    assert enter(tmp_path / "run") == {tmp_path / "run" / "fit.lock"}


def test_another_host_may_still_be_at_it(tmp_path):
    write_owner(tmp_path / "run", host="elsewhere", pid=7)
    line = error_of(enter, tmp_path / "run")
    assert all(word in line for word in ("process 7", "'elsewhere'", "remove", "fit.lock"))
    assert (tmp_path / "run" / "fit.lock").is_file()


def test_a_requeued_job_goes_on_on_another_host(tmp_path, monkeypatch):
    write_owner(tmp_path / "run", host="elsewhere", job="17")
    monkeypatch.setenv("SLURM_JOB_ID", "17")
    assert "elsewhere" in error_of(enter, tmp_path / "run")
    monkeypatch.setenv("SLURM_RESTART_COUNT", "1")
    enter(tmp_path / "run")


def test_a_damaged_lock_of_nobody(tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "fit.lock").write_text("{")
    enter(tmp_path / "run")
    assert (tmp_path / "run").is_dir()  # made by somebody else
    assert not list((tmp_path / "run").iterdir())


def test_a_file_system_without_locks(tmp_path, monkeypatch):
    def none(*_):
        raise OSError(37, "No locks available")

    monkeypatch.setattr("fcntl.lockf", none)
    write_owner(tmp_path / "run")
    assert "in use" in error_of(enter, tmp_path / "run")
    write_owner(tmp_path / "gone", pid=2**22 + 1)
    enter(tmp_path / "gone")


def test_nothing_is_left_of_a_run_that_wrote_nothing(tmp_path):
    enter(tmp_path / "runs" / "run")
    assert not (tmp_path / "runs" / "run").exists()


@pytest.mark.parametrize("known_by", ["lock", "configuration"])
def test_a_start_without_a_checkpoint_is_in_nobodys_way(known_by, tmp_path):
    run = tmp_path / "run"
    for name in ("hparams.yaml", "events.out.tfevents.1.host", "checkpoints/last.ckpt.part", "tokenizer/vocab.txt"):
        (run / name).parent.mkdir(parents=True, exist_ok=True)
        (run / name).write_text("")
    if known_by == "lock":
        (run / "fit.lock").write_text(json.dumps(OWN))
    else:
        (run / "config.yaml").write_text("run: run\ncompression: []\ncheckpoint_every: 500\n")
    assert enter(run) == {run / "fit.lock"}


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
