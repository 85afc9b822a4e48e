"""The learning rate in the logs, once: all weights of a module share it."""

from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer

__all__ = ["LearningRateLog"]


class LearningRateLog(Callback):
    """Logs the learning rate as ``lr``; where scores of movement pruning have another one, that as ``lr_scores``."""

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        if not trainer._logger_connector.should_update_logs:
            return
        groups = [group for optimizer in trainer.optimizers for group in optimizer.param_groups]
        rates = {"lr": groups[0]["lr"]}
        if others := [group["lr"] for group in groups if _peak(group) != _peak(groups[0])]:
            rates["lr_scores"] = others[0]
        for logger in trainer.loggers:
            logger.log_metrics(rates, step=trainer.fit_loop.epoch_loop._batches_that_stepped)


def _peak(group: dict[str, Any]) -> float:
    """What its schedule multiplies."""
    return group.get("initial_lr", group["lr"])
