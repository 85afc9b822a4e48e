"""Batches that are drawn outside the loops of a training, brought to its device as the loops do it."""

from typing import Any

from lightning.pytorch import Trainer

__all__ = ["to_device"]


def to_device(batch: Any, trainer: Trainer) -> Any:
    """A batch on the device of a training, through all that Lightning's loops send it through.

    Args:
        batch: as the loader gives it.
        trainer: Lightning's, or one of Transformers as the strategies see it, which has no such hooks.

    """
    if isinstance(trainer, Trainer) and trainer.lightning_module is not None:  # not of a strategy set up by hand
        batch = trainer.precision_plugin.convert_input(batch)
        batch = trainer.lightning_module._on_before_batch_transfer(batch)
    return trainer.strategy.batch_to_device(batch)
