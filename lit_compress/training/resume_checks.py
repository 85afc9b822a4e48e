"""What a run began with and what it is to continue with: the same, or it says where not."""

import logging
from collections import Counter
from collections.abc import Mapping
from fnmatch import fnmatch
from typing import Any

from lit_compress.errors import UserError

__all__ = ["check_length", "check_resumed"]

# Other values would count for nothing (the checkpoint has its own) or put the run at another place in its data.
_FIXED = ("seed_everything", "trainer.accumulate_grad_batches", "model.optimization.*", "data.*")
# Those of the data that a training does not see, and those that have to follow what was moved.
_FREE = (
    *("data.val_file", "data.test_file", "data.predict_file", "data.hub_val_split"),
    *("data.eval_batch_size", "data.eval_limit", "data.num_workers", "data.cache_dir"),
)
_MOVED = ("data.train_file", "data.tokenizer", "data.augmentation.model")
# What else shapes a training; a change has an effect, which may be meant.
_SHAPING = (
    *("model.*", "compression.*", *_MOVED),
    *("trainer.devices", "trainer.num_nodes", "trainer.strategy", "trainer.strategy.*", "trainer.precision"),
    *("trainer.gradient_clip_val", "trainer.gradient_clip_algorithm", "trainer.sync_batchnorm"),
    *("trainer.limit_train_batches", "trainer.overfit_batches", "trainer.reload_dataloaders_every_n_epochs"),
)
_NO_MATTER = ("model.tokenizer", "model.teacher_cache", "model.compile", "model.gradient_checkpointing")


def check_resumed(began: Mapping[str, Any], now: Mapping[str, Any]) -> None:
    """Compare the configuration of a run with the one that it is resumed with.

    Args:
        began: as saved in the run; what it does not know, being older, is not compared.
        now: as given.

    Raises:
        UserError: the difference would be without effect, or change the course of the training unseen; others are
            said.

    """
    strategies = [[_name(entry) for entry in config.get("compression") or []] for config in (began, now)]
    if missing := [*(Counter(strategies[0]) - Counter(strategies[1])).elements()]:
        raise UserError(
            f"compression: the run began with {', '.join(strategies[0])} and this has no {missing[0]}; give the same "
            "compression, or begin a new --run"
        )
    before, after = _flat(began), _flat(now)
    files = [flat.get("data.val_file") for flat in (before, after)]
    held_out = "data.val_file" in before and not before.get("data.hub")  # which has a split to validate on
    if held_out and (files[0] is None) != (files[1] is None):
        raise UserError(
            f"data.val_file: the run began with {files[0]!r} and this is {files[1]!r}; without one, rows of the "
            "training file are held out, and the training data is another; give the same, or begin a new --run"
        )
    for key in sorted(before.keys() & after.keys()):
        if before[key] == after[key] or _any(key, _FREE + _NO_MATTER):
            continue
        if _any(key, _FIXED) and not _any(key, _MOVED):
            raise UserError(
                f"{key}: the run began with {before[key]!r} and this is {after[key]!r}; give the same, or begin a new "
                "--run"
            )
        if _any(key, _SHAPING):
            logging.getLogger(__name__).warning(
                "%s: the run began with %r and continues with %r", key, before[key], after[key]
            )


def check_length(trainer: Mapping[str, Any], checkpoint: Mapping[str, Any]) -> None:
    """Raise a ``UserError`` when a checkpoint is from after the end of the run that is to resume from it.

    Args:
        trainer: options of the run.
        checkpoint: content.

    """
    for key, done in (("max_epochs", "epoch"), ("max_steps", "global_step")):
        limit = trainer.get(key)
        if limit is not None and 0 <= limit < checkpoint.get(done, 0):
            raise UserError(
                f"trainer.{key}: {limit} is below {checkpoint[done]}, where the checkpoint is; give "
                f"{checkpoint[done]} or more, or begin a new --run"
            )


def _flat(settings: Any, key: str = "") -> dict[str, Any]:
    """Dotted keys as people give them: classes by their name, and their arguments right below them."""
    if isinstance(settings, Mapping) and "class_path" in settings:
        inner = _flat(settings.get("init_args") or {}, key)
        return inner | {f"{key}.class_path": _name(settings)}
    if isinstance(settings, Mapping):
        return {k: v for name, value in settings.items() for k, v in _flat(value, f"{key}.{name}".strip(".")).items()}
    if isinstance(settings, list) and all(isinstance(entry, Mapping) for entry in settings):
        numbered = zip(settings, _numbered([_name(entry) for entry in settings]), strict=True)
        return {k: v for entry, name in numbered for k, v in _flat(entry, f"{key}.{name}").items()}
    return {key: settings}


def _numbered(names: list[str]) -> list[str]:
    """The second of a name with a 2."""
    seen: Counter[str] = Counter()
    found = []
    for name in names:
        seen[name] += 1
        found.append(name if seen[name] == 1 else f"{name} {seen[name]}")
    return found


def _name(entry: Any) -> str:
    """A class's own name, wherever it is imported from."""
    path = entry.get("class_path", "") if isinstance(entry, Mapping) else entry
    return str(path).rpartition(".")[2]


def _any(key: str, patterns: tuple[str, ...]) -> bool:
    return any(fnmatch(key, pattern) for pattern in patterns)
