"""A teacher that runs once on each training example; its logits are kept on disk for all epochs and runs."""

import hashlib
import json
import shutil
import uuid
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from datasets import Dataset
from datasets.utils import tqdm
from lightning.pytorch import Trainer
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor, nn
from torch.utils.data import DataLoader

from lit_compress.console import say
from lit_compress.data.batch_transfer import to_device
from lit_compress.data.batches import LengthGroupedBatches
from lit_compress.data.logit_cache import LogitStore, model_digest, rows_digest
from lit_compress.errors import UserError
from lit_compress.modules.distillation import logit_heads
from lit_compress.nn.teacher import FrozenTeacher

__all__ = ["CacheDtype", "by_text", "open_answers", "teacher_digest"]

CacheDtype = Literal["float32", "float16"]

# Of what is stored: another number makes every existing folder another one's.
_VERSION = 1
_NO_SETTING = ("_name_or_path", "transformers_version", "dtype", "architectures")


def teacher_digest(model: Any) -> str:
    """SHA-256 of what a Hugging Face model computes with: its class, its settings and its weights."""
    settings = {name: value for name, value in model.config.to_dict().items() if name not in _NO_SETTING}
    described = json.dumps([type(model).__name__, settings], sort_keys=True, default=str)
    return hashlib.sha256(f"{described} {model_digest(model)}".encode()).hexdigest()


def open_answers(trainer: Trainer, teacher: FrozenTeacher, digest: str, folder: str, dtype: CacheDtype) -> LogitStore:
    """The teacher's logits for the training data; a pass over the data makes them first if need be.

    Every rank runs its part; rank 0 creates and finishes the file, so the folder must be one that all ranks see. What
    the logits depend on (rows, tokenizer, longest length, teacher, precision) names the folder inside ``folder``: a
    store of anything else is never found. A damaged one is made again.

    Args:
        trainer: in ``on_train_start``, where the training data exists.
        teacher: on the device of the training.
        digest: its :func:`teacher_digest`.
        folder: holds the stores of any number of teachers and data sets.
        dtype: of the stored logits.

    Raises:
        UserError: the data has no numbered examples, the teacher's outputs cannot be stored, or the folder cannot be
            written or is not shared.

    """
    dataset = _numbered(trainer)
    about = {
        "version": _VERSION,
        "teacher": digest,
        "rows": rows_digest(dataset),
        "precision": str(trainer.precision),
        "dtype": dtype,
    }
    key = hashlib.sha256(json.dumps(about, sort_keys=True).encode()).hexdigest()
    target = Path(folder) / key[:16]
    if trainer.strategy.broadcast(_is_usable(target) if trainer.is_global_zero else None):
        return _opened(target)
    staging = target.with_name(f".{target.name}.new-{trainer.strategy.broadcast(uuid.uuid4().hex[:8])}")
    try:
        _fill(trainer, teacher, dataset, staging, dtype, about)
        trainer.strategy.barrier()
        if trainer.is_global_zero:
            LogitStore(staging, writable=True).finish()
            # Another run may have made the same store meanwhile.
            if not target.exists() or LogitStore.find_damage(target) is not None:
                shutil.rmtree(target, ignore_errors=True)
                staging.rename(target)
    except OSError as error:
        raise UserError(
            f"model.teacher_cache: {folder!r} cannot be written: {error.strerror or error}; choose another folder"
        ) from error
    finally:
        if trainer.is_global_zero:
            shutil.rmtree(staging, ignore_errors=True)
    trainer.strategy.barrier()
    return _opened(target)


def _is_usable(target: Path) -> bool:
    if not target.exists():
        return False
    if (damage := LogitStore.find_damage(target)) is not None:
        rank_zero_warn(f"model.teacher_cache: {str(target)!r} is damaged ({damage}); it is made again")
        return False
    return True


def _opened(target: Path) -> LogitStore:
    if not target.is_dir():
        raise UserError(
            f"model.teacher_cache: this process does not see {str(target)!r}, which rank 0 has; "
            "give a folder that all machines share"
        )
    return LogitStore(target)


def _numbered(trainer: Trainer) -> Dataset:
    dataset = getattr(trainer.train_dataloader, "dataset", None)
    if not isinstance(dataset, Dataset) or not {"index", "length"} <= set(dataset.column_names):
        raise UserError(
            "model.teacher_cache: the training data has no `index` and `length` of examples that stay the same; "
            "leave the cache out (masked language modelling masks other tokens in each epoch)"
        )
    return dataset


def _fill(
    trainer: Trainer,
    teacher: FrozenTeacher,
    dataset: Dataset,
    staging: Path,
    dtype: CacheDtype,
    about: dict[str, Any],
) -> None:
    loader: Any = trainer.train_dataloader
    lengths = np.asarray(dataset["length"])
    batches = LengthGroupedBatches(
        lengths,
        getattr(loader.sampler, "batch_size", None) or loader.batch_size or 1,
        shuffle=False,
        num_replicas=trainer.world_size,
        rank=trainer.global_rank,
    )
    # A loader of its own: the position in the epoch, and the generators of the run, are not touched.
    loader = DataLoader(
        dataset,  # type: ignore[arg-type]
        sampler=batches,
        batch_size=None,
        collate_fn=loader.collate_fn,
        generator=torch.Generator(),
    )
    store: LogitStore | None = None
    if trainer.is_global_zero:  # where no terminal shows the bar, these are minutes in which nothing is said
        say(f"Running the teacher on {len(dataset):,} examples once")
    for batch in tqdm(loader, desc="Running the teacher", disable=not trainer.is_global_zero or None):
        batch = to_device(batch, trainer)
        with trainer.precision_plugin.forward_context():
            heads = logit_heads(teacher(**batch.inputs))
        index = batch.meta["index"].tolist()
        logits = _by_example(_stacked(heads, teacher.model), len(index))
        if store is None:
            if trainer.is_global_zero:
                tokens = [int(lengths.max())] if logits.ndim == 3 else []
                LogitStore.create(staging, [len(dataset), *tokens, logits.shape[-1]], list(heads), dtype, about)
            trainer.strategy.barrier()
            store = LogitStore(staging, writable=True)
        store.write(index, logits, lengths[index].tolist())
    if store is not None:
        store.array.flush()  # type: ignore[attr-defined]  (of a memory map)


def _by_example(values: Tensor, examples: int) -> Tensor:
    """Vectors ``(texts * examples, width)`` as ``(examples, texts * width)``; others are one row an example already."""
    if len(values) == examples:
        return values
    return values.unflatten(0, (-1, examples)).transpose(0, 1).flatten(1)


def by_text(values: Tensor, rows: int) -> Tensor:
    """What a store has of examples, a row for each row of the batch: the inverse where they have several texts."""
    if len(values) == rows:
        return values
    return values.unflatten(1, (rows // len(values), -1)).transpose(0, 1).flatten(0, 1)


def _stacked(heads: dict[str, Tensor], model: nn.Module) -> Tensor:
    """One array of all heads: ``(batch, classes)`` or ``(batch, tokens, classes)``."""
    if len(heads) == 1:
        logits = next(iter(heads.values()))
        vocabulary = getattr(model.config, "vocab_size", None)
        if logits.ndim < 3 or logits.shape[-1] != vocabulary:
            return logits
    elif "prediction_logits" not in heads:
        return torch.stack(list(heads.values()), dim=-1)
    raise UserError(
        "model.teacher_cache: logits over a vocabulary are not cached: they are too large, and masked language "
        "modelling masks other tokens in each epoch; leave the cache out"
    )
