"""Progress as a bar where there is a terminal or a notebook, and else a line every few seconds."""

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import ProgressBar, RichProgressBar, TQDMProgressBar
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

__all__ = ["ProgressLines", "counted", "progress_bar"]


def progress_bar() -> ProgressBar:
    """What shows progress here: rich in a terminal, tqdm in a notebook, lines in a file."""
    if Console().is_jupyter:
        return TQDMProgressBar()
    return RichProgressBar() if sys.stdout.isatty() else ProgressLines()


@contextmanager
def counted(what: str, total: int, unit: str = "examples", done: int = 0) -> Iterator[Callable[[int], None]]:
    """Show how much of some work is done: a bar in a terminal, else a line every ten seconds.

    Args:
        what: what is being done, for example ``Predicting``.
        total: how many units there are.
        unit: their name.
        done: how many were done before.

    Yields:
        A function that is told how many are done.

    """
    begun = last = time.monotonic()
    console = Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[rate]}"))
    with Progress(*columns, TimeRemainingColumn(), console=console, disable=not console.is_terminal) as bar:
        shown = bar.add_task(what, total=total, completed=done, rate="")

        def tell(now: int) -> None:
            nonlocal last
            rate = (now - done) / max(time.monotonic() - begun, 1e-9)
            bar.update(shown, completed=now, rate=f"{rate:,.4g} {unit}/s")
            if console.is_terminal or time.monotonic() - last < _SECONDS or not rate:
                return
            last = time.monotonic()
            left = timedelta(seconds=round((total - now) / rate))
            sys.stderr.write(f"{what}: {now:,} of {total:,} {unit}, {rate:,.4g} a second, {left} left\n")

        yield tell


_SECONDS = 10.0


class ProgressLines(ProgressBar):
    """Prints epoch, step, loss parts and sparsity, for log files and batch systems.

    Args:
        seconds: least time between two lines.

    """

    def __init__(self, seconds: float = _SECONDS) -> None:
        super().__init__()
        self.seconds = seconds
        self._last = -seconds
        self._batches: int | float = 0
        self._enabled = True

    def disable(self) -> None:
        self._enabled = False

    def enable(self) -> None:
        self._enabled = True

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._batches = 0

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._batches = 0

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        # Counted at the first batch of an epoch, or of the rest of one that a resumed run goes on with.
        if self._batches == 0:
            self._batches = trainer.num_training_batches
            if trainer.max_epochs == -1 and trainer.max_steps > 0:
                left = (trainer.max_steps - trainer.global_step) * trainer.accumulate_grad_batches
                self._batches = min(self._batches, batch_idx + left)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if time.monotonic() - self._last >= self.seconds:
            self._last = time.monotonic()
            self._line(trainer, pl_module, f"batch {batch_idx + 1}/{self._batches}")

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if not trainer.sanity_checking:
            self._line(trainer, pl_module, "validated")

    def _line(self, trainer: Trainer, pl_module: LightningModule, where: str) -> None:
        if not self._enabled or not trainer.is_global_zero:
            return
        metrics = {k: v for k, v in self.get_metrics(trainer, pl_module).items() if isinstance(v, float)}
        values = "  ".join(f"{name} {value:.4g}" for name, value in metrics.items())
        epochs = f"/{trainer.max_epochs}" if (trainer.max_epochs or -1) > 0 else ""
        print(f"epoch {trainer.current_epoch + 1}{epochs}  {where}  {values}", flush=True)  # noqa: T201
