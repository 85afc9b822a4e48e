"""A run folder belongs to one `fit` at a time, and to a new one only when an earlier left nothing to go on from."""

import fcntl
import json
import os
import shutil
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import yaml

from lit_compress.errors import UserError
from lit_compress.export.run_folder import TOKENIZER

__all__ = ["LOCK", "check_new", "claim", "discard"]

LOCK = "fit.lock"
# What a fit has written before its first checkpoint, and how its configuration is known from others.
_FILES = (LOCK, "config.yaml", "hparams.yaml", "events.out.tfevents.*")
_FOLDERS = (TOKENIZER, f".{TOKENIZER}.*")
_KEYS = {"run", "compression", "checkpoint_every"}


@contextmanager
def claim(run: Path, new: bool) -> Iterator[None]:
    """Keep every other `fit` out of a run folder, which is made when it is not there and removed when it stays empty.

    The system ends the claim of a process that dies. The file ``fit.lock`` names host and process for people, and for
    hosts that do not see each other's claims.

    Args:
        run: the folder.
        new: whether a run begins in it; what is left of one without a checkpoint is removed then.

    Raises:
        UserError: another process has it, or it holds something else.

    """
    lock = run / LOCK
    if new and not lock.exists():
        check_new(run)
    made = not run.exists()
    try:
        run.mkdir(parents=True, exist_ok=True)
        handle, earlier = _lock(lock, new)
    except OSError as error:
        raise UserError(f"run: {str(run)!r} cannot be written: {error.strerror}; choose another --run") from error
    try:
        if new:
            check_new(run, begun=bool(earlier and earlier["new"]))
            discard(run)
        yield
    finally:
        lock.unlink(missing_ok=True)
        os.close(handle)
        if made:
            with suppress(OSError):  # it is not empty
                run.rmdir()


def check_new(run: Path, begun: bool = False) -> None:
    """Raise a ``UserError`` when a run cannot begin in a folder: it holds a run, or something else.

    Args:
        run: the folder.
        begun: whether it is known that a run began there; otherwise its configuration says so.

    """
    if run.exists() and not run.is_dir():
        raise UserError(f"run: {str(run)!r} is no folder; choose another --run")
    found = [path for path in run.iterdir() if path.name != LOCK] if run.exists() else []
    ours = begun or _is_configuration(run / "config.yaml")
    if any(not (ours and _is_beginning(path)) for path in found):
        raise UserError(f"run: {str(run)!r} exists; choose another --run, or continue it with --ckpt_path last")
    parent = next(p for p in [run, *run.absolute().parents] if p.exists())
    if not parent.is_dir() or not os.access(parent, os.W_OK):
        raise UserError(f"run: {str(run)!r} cannot be written; choose another --run")


def discard(run: Path) -> None:
    """Remove what a fit writes before its first checkpoint, and nothing else."""
    for path in run.iterdir():
        if path.name != LOCK and _is_beginning(path):
            shutil.rmtree(path) if path.is_dir() else path.unlink()


def _is_beginning(path: Path) -> bool:
    if path.name == "checkpoints" and path.is_dir():
        return all(inner.suffix == ".part" for inner in path.iterdir())
    return any(fnmatch(path.name, pattern) for pattern in (_FOLDERS if path.is_dir() else _FILES))


def _is_configuration(path: Path) -> bool:
    with suppress(OSError, ValueError, yaml.YAMLError):
        return isinstance(content := yaml.safe_load(path.read_text()), dict) and content.keys() >= _KEYS
    return False


def _lock(path: Path, new: bool) -> tuple[int, dict[str, Any] | None]:
    """A descriptor that holds the claim until it is closed, and what the last owner wrote if it did not end it."""
    while True:
        handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            owner = _owner(handle)
            if not _hold(handle, owner):
                who = f"process {owner['pid']} on {owner['host']!r}" if owner else "another process"
                raise UserError(
                    f"run: {str(path.parent)!r} is in use, {who} trains in it; wait for its end or choose another --run"
                )
            if owner and not _has_ended(owner):
                raise UserError(
                    f"run: {str(path.parent)!r} is claimed by process {owner['pid']} on {owner['host']!r}, and this is "
                    f"{_here()['host']!r}; when that process has ended, remove {str(path)!r}"
                )
            if path.exists() and path.stat().st_ino == os.fstat(handle).st_ino:  # not removed by its last owner
                os.ftruncate(handle, 0)
                os.pwrite(handle, json.dumps(_here() | {"new": new}).encode(), 0)
                return handle, owner
            os.close(handle)
        except BaseException:
            os.close(handle)
            raise


def _hold(handle: int, owner: dict[str, Any] | None) -> bool:
    """Take the system's lock; False where another process of this host has it."""
    try:
        # Of this process alone: with a lock of the descriptor, workers that it started could outlive it.
        fcntl.lockf(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError):
        return False
    except OSError:  # the file system has no locks: what is left is to look for the process
        return owner is None or owner["host"] != _here()["host"] or not Path(f"/proc/{owner['pid']}").exists()
    return True


def _here() -> dict[str, Any]:
    job, restart = os.environ.get("SLURM_JOB_ID"), os.environ.get("SLURM_RESTART_COUNT", "0")
    return {"host": socket.gethostname(), "pid": os.getpid(), "job": job, "restart": restart}


def _owner(handle: int) -> dict[str, Any] | None:
    """What a lock file says; None for one that was just made."""
    with suppress(ValueError, KeyError, TypeError):
        content = json.loads(os.pread(handle, 4096, 0))
        return {name: content[name] for name in (*_here(), "new")}
    return None


def _has_ended(owner: dict[str, Any]) -> bool:
    """Whether an owner whose claim this process could take is gone for certain.

    A file system need not tell one host of another's claims. A job that SLURM started again has ended before.
    """
    here = _here()
    requeued = owner["job"] is not None and owner["job"] == here["job"] and owner["restart"] != here["restart"]
    return owner["host"] == here["host"] or requeued
