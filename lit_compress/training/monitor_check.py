"""Monitors of Lightning's callbacks that nothing logs: said before a training, or at the first look at its metrics."""

from difflib import get_close_matches
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import EarlyStopping, ModelCheckpoint

from lit_compress.errors import UserError

__all__ = ["MonitorCheck"]


class MonitorCheck(Callback):
    """Refuses a monitor that is not among the metrics.

    Lightning sees it when it first needs the value: after the last window of compression, or never for a checkpoint.
    """

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Without validation no metric of it is there."""
        if trainer.limit_val_batches == 0:
            for name, monitor in _monitors(trainer):
                if monitor.startswith("val"):
                    raise UserError(
                        f"trainer.callbacks: {name} monitors {monitor!r}, and trainer.limit_val_batches is 0; "
                        "validate, or monitor a metric of training"
                    )

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """That before the training has the names, too."""
        self._check(trainer, "val")

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Metrics of validation are there when one has been."""
        if any(name.startswith("val") for name in trainer.callback_metrics):
            self._check(trainer, "")

    def _check(self, trainer: Trainer, beginning: str) -> None:
        known = list(trainer.callback_metrics)
        for name, monitor in _monitors(trainer):
            if monitor not in known and monitor.startswith(beginning):
                near = get_close_matches(monitor, known, n=1)
                hint = f"did you mean {near[0]!r}" if near else f"give one of {', '.join(sorted(known))}"
                raise UserError(f"trainer.callbacks: {name} monitors {monitor!r}, which nothing logs; {hint}")


def _monitors(trainer: Trainer) -> list[tuple[str, str]]:
    """Name and monitor of each callback that cannot do without it."""
    callbacks: list[Any] = trainer.callbacks  # type: ignore[attr-defined]
    return [
        (type(each).__name__.removesuffix("AfterCompression"), each.monitor)
        for each in callbacks
        if isinstance(each, EarlyStopping | ModelCheckpoint) and each.monitor and getattr(each, "strict", True)
    ]
