"""Where files come from and how they are written: paths in packages, outputs that appear whole or not at all."""

import ctypes
import errno
import importlib.util
import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from lit_compress.errors import UserError

__all__ = ["absolute_source", "atomic_file", "atomic_folder", "resolve_source"]

_PACKAGE = "package:"
# No room on the disk, in a quota or in a file; and a disk that turned read-only.
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS)


def resolve_source(source: str, key: str) -> str:
    """Turn ``package:name/inner/path`` into the path of a file or folder that an installed package ships.

    Args:
        source: a path, a hub name (both returned unchanged) or ``package:``, an import name and a path inside it.
        key: config key named in the error.

    Raises:
        UserError: the package is not installed or has no such path; or a path, which no hub name looks like, does
            not exist.

    """
    if not source.startswith(_PACKAGE):
        # A hub name is "name" or "owner/name".
        if not Path(source).exists() and (source.startswith((".", "/", "~")) or source.count("/") > 1):
            raise UserError(f"{key}: {source!r} does not exist; give a path that does, or a hub name")
        return source
    name, _, inner = source.removeprefix(_PACKAGE).partition("/")
    spec = importlib.util.find_spec(name) if name.isidentifier() else None
    if spec is None or not spec.submodule_search_locations:
        raise UserError(
            f"{key}: {source!r} names package {name!r}, which is not installed; pip install it, or give a path"
        )
    path = Path(spec.submodule_search_locations[0]) / inner
    if not path.exists():
        raise UserError(f"{key}: {source!r}: the package {name!r} has no {inner!r}")
    return str(path)


def absolute_source(source: str) -> str:
    """A path that exists as an absolute one, for whoever reads it elsewhere; hub names and ``package:`` as they are."""
    return os.path.abspath(source) if Path(source).exists() else source


@contextmanager
def atomic_folder(target: str | Path, overwrite: bool = False) -> Iterator[Path]:
    """Give a temporary sibling folder that becomes ``target`` when the block ends without an exception.

    Args:
        target: the folder to create.
        overwrite: replace an existing folder; without it an existing one is an error.

    Raises:
        UserError: the folder exists, or its parent cannot be written.

    """
    target = Path(target)
    if target.exists() and not overwrite:
        raise UserError(f"output {str(target)!r} exists; choose another --output, or allow it with --overwrite true")
    staging = _temporary(target, tempfile.mkdtemp)
    try:
        yield staging
        staging.chmod(0o777 & ~_umask())
        for path in staging.rglob("*"):
            # Some writers make their files private; a model folder is for whoever may read its parent.
            path.chmod((0o777 if path.is_dir() else 0o666) & ~_umask())
        if not target.exists():
            staging.rename(target)
        elif not _exchange(staging, target):  # where it can, the old folder is the temporary one then
            # rename() cannot replace a non-empty folder: move the old one aside, so that it is never half gone.
            retired = Path(tempfile.mkdtemp(dir=target.parent, prefix=f".{target.name}.old-")) / target.name
            target.rename(retired)
            try:
                staging.rename(target)
            except BaseException:
                retired.rename(target)
                raise
            finally:
                shutil.rmtree(retired.parent)
    except Exception as error:
        if (number := _error_number(error)) not in _FULL:
            raise
        raise UserError(
            f"output {str(target)!r} cannot be written: {os.strerror(number)}; make room, or choose another --output"
        ) from error
    finally:
        shutil.rmtree(staging, ignore_errors=True)


@contextmanager
def atomic_file(target: str | Path) -> Iterator[Path]:
    """Give a temporary sibling path that replaces ``target`` when the block ends without an exception."""
    target = Path(target)
    staging = _temporary(target, lambda **kwargs: _closed_file(**kwargs))
    try:
        yield staging
        staging.chmod(0o666 & ~_umask())
        staging.replace(target)
    finally:
        staging.unlink(missing_ok=True)


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
