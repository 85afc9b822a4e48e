"""A run folder belongs to one `fit` at a time, and to a new one only when an earlier left nothing to resume from."""

import logging
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import yaml
from filelock import OwnerRecord, SoftFileLease, Timeout

from lit_compress.errors import UserError
from lit_compress.export.run_folder import TOKENIZER
from lit_compress.files import begins, check_file, check_folder
from lit_compress.training.run_record import is_written

__all__ = ["LOCK", "Claim", "check_new", "claim", "discard", "has_begun"]

LOCK = "fit.lock"
# Seconds without a sign of life after which a fit of another host has ended, and between two such signs.
_LEASE, _SIGN = 120.0, 10.0
# Says that a fit has begun in a folder, before there is anything else of it.
_MARK = ".fit"
# How the configuration of a fit is known from others.
_KEYS = {"run", "compression", "checkpoint_every"}
# What it is going to write where nothing else may be; Lightning leaves an `hparams.yaml` that is there as it is.
_PLACES = ("config.yaml", TOKENIZER, "checkpoints", "model")

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Claim:
    """What one `fit` has of a run folder.

    Args:
        lock: the file that says so.
        token: name of this claim in it.

    """

    lock: Path
    token: str

    def holds(self) -> bool:
        """Whether no other `fit` has taken the folder, which one of another host does after two minutes of silence.

        Without the file another one may have begun and ended.
        """
        owner = _lease(self.lock).owner
        return owner is not None and owner.token == self.token


@contextmanager
def claim(run: Path, new: bool) -> Iterator[Claim]:
    """Keep every other `fit` out of a run folder, which is made when it is not there and removed when it stays empty.

    The file ``fit.lock`` names host and process and is refreshed every few seconds. Of a process of this host it is
    known whether it still runs; one of another host is given two minutes to refresh it.

    Args:
        run: the folder.
        new: whether a run begins in it; what is left of one without a checkpoint is removed then.

    Raises:
        UserError: another process has it, or it holds something else.

    """
    if new and not has_begun(run):
        check_new(run)
    lock, made = run / LOCK, not run.exists()
    check_file(lock, begins(r"filelock/|\{"), key="--run")
    try:
        run.mkdir(parents=True, exist_ok=True)
        lease = _take(lock)
    except OSError as error:
        raise UserError(f"run: {str(run)!r} cannot be written: {error.strerror}; choose another --run") from error
    try:
        if new:
            check_new(run, begun=True)
            discard(run)
            (run / _MARK).write_text("A `fit` of lit_compress has begun here.\n")
        yield Claim(lock, str(lease.token))
    finally:
        lease.release()
        with suppress(OSError):
            if [path.name for path in run.iterdir()] == [_MARK]:
                (run / _MARK).unlink()
            if made:
                run.rmdir()  # unless it is not empty


def has_begun(run: Path) -> bool:
    """Whether a `fit` has begun in a folder."""
    return any((run / name).is_file() for name in (_MARK, LOCK)) or _is_configuration(run / "config.yaml")


def check_new(run: Path, begun: bool = False) -> None:
    """Raise a ``UserError`` when a run cannot begin in a folder: it holds a run, or something else.

    Args:
        run: the folder.
        begun: whether a run began there. What it left is no hindrance then, nor what loggers of all kinds and people
            have added; only what is in the place of a result is.

    """
    if run.exists() and not run.is_dir():
        raise UserError(f"run: {str(run)!r} is not a folder; choose another --run")
    found = [path for path in run.iterdir() if path.name not in (LOCK, _MARK)] if run.exists() else []
    if any(not begun or (path.name in _PLACES and not _is_beginning(path)) for path in found):
        raise UserError(f"run: {str(run)!r} exists; choose another --run, or continue it with --ckpt_path last")
    parent = next(p for p in [run, *run.absolute().parents] if p.exists())
    if not parent.is_dir() or not os.access(parent, os.W_OK):
        raise UserError(f"run: {str(run)!r} cannot be written; choose another --run")


def discard(run: Path) -> None:
    """Remove what a fit wrote before its first checkpoint, and nothing else."""
    for path in run.iterdir():
        if _is_beginning(path):
            shutil.rmtree(path) if path.is_dir() else path.unlink()


def _is_beginning(path: Path) -> bool:
    """Whether a fit wrote it before its first checkpoint; not by its name alone, and an empty file is nobody's."""
    with suppress(UserError, OSError):
        if path.name == TOKENIZER:
            check_folder(path, overwrite=True, kind="tokenizer")
            return True
        if path.is_dir() and not path.is_symlink():
            unfinished = path.name == "checkpoints" and all(each.match("*.ckpt.part") for each in path.iterdir())
            return unfinished or path.match(f".{TOKENIZER}.new-*")
        for name, is_own in _FILES.items():
            if path.match(name):
                check_file(path, is_own)
                return True
    return False


def _is_configuration(path: Path) -> bool:
    with suppress(OSError, ValueError, yaml.YAMLError):
        return isinstance(content := yaml.safe_load(path.read_text()), dict) and content.keys() >= _KEYS
    return False


def _is_events(path: Path) -> bool:
    """Whether TensorBoard's file has the configuration of a run in it, or nothing but its own header."""
    content = path.read_bytes()
    return b"brain.Event" in content[:64] and (len(content) < 128 or b"config/text_summary" in content)


# What a fit writes before its first checkpoint, and how it is known to be that.
_FILES: dict[str, Callable[[Path], bool]] = {
    "config.yaml": lambda path: is_written(path) or _is_configuration(path),
    # Of the command line, of a module without hyper-parameters, of this package's modules in Python.
    # Arguments of our modules, by alphabet.
    "hparams.yaml": begins(
        r"_instantiator: lightning\.pytorch\.cli\.|\{\}\n|(.*\n)*?compile: (true|false)\n(.*\n)*?label_map:"
    ),
    "events.out.tfevents.*": _is_events,
}


def _take(lock: Path) -> SoftFileLease:
    """A claim that is refreshed until it is released.

    Raises:
        UserError: another process has it.

    """
    lease = _lease(lock)
    if _acquire(lease, 1):  # it is free, or its owner was a process of this host and has ended
        return lease
    owner = lease.owner
    if owner is None and not _acquire(lease, 4):  # half written, which heals after two seconds
        raise UserError(
            f"run: {str(lock.parent)!r} is claimed by a process that {str(lock)!r} does not name; when no `fit` trains "
            "in it, remove that file"
        )
    if owner is None or _ended(lease, owner):
        return lease
    raise UserError(
        f"run: {str(lock.parent)!r} is in use, {_who(owner)} trains in it; wait for its end or choose another --run"
    )


def _ended(lease: SoftFileLease, owner: OwnerRecord) -> bool:
    """Whether the owner of a claim has ended; it is this process's then."""
    lock = Path(lease.lock_file)
    if owner.hostname == _host():
        if _runs(owner.pid):
            return False
    else:
        _log.warning(
            "run: %r is claimed by %s; waiting up to %g seconds for a sign that it still trains",
            *(str(lock.parent), _who(owner), _LEASE),
        )
        seen = lock.stat().st_mtime_ns
        taken = _acquire(lease, _LEASE + 2, lambda: _changed(lock, seen))
        if not taken and _changed(lock, seen):
            return False
        _log.warning("run: %s gave none; %r is taken from it", _who(owner), str(lock.parent))
        if taken:
            return True
    # NFS cannot exchange two files, by which the library takes a claim.
    if lease.owner == owner:
        lease.break_lock()
    return _acquire(lease, 1)


def _lease(lock: Path) -> SoftFileLease:
    return SoftFileLease(lock, lease_duration=_LEASE, heartbeat_interval=_SIGN, poll_interval=0.2)


def _acquire(lease: SoftFileLease, seconds: float, cancel: Callable[[], bool] | None = None) -> bool:
    with suppress(Timeout):
        lease.acquire(timeout=seconds, cancel_check=cancel)
        return True
    return False


def _changed(path: Path, seen: int) -> bool:
    with suppress(OSError):
        return path.stat().st_mtime_ns != seen
    return False


def _host() -> str:
    """This host as an owner is recorded: its name, and the container where there is one."""
    with tempfile.TemporaryDirectory() as folder, _lease(Path(folder, LOCK)) as lease:
        owner = lease.owner
    assert owner is not None
    return owner.hostname


def _runs(pid: int) -> bool:
    """Whether there is such a process and it has not ended; on Windows the library has seen to it."""
    if os.name == "nt":
        return True
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    # One that nobody waits for stays after its end, for as long as a container whose first process waits for none.
    with suppress(OSError):  # Linux alone has this file
        return Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()[0] not in (b"Z", b"X")
    return True


def _who(owner: OwnerRecord) -> str:
    return f"process {owner.pid} on {owner.hostname.partition('?')[0]!r}"
