"""Checkpoints that are whole whatever happens while they are written."""

import os
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from lightning.fabric.plugins import TorchCheckpointIO
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint

from lit_compress.errors import UserError
from lit_compress.export.checkpoint import PREVIOUS
from lit_compress.training.run_lock import Claim
from lit_compress.training_steps import stepped

__all__ = ["LastCheckpoint", "WholeCheckpoints"]


class LastCheckpoint(ModelCheckpoint):
    """Writes ``last.ckpt`` every so many optimizer steps.

    Args:
        path: the file, always the same.
        every: optimizer steps between two of them.

    """

    def __init__(self, path: Path, every: int) -> None:
        super().__init__(path.parent, path.stem, every_n_train_steps=every, enable_version_counter=False)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        # Lightning looks at the number of steps alone, and after a resume writes that of the resume again.
        if stepped(trainer, batch_idx):
            super().on_train_batch_end(trainer, pl_module, outputs, batch, batch_idx)


class WholeCheckpoints(TorchCheckpointIO):
    """Writes next to the target, onto the disk, and only then replaces it.

    Lightning's own goes through the temporary folder, from where on another file system it is copied over the target.

    Args:
        last: checkpoint whose predecessor is kept, as ``previous.ckpt``.
        resumed: checkpoint that the run resumes from.
        claim: of the run folder; nothing is written any more when another process has taken it.

    """

    def __init__(self, last: Path, resumed: str | None = None, claim: Claim | None = None) -> None:
        super().__init__()
        self.last = last.absolute()
        self._claim = claim
        # What a run resumes from is not given up for the damaged one in its place.
        self._keeps = resumed is None or Path(resumed).absolute() != self.last.with_name(PREVIOUS)

    def save_checkpoint(
        self, checkpoint: Mapping[str, Any], path: str | Path, storage_options: Any | None = None
    ) -> None:
        """Write one file.

        Raises:
            UserError: there is no room, or it cannot be written for another reason; or the run is another process's.

        """
        if self._claim is not None and not self._claim.holds():
            raise UserError(
                f"run: another `fit` has taken {str(self._claim.lock.parent)!r}, as this one gave no sign of life for "
                f"minutes, or its {self._claim.lock.name} was removed; this one ends without writing"
            )
        if "://" in str(path):
            super().save_checkpoint(dict(checkpoint), path, storage_options)
            return
        target = Path(path)
        staging = target.with_name(f"{target.name}.part")
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            with staging.open("wb") as file:
                torch.save(checkpoint, file)
                file.flush()
                os.fsync(file.fileno())
            if target.absolute() == self.last:
                if self._keeps:
                    _keep(target)
                self._keeps = True
            staging.replace(target)
            _sync_folder(target.parent)
        except BaseException as error:
            with suppress(OSError):
                staging.unlink()
            if not isinstance(error, Exception) or (reason := _reason(error)) is None:
                raise
            raise UserError(
                f"checkpoint: {str(path)!r} cannot be written: {reason}; an earlier one is not touched: make room, and "
                "resume from it with --ckpt_path last"
            ) from error


def _keep(target: Path) -> None:
    """Keep a checkpoint that is about to be replaced; at every moment one of the two is there."""
    if not target.exists():
        return
    previous = target.with_name(PREVIOUS)
    previous.unlink(missing_ok=True)
    try:
        previous.hardlink_to(target)
    except OSError:  # a file system without such links
        target.replace(previous)


def _sync_folder(folder: Path) -> None:
    """Bring the names in a folder to the disk, where that can be asked for."""
    with suppress(OSError):
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def _reason(error: BaseException | None) -> str | None:
    """What the system said; torch hides it behind errors of its own."""
    while error is not None and not isinstance(error, OSError):
        error = error.__cause__ or error.__context__
    return os.strerror(error.errno) if error is not None and error.errno else None
