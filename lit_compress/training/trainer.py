"""A `Trainer` with what every run has switched on."""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from lightning.fabric.plugins import CheckpointIO
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.callbacks import Checkpoint, LearningRateMonitor, ProgressBar
from lightning.pytorch.loggers import TensorBoardLogger

from lit_compress.errors import UserError
from lit_compress.files import last_of
from lit_compress.progress import progress_bar
from lit_compress.strategies.after_compression import after_compression
from lit_compress.strategies.monitor import CompressionMonitor
from lit_compress.training.checkpoints import LastCheckpoint, WholeCheckpoints
from lit_compress.training.learning_rate_log import LearningRateLog
from lit_compress.training.run_lock import Claim
from lit_compress.training.trainer_options import checked_trainer

__all__ = ["DEFAULTS", "make_trainer"]

# Options that differ from Lightning's own.
DEFAULTS: dict[str, Any] = {
    "max_epochs": 3,
    "gradient_clip_val": 1.0,
    "log_every_n_steps": 10,
    # The data module deals out batches itself, whole and grouped by length.
    "use_distributed_sampler": False,
}


def make_trainer(
    run: Path,
    strategies: Sequence[Callback],
    options: Mapping[str, Any],
    checkpoint_every: int,
    resumed: str | None = None,
    callbacks: Iterable[Callback] = (),
    claim: Claim | None = None,
) -> Trainer:
    """A trainer whose strategies come first and whose checkpoints are whole.

    Args:
        run: folder of the run.
        strategies: in their order.
        options: of the `Trainer`; what somebody chose there stays.
        checkpoint_every: optimizer steps between two checkpoints.
        resumed: checkpoint that is resumed from.
        callbacks: of this package, after all others; those that save are left out where nothing is saved.
        claim: of the run folder; nothing is written when another process has taken it.

    Raises:
        UserError: an option cannot work.

    """
    if checkpoint_every < 0:
        raise UserError(f"checkpoint_every: {checkpoint_every} must be 1 or more steps, or 0 for the end alone")
    chosen = dict(options)
    if chosen.get("logger") in (None, True):
        chosen["logger"] = TensorBoardLogger(str(run), name="", version="", default_hp_metric=False)
    # Strategies come first, in their order; Lightning itself puts checkpointing last.
    given = [*strategies, *_as_list(chosen.get("callbacks"))]
    all_callbacks = [*strategies, *map(after_compression, given[len(strategies) :])]
    # What somebody gave with other options is not there twice.
    if not _has(given, CompressionMonitor):
        all_callbacks.append(CompressionMonitor())
    if chosen.get("logger") is not False and not _has(given, LearningRateMonitor):
        all_callbacks.append(LearningRateLog())
    if chosen.get("enable_progress_bar") is not False and not _has(given, ProgressBar):
        all_callbacks.append(progress_bar())
    saves = chosen.get("enable_checkpointing") is not False
    if saves:
        last = last_of(run)
        all_callbacks.append(LastCheckpoint(last, checkpoint_every))
        plugins = _as_list(chosen.get("plugins"))
        if not any(isinstance(plugin, CheckpointIO) for plugin in plugins):
            chosen["plugins"] = [*plugins, WholeCheckpoints(last, resumed, claim)]
    saves = saves and not chosen.get("fast_dev_run")
    all_callbacks += [each for each in callbacks if saves or not isinstance(each, Checkpoint)]
    return checked_trainer(chosen | {"default_root_dir": str(run), "callbacks": all_callbacks})


def _has(callbacks: Iterable[Callback], kind: type[Callback]) -> bool:
    return any(isinstance(callback, kind) for callback in callbacks)


def _as_list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value] if value else []
