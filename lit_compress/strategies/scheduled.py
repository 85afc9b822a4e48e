"""A strategy that does something at certain steps; when these are is written here and nowhere else."""

from typing import Any

from lightning.pytorch import LightningModule, Trainer

from lit_compress.functional.schedules import EqualParts, Updates
from lit_compress.strategies.strategy import Strategy
from lit_compress.strategies.window import Window
from lit_compress.training_steps import stepped

__all__ = ["Scheduled"]


class Scheduled(Strategy):
    """Calls :meth:`update` after the optimizer steps of a window, and before the first one when that begins at 0.

    Subclass it, set ``window``, and define :meth:`prepare`, :meth:`update` and :meth:`amounts`. A run that resumes from
    a checkpoint calls the same updates at the same steps, because nothing but the step decides.

    Attributes:
        window: a :class:`Window` or :class:`PartsWindow`; None never calls :meth:`update`.

    """

    window: Window | None = None

    def update(self, trainer: Trainer, pl_module: LightningModule, progress: float) -> None:
        """Change values in place, such as masks; ``progress`` goes from 0 at the window's start to 1 at its end."""
        raise NotImplementedError(f"{type(self).__name__} must define update(trainer, pl_module, progress)")

    def updates(self, trainer: Trainer) -> Updates | EqualParts:
        """The steps of the updates; a ``UserError`` when the window does not fit the run."""
        assert self.window is not None
        return self.window.updates(trainer)

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        super().setup(trainer, pl_module, stage)
        if stage == "fit" and self.window is not None:
            self.updates(trainer)  # a window that does not fit this run is an error now, not an hour later

    def end(self, trainer: Trainer) -> int:
        return 0 if self.window is None else self.updates(trainer).last

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.global_step == 0:
            self._update_when_due(trainer, pl_module)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if stepped(trainer, batch_idx):
            self._update_when_due(trainer, pl_module)

    def _update_when_due(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self.window is None:
            return
        updates, step = self.updates(trainer), trainer.global_step
        if step in updates:
            # A module that leaves out steps on the device says so before anything else changes.
            if (check := getattr(pl_module, "check_finite", None)) is not None:
                check()
            self.update(trainer, pl_module, updates.progress(step))
