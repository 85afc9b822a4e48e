"""Early stopping and best checkpoints that count only once everything is compressed."""

import logging
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import EarlyStopping, ModelCheckpoint
from torch import Tensor

from lit_compress.strategies.strategy import Strategy
from lit_compress.training_steps import training_steps

__all__ = ["EarlyStoppingAfterCompression", "ModelCheckpointAfterCompression", "after_compression", "compression_end"]


def compression_end(trainer: Trainer) -> int:
    """Optimizer step from which on all strategies of a run are done; 0 without any that takes its time."""
    callbacks: Any = trainer.callbacks  # type: ignore[attr-defined]
    return max((callback.end(trainer) for callback in callbacks if isinstance(callback, Strategy)), default=0)


class EarlyStoppingAfterCompression(EarlyStopping):
    """Lightning's ``EarlyStopping``, which before the end of the last strategy sees no metric.

    While weights go, a metric falls, and a model that is half compressed is better than the one that was asked for.
    """

    @property
    def state_key(self) -> str:
        return _stock_key(super().state_key, self, EarlyStopping)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        super().on_train_start(trainer, pl_module)
        _tell(self, EarlyStopping, trainer)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.global_step >= compression_end(trainer):
            super().on_train_epoch_end(trainer, pl_module)
        elif self._check_on_train_epoch_end:
            self._look_for_metric(trainer)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.sanity_checking or trainer.global_step >= compression_end(trainer):
            super().on_validation_end(trainer, pl_module)
        elif not self._check_on_train_epoch_end:
            self._look_for_metric(trainer)

    def _look_for_metric(self, trainer: Trainer) -> None:
        """Lightning's error for a metric that nothing logs, before a training with compression is lost."""
        self._validate_condition_metric(trainer.callback_metrics)


class ModelCheckpointAfterCompression(ModelCheckpoint):
    """Lightning's ``ModelCheckpoint``, for which no model before the end of the last strategy is among the best."""

    @property
    def state_key(self) -> str:
        return _stock_key(super().state_key, self, ModelCheckpoint)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        super().on_train_start(trainer, pl_module)
        _tell(self, ModelCheckpoint, trainer)

    def check_monitor_top_k(self, trainer: Trainer, current: Tensor | None = None) -> bool:
        # -1 keeps every checkpoint, which is not a choice of the best.
        if self.save_top_k != -1 and trainer.global_step < compression_end(trainer):
            return False
        return super().check_monitor_top_k(trainer, current)


def after_compression(callback: Callback) -> Callback:
    """The same callback, counting after the compression where it is Lightning's own and looks at a metric."""
    if type(callback) is EarlyStopping:
        callback.__class__ = EarlyStoppingAfterCompression
    elif type(callback) is ModelCheckpoint and callback.monitor is not None:
        callback.__class__ = ModelCheckpointAfterCompression
    return callback


def _stock_key(key: str, callback: Callback, stock: type[Callback]) -> str:
    """The name under which checkpoints keep the state of the stock callback: older ones still load."""
    return key.replace(type(callback).__qualname__, stock.__qualname__, 1)


def _tell(callback: Any, stock: type[Callback], trainer: Trainer) -> None:
    end = compression_end(trainer)
    if end and trainer.is_global_zero:
        total, _ = training_steps(trainer)
        when = f"from step {end} of {total} on, when everything is compressed"
        logging.getLogger(__name__).warning(f"{stock.__name__} of {callback.monitor} counts {when}")
