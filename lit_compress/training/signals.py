"""A fit that is told to stop saves first, so that nothing of it is lost."""

import os
import signal
import subprocess
import threading
import time
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import torch
from lightning.fabric.plugins.environments.slurm import SLURMEnvironment
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Checkpoint

__all__ = ["StopOnSignal", "Stopped", "is_requeued"]

# Seconds in which two signals are one: a batch system sends it to every process of a job, and a recipe hands it on.
_TOGETHER = 0.5


class Stopped(SystemExit):
    """A signal ended the fit; ``code`` is the exit status that shells give it, 128 and its number.

    Args:
        signum: the signal.
        path: checkpoint of the run; it need not be there.
        step: optimizer step at which it was saved because of the signal; None if it was not.

    """

    def __init__(self, signum: int, path: Path, step: int | None = None) -> None:
        super().__init__(128 + signum)
        self.name = signal.Signals(signum).name
        self.path = path
        self.step = step


class StopOnSignal(Checkpoint, AbstractContextManager):
    """Ends a fit at SIGTERM or Ctrl-C: after the batch, with a checkpoint; before and after the training at once.

    Signals are taken from the beginning of its context to the end. A second one ends the process where it is. Under
    SLURM the signal that asks for a requeue, which Lightning would answer in the middle of a batch, is handled the same
    way.

    Args:
        path: checkpoint to write.

    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._before: dict[int, Any] = {}
        self._process = os.getpid()
        self._received, self._when = 0, 0.0
        self._training = False
        self._requeue: int | None = None

    def __enter__(self) -> "StopOnSignal":
        self._take(signal.SIGTERM, signal.SIGINT)
        return self

    def __exit__(self, *_: object) -> None:
        for signum, handler in self._before.items():
            signal.signal(signum, handler)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        environment = trainer._accelerator_connector.cluster_environment
        if isinstance(environment, SLURMEnvironment) and environment.auto_requeue:
            self._requeue = environment.requeue_signal
        # Once more: Lightning has put its own before them, which only notes a SIGTERM and saves nothing.
        self._take(signal.SIGTERM, signal.SIGINT, *([self._requeue] if self._requeue else []))
        self._training = True

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._stop_when_asked(trainer)  # after the last batch; what follows, the model's export, the resumed run does
        self._training = False

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        # A validation that is due now would be left out by the resumed run; it is stopped there.
        if not trainer.fit_loop.epoch_loop._should_check_val_fx(trainer.fit_loop._data_fetcher):  # type: ignore[arg-type]
            self._stop_when_asked(trainer)

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._stop_when_asked(trainer)

    def on_validation_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int, _: int = 0
    ) -> None:
        self._stop_when_asked(trainer)

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        if self._training and trainer.validating and self._received:
            # Its metrics are in no checkpoint, so a validation starts over: nothing of it is done.
            progress = checkpoint["loops"]["fit_loop"]["epoch_loop.val_loop.batch_progress"]
            for counts in (progress["total"], progress["current"]):
                counts.update(ready=1, started=1, processed=0, completed=0)

    def _stop_when_asked(self, trainer: Trainer) -> None:
        if not self._training:  # the validation before the training
            return
        if trainer.world_size > 1:  # of whichever process was told
            received = torch.tensor(self._received, device=trainer.strategy.root_device)
            self._received = int(trainer.strategy.reduce(received, reduce_op="max"))
        if not self._received:
            return
        trainer.save_checkpoint(self.path)
        self._training = False
        if self._received == self._requeue and trainer.is_global_zero:
            subprocess.run(["scontrol", "requeue", _slurm_job()], check=True)
        stopped = Stopped(self._received, self.path, trainer.global_step)
        if not trainer.is_global_zero:
            stopped.code = 0  # a failure here would make Lightning kill the others before they have ended
        raise stopped

    def _take(self, *signals: int) -> None:
        if threading.current_thread() is threading.main_thread():  # others may not
            for signum in signals:
                before = signal.signal(signum, self._receive)
                self._before.setdefault(signum, before)

    def _receive(self, signum: int, _: Any) -> None:
        if os.getpid() != self._process:
            if signum == signal.SIGTERM:  # for this child; others, Ctrl-C's, are sent to its parent as well
                _default(signum)
            return
        if self._received:
            if time.monotonic() - self._when > _TOGETHER:
                _default(signum)
            return
        self._received, self._when = signum, time.monotonic()
        if not self._training:
            raise Stopped(signum, self.path)
        name = signal.Signals(signum).name
        # Not print, which the signal may have interrupted.
        os.write(2, f"\n{name}: saving a checkpoint after this batch; once more ends at once\n".encode())
        if hasattr(signal, "SIGCHLD"):
            # A signal to the whole job ends data loaders' workers, too, which torch would raise as an error now.
            self._before.setdefault(signal.SIGCHLD, signal.signal(signal.SIGCHLD, lambda *_: None))


def _default(signum: int) -> None:
    """Do what the system does at a signal."""
    signal.signal(signum, signal.SIG_DFL)
    signal.raise_signal(signum)


def is_requeued() -> bool:
    """Whether SLURM started this job again."""
    return SLURMEnvironment.detect() and os.environ.get("SLURM_RESTART_COUNT", "0") != "0"


def _slurm_job() -> str:
    array = os.environ.get("SLURM_ARRAY_JOB_ID")
    return f"{array}_{os.environ['SLURM_ARRAY_TASK_ID']}" if array else os.environ["SLURM_JOB_ID"]
