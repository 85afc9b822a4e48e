"""How files are written: outputs that appear whole or not at all.

An output replaces only what this program wrote itself. A folder says so with a list of its files, a file with how it
begins; symbolic links, devices, mount points, and whatever holds a file of someone else stay as they are.
"""

import ctypes
import errno
import json
import os
import re
import shutil
import stat
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from fnmatch import fnmatch
from pathlib import Path
from typing import Literal

from lit_compress.errors import UserError

__all__ = [
    "LAST",
    "FolderKind",
    "atomic_file",
    "atomic_folder",
    "begins",
    "check_file",
    "check_folder",
    "foreign_file",
    "last_of",
]

FolderKind = Literal["model", "report", "tokenizer", "latency table"]

# The last checkpoint of a run, in its folder `checkpoints`.
LAST = "last.ckpt"
# In every folder that is written here: its kind and the names of its files.
_LIST = ".lit_compress.json"
# What tells a folder of a version that left no such list, and the names of files that it may have.
_WITHOUT_LIST: dict[FolderKind, tuple[str, tuple[str, ...]]] = {
    "model": (
        "compression.json",
        (
            *("config.json", "compression.json", "README.md", "model*.safetensors", "model.safetensors.index.json"),
            *("generation_config.json", "onnx/*.onnx", "openvino/*.xml", "openvino/*.bin"),
            *("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json"),
            *("vocab.txt", "vocab.json", "merges.txt", "bpe.codes", "chat_template.jinja"),
            *("spiece.model", "spm.model", "sentencepiece.bpe.model", "tokenizer.model"),
        ),
    ),
    "report": (
        "report.json",
        (
            *("report.html", "report.md", "report.json", "events.out.tfevents.*", "metrics.png", "parts.png"),
            *("calibration.png", "size.png", "latency.png", "sparsity.png", "blocks.png"),
        ),
    ),
}
# No room on the disk, in a quota or in a file; and a disk that turned read-only.
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS)


def last_of(run: Path) -> Path:
    """Where the last checkpoint of a run is."""
    return run / "checkpoints" / LAST


def check_folder(
    target: str | Path,
    overwrite: bool = False,
    kind: FolderKind = "model",
    inputs: Sequence[str | Path | None] = (),
    key: str = "--output",
) -> None:
    """Refuse an output folder that cannot be made, or whose place is taken by what must stay; for before any work.

    An existing folder may be replaced only if everything in it was written by :func:`atomic_folder` as the same kind.

    Args:
        target: the folder to create.
        overwrite: replace an existing one.
        kind: what is written.
        inputs: what the output is made from, which must not be in it: paths, or hub names; None is left out.
        key: option named in errors.

    Raises:
        UserError: says what is there.

    """
    path, where = Path(target), f"output {str(target)!r}"
    if not _is_taken(path, stat.S_ISDIR, key):
        return
    keep = {"the current folder": Path.cwd(), "your home folder": Path(os.path.expanduser("~"))}
    keep |= {f"{str(given)!r}, which is read": Path(given) for given in inputs if given is not None}
    for what, place in keep.items():
        if path.resolve() in (place.resolve(), *place.resolve().parents):
            raise UserError(f"{where} is or holds {what}; choose another {key}")
    if path.is_mount():
        raise UserError(f"{where} is a mount point; choose another {key}")
    if (foreign := foreign_file(path, _known_names(path, kind))) is not None:
        raise UserError(
            f"{where} is a folder with {foreign!r} in it, which is not part of a {kind} that lit_compress wrote; "
            f"choose another {key}, or move that folder away"
        )
    if not overwrite:
        raise UserError(f"{where} exists; choose another {key}, or allow it with --overwrite true")


def check_shared_folder(target: str | Path, key: str = "--output") -> None:
    """Refuse a folder that single outputs cannot be added to; called before any work.

    Args:
        target: the folder, which need not exist.
        key: option named in errors.

    Raises:
        UserError: it is a link, no folder, or one that :func:`atomic_folder` wrote, which is whole as it is.

    """
    if _is_taken(Path(target), stat.S_ISDIR, key) and (Path(target) / _LIST).is_file():
        raise UserError(f"output {str(target)!r} is a folder that lit_compress wrote as a whole; choose another {key}")


def check_file(
    target: str | Path,
    is_own: Callable[[Path], bool],
    overwrite: bool = True,
    inputs: Sequence[str | Path] = (),
    key: str = "--output",
) -> None:
    """Refuse an output file that cannot be made, or whose place is taken by what must stay; for before any work.

    Args:
        target: the file to write.
        is_own: whether an existing file is an earlier output of the same kind; an empty one is nobody's.
        overwrite: replace an existing one.
        inputs: files that the output is made from.
        key: option named in errors.

    Raises:
        UserError: says what is there.

    """
    path, where = Path(target), f"output {str(target)!r}"
    if not _is_taken(path, stat.S_ISREG, key):
        return
    if any(Path(given).exists() and path.samefile(given) for given in inputs):
        raise UserError(f"{where} is the file that is read; choose another {key}")
    if path.stat().st_size and not is_own(path):
        raise UserError(f"{where} is a file that lit_compress did not write; choose another {key}, or move it away")
    if not overwrite:
        raise UserError(f"{where} exists; choose another {key}, or allow it with --overwrite true")


def foreign_file(folder: Path, is_own: Callable[[str], bool]) -> str | None:
    """The name inside a folder of something that is not this program's; None when there is nothing like that.

    Args:
        folder: existing.
        is_own: whether a file is, by its name inside the folder; links, devices and mount points never are.

    """
    try:
        for around, folders, files in os.walk(folder, onerror=_raise):
            for path in (Path(around, name) for name in sorted((*files, *folders))):
                mode, name = path.lstat().st_mode, path.relative_to(folder).as_posix()
                if path.is_mount() or not (stat.S_ISDIR(mode) or (stat.S_ISREG(mode) and is_own(name))):
                    return name
    except OSError as error:
        return str(error.filename)
    return None


def begins(pattern: str) -> Callable[[Path], bool]:
    """A function that says whether a text file begins with a regular expression."""

    def matches(path: Path) -> bool:
        with path.open("rb") as file:
            return re.match(pattern, file.read(4096).decode(errors="replace")) is not None

    return matches


@contextmanager
def atomic_folder(target: str | Path, overwrite: bool = False, kind: FolderKind = "model") -> Iterator[Path]:
    """Give a temporary sibling folder that becomes ``target`` when the block ends without an exception.

    Args:
        target: the folder to create.
        overwrite: replace an existing folder that holds nothing but what this function wrote.
        kind: what is written; a folder of another kind is not replaced.

    Raises:
        UserError: see :func:`check_folder`, or the disk is full.

    """
    target = Path(target)
    check_folder(target, overwrite, kind)
    staging = _temporary(target, tempfile.mkdtemp)
    try:
        with _full_disk_is_said(target):
            yield staging
            files = sorted(path.relative_to(staging).as_posix() for path in staging.rglob("*") if not path.is_dir())
            (staging / _LIST).write_text(json.dumps({"kind": kind, "files": files}, indent=1) + "\n")
            staging.chmod(0o777 & ~_umask())
            for path in staging.rglob("*"):
                # Some writers make their files private; a model folder is for whoever may read its parent.
                path.chmod((0o777 if path.is_dir() else 0o666) & ~_umask())
            check_folder(target, overwrite, kind)  # somebody may have put something there meanwhile
            _put(staging, target)
    finally:
        shutil.rmtree(staging, ignore_errors=True)


@contextmanager
def atomic_file(target: str | Path) -> Iterator[Path]:
    """Give a temporary sibling path that replaces ``target`` when the block ends without an exception.

    Raises:
        UserError: something else than a file is there, or it cannot be written.

    """
    target = Path(target)
    _is_taken(target, stat.S_ISREG)
    staging = _temporary(target, lambda **kwargs: _closed_file(**kwargs))
    try:
        with _full_disk_is_said(target):
            yield staging
            staging.chmod(0o666 & ~_umask())
            _is_taken(target, stat.S_ISREG)
            staging.replace(target)
    finally:
        staging.unlink(missing_ok=True)


def _put(staging: Path, target: Path) -> None:
    """Move a folder to its place; one that is there goes."""
    if not target.exists():
        staging.rename(target)
        return
    if _exchange(staging, target):
        old = staging
    else:
        # rename() cannot replace a non-empty folder: move the old one aside, in sight, so that it is never half gone.
        old = Path(tempfile.mkdtemp(dir=target.parent, prefix=f"{target.name}.old-"))
        target.rename(old)  # onto an empty folder
        try:
            staging.rename(target)
        except BaseException:
            old.rename(target)  # if that fails, too, the old one stays where it is
            raise
    try:
        shutil.rmtree(old)
    except OSError as error:
        raise UserError(
            f"output {str(target)!r} is written, and what it replaces is left in {str(old)!r}: {error.strerror}"
        ) from error


def _is_taken(path: Path, is_wanted: Callable[[int], bool], key: str = "--output") -> bool:
    """Whether there is something that may be replaced.

    Raises:
        UserError: there is something of another kind, or the folder around it cannot be written.

    """
    where = f"output {str(path)!r}"
    if os.path.lexists(path):
        mode = path.lstat().st_mode
        if not is_wanted(mode):
            kinds = {stat.S_IFLNK: "a symbolic link", stat.S_IFDIR: "a folder", stat.S_IFREG: "a file"}
            what = kinds.get(stat.S_IFMT(mode), "a device, pipe or socket")
            raise UserError(f"{where} is {what}; choose another {key}")
        return True
    around = next(parent for parent in path.absolute().parents if os.path.lexists(parent))
    if not around.is_dir() or not os.access(around, os.W_OK | os.X_OK):
        raise UserError(
            f"{where} cannot be written: {str(around)!r} is not a folder to write into; choose another {key}"
        )
    return False


def _known_names(folder: Path, kind: FolderKind) -> Callable[[str], bool]:
    """Which files of a folder were written there, by their names inside it."""
    try:
        content = json.loads((folder / _LIST).read_text())
        # What tells the kinds apart is the content, and so the line names a file of it.
        known = {_LIST, *(content["files"] if content["kind"] == kind else ())}
    except FileNotFoundError:
        sign, patterns = _WITHOUT_LIST.get(kind, ("", ()))
        return lambda name: (
            (folder / sign).is_file()
            and any(fnmatch(name, pattern) and name.count("/") == pattern.count("/") for pattern in patterns)
        )
    except (OSError, ValueError, TypeError, KeyError):
        known = set()
    return known.__contains__


def _raise(error: OSError) -> None:
    raise error


@contextmanager
def _full_disk_is_said(target: Path) -> Iterator[None]:
    try:
        yield
    except Exception as error:
        if (number := _error_number(error)) not in _FULL:
            raise
        raise UserError(
            f"output {str(target)!r} cannot be written: {os.strerror(number)}; make room, or choose another --output"
        ) from error


def _temporary(target: Path, make) -> Path:
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        return Path(make(dir=target.parent, prefix=f".{target.name}.new-"))
    except OSError as error:
        raise UserError(
            f"output {str(target)!r} cannot be written: {error.strerror}; choose another --output"
        ) from error


def _error_number(error: Exception) -> int:
    """Of the operating system; 0 for other errors. Libraries in Rust give it in words."""
    found = re.search(r"\(os error (\d+)\)", str(error))
    return int(found[1]) if found else getattr(error, "errno", None) or 0


def _exchange(first: Path, second: Path) -> bool:
    """Swap two folders in one step, so that whoever is killed leaves one or the other; False where Linux cannot."""
    try:
        swap = ctypes.CDLL(None, use_errno=True).renameat2
        # The current folder for relative paths, and RENAME_EXCHANGE.
        return swap(-100, os.fsencode(first), -100, os.fsencode(second), 2) == 0
    except (OSError, AttributeError, TypeError):
        return False


def _closed_file(**kwargs) -> str:
    handle, path = tempfile.mkstemp(**kwargs)
    os.close(handle)
    return path


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
