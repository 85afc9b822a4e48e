"""Options of Lightning's that cannot work, in one line each and before anything is started."""

import os
import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.accelerators import AcceleratorRegistry, CPUAccelerator
from lightning.pytorch.callbacks import (
    BackboneFinetuning,
    BatchSizeFinder,
    GradientAccumulationScheduler,
    LearningRateFinder,
    StochasticWeightAveraging,
    WeightAveraging,
)
from lightning.pytorch.loggers import Logger

from lit_compress.errors import UserError
from lit_compress.strategies import FreezeEmbeddings
from lit_compress.strategies.strategy import Strategy
from lit_compress.usage_errors import user_error

__all__ = ["check_callbacks", "check_seed", "checked_trainer", "refused", "told_in_one_line"]

_SEEDS = 2**32
_FEW_PROCESSES = 8
# Lightning's name for whichever of them there is.
_GPUS = ("cuda", "mps")
# What each does to a run; none of them knows of schedules by the step.
_WRONG: dict[type, str] = {
    StochasticWeightAveraging: "averages the weights that epochs begin with, so that the last one counts for nothing, "
    "and replaces the rates of model.optimization; leave it out, or without compression use EMAWeightAveraging",
    WeightAveraging: "averages masks and scales with the weights, so that the sparsity is lost; leave it out, or the "
    "compression",
    LearningRateFinder: "leaves the training at another place in its data, and warm-up and decay replace the rate that "
    "it sets; search with Lightning's Tuner in Python, and give model.optimization.learning_rate",
    BatchSizeFinder: "changes the batch size when the schedules are made for the one that was given; search with "
    "Lightning's Tuner in Python, and give data.batch_size",
    BackboneFinetuning: "freezes a `backbone`, which is called `student` here; leave it out, or use FreezeEmbeddings",
    GradientAccumulationScheduler: "changes how many optimizer steps there are, from which all schedules follow; give "
    "trainer.accumulate_grad_batches",
}
_KEYS: dict[type, str] = {Logger: "trainer.logger", Callback: "trainer.callbacks"}


def check_seed(seed: int) -> None:
    """Raise a ``UserError`` for a seed that NumPy does not take."""
    if not 0 <= seed < _SEEDS:
        raise UserError(f"seed_everything: {seed} must be from 0 to {_SEEDS - 1}")


def checked_trainer(options: Mapping[str, Any]) -> Trainer:
    """Lightning's trainer.

    Args:
        options: of its constructor.

    Raises:
        UserError: the constructor refuses one, or it would fail later, or it asks for what the machine does not have.

    """
    _check_accelerator(options.get("accelerator"))
    if (batches := options.get("accumulate_grad_batches", 1)) < 1:
        raise UserError(f"trainer.accumulate_grad_batches: {batches} must be 1 or more")
    try:
        trainer = Trainer(**options)
    except (MisconfigurationException, ModuleNotFoundError, TypeError, ValueError) as error:
        if user_error(error, UserError) is not None:
            raise
        raise UserError(f"trainer: {_in_one_line(error)}") from error
    # A few more than there are cores are slow and work; many are a mistake, and die of memory in a hundred lines.
    most = max(os.cpu_count() or 1, _FEW_PROCESSES)
    if isinstance(trainer.accelerator, CPUAccelerator) and trainer.num_devices > most:
        raise UserError(
            f"trainer.devices: {trainer.num_devices} processes are more than this machine's CPU is for; give at most "
            f"{most}"
        )
    return trainer


def check_callbacks(callbacks: Iterable[Callback]) -> None:
    """Raise a ``UserError`` for a callback of Lightning's with which a training would go wrong unseen."""
    callbacks = list(callbacks)
    compress = [each for each in callbacks if isinstance(each, Strategy) and not isinstance(each, FreezeEmbeddings)]
    for callback in callbacks:
        reason = next((why for kind, why in _WRONG.items() if isinstance(callback, kind)), None)
        if isinstance(callback, GradientAccumulationScheduler) and len(callback.scheduling) == 1:
            continue  # the trainer's own
        if isinstance(callback, WeightAveraging) and not compress:
            continue
        if reason is not None:
            raise UserError(f"trainer.callbacks: {type(callback).__name__} {reason}")


@contextmanager
def told_in_one_line() -> Iterator[None]:
    """What Lightning only finds wrong once it knows how many batches and which metrics there are.

    Raises:
        UserError: with Lightning's reason.

    """
    try:
        yield
    except (MisconfigurationException, ValueError, RuntimeError) as error:
        if isinstance(error, UserError):
            raise
        if named := re.search(r"`(limit_(?:train|val)_batches|val_check_interval|overfit_batches)\b", str(error)):
            raise UserError(f"trainer.{named[1]}: {_in_one_line(error)}") from error
        if re.search(r"conditioned on metric|the monitored key|that has no logger", str(error)):
            raise UserError(f"trainer.callbacks: {_in_one_line(error)}") from error
        raise


def refused(error: Exception) -> UserError | None:
    """What a class of Lightning's that a configuration names said about its arguments; None for any other error.

    Args:
        error: of the parser, which has a dozen lines about every type that it tried.

    """
    if user_error(error, UserError) is not None:
        return None
    # One class of a list is only in the text.
    if named := re.search(r"class_path '([\w.]+)':\s+Requirement '([\w.-]+)", str(error)):
        path, package = named.groups()
        key = "trainer.logger" if ".loggers." in path else "trainer.callbacks"
        return _missing(key, path.rpartition(".")[2], package)
    cause = user_error(error, MisconfigurationException) or user_error(error, ModuleNotFoundError)
    if cause is None or cause.__traceback__ is None:
        return None
    trace = cause.__traceback__
    while trace.tb_next is not None:
        trace = trace.tb_next
    made = trace.tb_frame.f_locals.get("self")
    key = next((key for kind, key in _KEYS.items() if isinstance(made, kind)), None)
    if key is None:
        return None
    name = type(made).__name__
    if missing := re.search(r"(?:Requirement|Module not found:) '([\w-]+)", str(cause)):
        return _missing(key, name, missing[1])
    return UserError(f"{key}: {name}: {_in_one_line(cause)}")


def _missing(key: str, name: str, package: str) -> UserError:
    return UserError(f"{key}: {name} needs {package!r}, which is not installed; pip install {package}")


def _check_accelerator(given: Any) -> None:
    if not isinstance(given, str) or given == "auto":
        return
    known = AcceleratorRegistry.available_accelerators()
    there = [name for name in known if AcceleratorRegistry[name]["accelerator"].is_available()]
    wanted = _GPUS if given == "gpu" else (given,)
    if not {*wanted} & {*there}:
        raise UserError(f"trainer.accelerator: {given!r} is not on this machine; give one of auto, {', '.join(there)}")


def _in_one_line(error: BaseException) -> str:
    return " ".join(str(error).split())
