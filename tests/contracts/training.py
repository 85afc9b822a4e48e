"""Short fits of a tiny student, for the contract tests."""

from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint

import lit_compress
from lit_compress.data import TextClassification
from lit_compress.modules import HiddenDistillation, LitPrunedStudent, LitStudent, LogitDistillation, Optimization
from lit_compress.training.trainer import DEFAULTS, make_trainer

OPTIONS: dict[str, Any] = {
    "max_epochs": 2,
    "accelerator": "cpu",
    "logger": False,
    "enable_progress_bar": False,
    "enable_model_summary": False,
}
STEPS = 8  # optimizer steps of a fit: 2 epochs of 4 batches


def student(pretrained: Path, teacher: Path | None = None, **kwargs: Any) -> LitStudent:
    terms = {"kd": LogitDistillation(), "hidden": HiddenDistillation()} if teacher else None
    kind = LitPrunedStudent if "penalties" in kwargs else LitStudent
    return kind(
        str(pretrained),
        teacher=str(teacher) if teacher else None,
        distillation=terms,
        labels=["0", "1"],
        # A large step and decay: what must stay zero has every reason to move.
        optimization=Optimization(learning_rate=1e-2, weight_decay=0.1, warmup="0%"),
        **kwargs,
    )


def data(folder: Path, tokenizer: Path, **kwargs: Any) -> TextClassification:
    return TextClassification(tokenizer=str(tokenizer), **data_config(folder, **kwargs)["init_args"])


def data_config(folder: Path, **kwargs: Any) -> dict[str, Any]:
    """The `data` section of a configuration."""
    options = {"text_columns": ["sentence"], "batch_size": 16, "max_length": 16} | kwargs
    files = {"train_file": str(folder / "train.tsv"), "val_file": str(folder / "val.tsv")}
    return {"class_path": "TextClassification", "init_args": files | options}


def student_config(teacher: Path, folder: Path, **sections: Any) -> dict[str, Any]:
    """A complete small configuration of a student that starts from its teacher, without strategies."""
    model = {"class_path": "LitStudent", "init_args": {"pretrained": str(teacher), "teacher": str(teacher)}}
    trained = {"max_epochs": 2, "accelerator": "cpu"}
    return {"model": model, "data": data_config(folder), "trainer": trained} | sections


def trainer(root: Path, callbacks: list[Callback], **kwargs: Any) -> Trainer:
    """The trainer of a run whose other ways than `fit` are looked at, with a checkpoint of each step."""
    return make_trainer(root, callbacks, DEFAULTS | OPTIONS | {"callbacks": [_each_step(root)]} | kwargs, 500)


def fit(
    module: LitStudent,
    datamodule: TextClassification,
    strategies: list[Callback],
    root: Path,
    ckpt_path: Path | str | None = None,
    checkpoint_every: int = 500,
    callbacks: Sequence[Callback] = (),
    each_step: bool = True,
    **kwargs: Any,
) -> Trainer:
    """A run in ``root/run``, with a checkpoint of each step in ``root`` unless told otherwise."""
    lit_compress.fit(
        model=module,
        data=datamodule,
        strategies=strategies,
        run=root / "run",
        trainer=OPTIONS | {"callbacks": [*callbacks, *([_each_step(root)] if each_step else [])]} | kwargs,
        checkpoint_every=checkpoint_every,
        resume=ckpt_path,
        seed=7,
    )
    return module.trainer


def _each_step(root: Path) -> ModelCheckpoint:
    return ModelCheckpoint(root, filename="{step}", every_n_train_steps=1, save_top_k=-1)


ACCUMULATED = {"accumulate_grad_batches": 2, "val_check_interval": 3}


def fit_through_kills(
    make: Callable[[], tuple[Any, Any, list[Callback]]], root: Path, kills: tuple[int, int, int], **kwargs: Any
) -> Trainer:
    """A fit with :data:`ACCUMULATED` gradients that is killed three times, and resumed from what it left behind.

    Args:
        make: a fresh module, its data and strategies.
        root: folder for the run, whose ``last.ckpt`` is of each step, and ``validated.ckpt`` of each validation.
        kills: batches after which it is killed. The second should come right after the first, before another step;
            after the third a validation is gone back to.
        kwargs: for the trainer.

    """
    options = {"checkpoint_every": 1} | ACCUMULATED | kwargs
    for batches, found in zip((*kills, None), (None, "last", "last", root / "validated.ckpt"), strict=True):
        validated = ModelCheckpoint(root, "validated", monitor="val/loss", save_top_k=-1, enable_version_counter=False)
        if batches is None:
            return fit(*make(), root, found, callbacks=[validated], each_step=False, **options)
        with suppress(StopAt.Killed):
            fit(*make(), root, found, callbacks=[validated, StopAt(batches=batches)], each_step=False, **options)
    raise AssertionError


def differences(first: Any, second: Any, path: str = "") -> list[str]:
    """Paths at which two nested structures differ in any bit."""
    if isinstance(first, torch.Tensor):
        return [] if torch.equal(first, second) else [path]
    if isinstance(first, dict):
        keys = [f"{path}/{key} missing" for key in first.keys() ^ second.keys()]
        return keys + [
            d for key in first.keys() & second.keys() for d in differences(first[key], second[key], f"{path}/{key}")
        ]
    if isinstance(first, list | tuple):
        pairs = enumerate(zip(first, second, strict=True))
        return [d for i, (a, b) in pairs for d in differences(a, b, f"{path}/{i}")]
    return [] if first == second else [f"{path}: {first!r} != {second!r}"]


class StopAt(Callback):
    """Ends a fit as if the process had died: after a step and its checkpoint, or after so many batches."""

    class Killed(Exception):
        pass

    def __init__(self, step: int | None = None, batches: int | None = None) -> None:
        self.step = step
        self.batches = batches

    def on_train_batch_start(self, run: Trainer, module: Any, batch: Any, batch_idx: int) -> None:
        if self.step == run.global_step or self.batches == run.fit_loop.total_batch_idx:
            raise self.Killed
