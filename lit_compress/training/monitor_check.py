"""Metrics of validation that callbacks of Lightning's wait for and nothing logs: said before the first step."""

from difflib import get_close_matches
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import EarlyStopping, ModelCheckpoint

from lit_compress.errors import UserError

__all__ = ["MonitorCheck"]

# Whose metrics are all there in the validation before a training; somebody's own may log others later.
_KNOWN = ("lit_compress", "lightning")


class MonitorCheck(Callback):
    """Refuses a monitor of validation that is not among its metrics; Lightning sees it after an epoch."""

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Without validation there are none."""
        if trainer.limit_val_batches == 0:
            for name, monitor in _monitors(trainer, pl_module):
                raise UserError(
                    f"trainer.callbacks: {name} monitors {monitor!r}, and trainer.limit_val_batches is 0; validate, or "
                    "monitor a metric of training"
                )

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """In the validation before the training."""
        if not trainer.sanity_checking:
            return
        known = list(trainer.callback_metrics)
        for name, monitor in _monitors(trainer, pl_module):
            if monitor not in known:
                near = get_close_matches(monitor, known, n=1)
                hint = f"did you mean {near[0]!r}" if near else f"give one of {', '.join(sorted(known))}"
                raise UserError(f"trainer.callbacks: {name} monitors {monitor!r}, which nothing logs; {hint}")


def _monitors(trainer: Trainer, pl_module: LightningModule) -> list[tuple[str, str]]:
    """Name and monitor of each callback that cannot do without a metric of validation."""
    callbacks: list[Any] = trainer.callbacks  # type: ignore[attr-defined]
    if any(type(each).__module__.partition(".")[0] not in _KNOWN for each in (pl_module, *callbacks)):
        return []
    return [
        (type(each).__name__.removesuffix("AfterCompression"), each.monitor)
        for each in callbacks
        if isinstance(each, EarlyStopping | ModelCheckpoint) and getattr(each, "strict", True)
        if each.monitor and each.monitor.startswith("val")
    ]
