"""How many optimizer steps a run has, which schedules of all kinds start from; where in it a batch ends; its seed."""

import math
import os
from typing import Any

from lightning.pytorch import Trainer

from lit_compress.errors import UserError

__all__ = ["interrupted", "is_logged", "run_seed", "stepped", "training_steps"]


def training_steps(trainer: Trainer) -> tuple[int, float]:
    """Optimizer steps of the run, and of one epoch (infinite for a stream of data).

    Raises:
        UserError: the run has no batches, or no end.

    """
    if trainer.train_dataloader is None:
        trainer.fit_loop.setup_data()  # its length is not known before; Lightning's own estimate does the same
    total, batches = trainer.estimated_stepping_batches, trainer.num_training_batches
    if trainer.limit_train_batches == 0:
        raise UserError("trainer.limit_train_batches: 0 leaves nothing to train on; give more, or leave it out")
    if math.isinf(total) or total < 0:
        raise UserError("trainer.max_epochs: -1 is a run without an end; give trainer.max_epochs or trainer.max_steps")
    # Lightning also steps at the last batch of an epoch, so an epoch is a whole number of steps.
    return int(total), batches if math.isinf(batches) else math.ceil(batches / trainer.accumulate_grad_batches)


def stepped(trainer: Trainer, batch_idx: int) -> bool:
    """Whether the batch that just ended also ended an optimizer step (gradient accumulation skips some)."""
    return (batch_idx + 1) % trainer.accumulate_grad_batches == 0 or trainer.is_last_batch


def is_logged(trainer: Trainer, batch_idx: int) -> bool:
    """Whether loggers write what is logged in this batch, or it is the epoch's last, after which people look."""
    now = trainer._logger_connector.should_update_logs or trainer.fast_dev_run  # type: ignore[attr-defined]
    return trainer.is_last_batch or (stepped(trainer, batch_idx) and bool(now))


def interrupted(trainer: Trainer) -> bool:
    """Whether a training batch has begun and did not end: an exception came out of it."""
    batches: Any = trainer.fit_loop.epoch_loop.batch_progress.current  # declared as of a base class
    return batches.ready > batches.processed


def run_seed() -> int:
    """The seed of the run, as Lightning leaves it."""
    return int(os.environ.get("PL_GLOBAL_SEED", 0))
