"""Checkpoints stay whole when the disk is full or the process is killed, and the one before is there."""

import os
import resource
import shutil
import signal
from pathlib import Path

import pytest
import torch
import yaml
from contracts.errors import error_of
from contracts.training import differences, student_config

from lit_compress.cli import main
from lit_compress.export import last_checkpoint, load_checkpoint
from lit_compress.training.checkpoints import WholeCheckpoints


@pytest.fixture
def last(tmp_path) -> Path:
    """A checkpoint, of step 1, that is about to be replaced."""
    path = tmp_path / "checkpoints" / "last.ckpt"
    WholeCheckpoints(path).save_checkpoint(checkpoint(1), path)
    return path


def checkpoint(step):
    about = {"architecture": "BertModel", "config": '{"model_type": "bert"}', "tokenizer": "none", "manifest": {}}
    return {"global_step": step, "state_dict": {"weight": torch.zeros(1000)}, "lit_compress": about}


def steps(folder):
    return {path.name: load_checkpoint(path)["global_step"] for path in folder.glob("*.ckpt")}


def test_the_one_before_is_kept(last):
    for step in (2, 3):
        WholeCheckpoints(last).save_checkpoint(checkpoint(step), last)
    assert steps(last.parent) == {"last.ckpt": 3, "previous.ckpt": 2}
    WholeCheckpoints(last).save_checkpoint(checkpoint(3), last.with_name("best.ckpt"))
    assert steps(last.parent) == {"last.ckpt": 3, "previous.ckpt": 2, "best.ckpt": 3}


def test_a_file_system_without_links(last, monkeypatch):
    def none(*_):
        raise PermissionError

    monkeypatch.setattr(Path, "hardlink_to", none)
    for step in (2, 3):
        WholeCheckpoints(last).save_checkpoint(checkpoint(step), last)
    assert steps(last.parent) == {"last.ckpt": 3, "previous.ckpt": 2}


def test_a_full_disk(last):
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2000, hard))
    try:
        line = error_of(WholeCheckpoints(last).save_checkpoint, checkpoint(2), last)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert all(word in line for word in (str(last), "File too large", "--ckpt_path last"))
    assert [path.name for path in last.parent.iterdir()] == ["last.ckpt"]
    assert steps(last.parent) == {"last.ckpt": 1}


@pytest.mark.parametrize(("module", "name"), [(os, "fsync"), (Path, "hardlink_to"), (Path, "replace")])
def test_a_process_that_is_killed_while_it_writes(module, name, last):
    WholeCheckpoints(last).save_checkpoint(checkpoint(2), last)
    if (pid := os.fork()) == 0:
        setattr(module, name, lambda *_: os.kill(os.getpid(), signal.SIGKILL))
        WholeCheckpoints(last).save_checkpoint(checkpoint(3), last)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == -signal.SIGKILL
    assert steps(last.parent)["last.ckpt"] == 2
    WholeCheckpoints(last).save_checkpoint(checkpoint(4), last)
    assert steps(last.parent) == {"last.ckpt": 4, "previous.ckpt": 2}
    assert not list(last.parent.glob("*.part"))


def test_a_damaged_one_does_not_replace_the_one_that_a_run_goes_on_from(last):
    WholeCheckpoints(last).save_checkpoint(checkpoint(2), last)
    last.write_bytes(b"damaged")
    resumed = WholeCheckpoints(last, str(last.with_name("previous.ckpt")))
    resumed.save_checkpoint(checkpoint(3), last)
    assert steps(last.parent) == {"last.ckpt": 3, "previous.ckpt": 1}
    resumed.save_checkpoint(checkpoint(4), last)
    assert steps(last.parent) == {"last.ckpt": 4, "previous.ckpt": 3}


def test_both_damaged(last):
    WholeCheckpoints(last).save_checkpoint(checkpoint(2), last)
    for path in last.parent.iterdir():
        path.write_bytes(path.read_bytes()[:500])
    line = error_of(last_checkpoint, last.parent.parent)
    assert "last.ckpt" in line
    assert "damaged" in line


@pytest.mark.parametrize("missing", [False, True])
def test_a_damaged_last_checkpoint_is_not_the_end(missing, tiny_teacher, tiny_data, tmp_path, caplog):
    run = tmp_path / "run"
    (tmp_path / "task.yaml").write_text(yaml.safe_dump(student_config(tiny_teacher, tiny_data, run=str(run))))
    fit = ["fit", f"--config={tmp_path / 'task.yaml'}", "--checkpoint_every=3"]
    main(fit)
    last = run / "checkpoints" / "last.ckpt"
    assert steps(last.parent) == {"last.ckpt": 8, "previous.ckpt": 6}
    whole = tmp_path / "whole.ckpt"
    shutil.copy(last, whole)
    if missing:
        last.unlink()
    else:
        last.write_bytes(last.read_bytes()[:-1000])
    main(["export", f"--run={run}", f"--output={tmp_path / 'out'}"])
    assert (tmp_path / "out" / "model.safetensors").is_file()
    main([*fit, "--ckpt_path=last"])
    said = [record.getMessage() for record in caplog.records if "the one before it is taken" in record.getMessage()]
    assert len(said) == 2
    assert all(("there is no" if missing else "is damaged") in line and "previous.ckpt" in line for line in said)
    for part in ("state_dict", "optimizer_states", "global_step"):
        assert differences(load_checkpoint(whole)[part], load_checkpoint(last)[part]) == []
