"""Strategies in the Hugging Face Trainer, and in trainers made from it such as SentenceTransformerTrainer.

:func:`add_strategies` installs the structure (masks, quantizers) at once, before the Trainer makes its optimizer or
loads a checkpoint, and adds a callback that calls the strategies' hooks. Masks and ranges are part of the Trainer's own
checkpoints, so ``trainer.train(resume_from_checkpoint=...)`` continues exactly where it stopped.
"""

import math
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import cached_property
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader
from transformers import PreTrainedModel, Trainer, TrainerCallback

from lit_compress.errors import UserError
from lit_compress.integrations.sentence_transformers_settings import check_prompts, with_settings_of
from lit_compress.models.hf_folder import save_folder
from lit_compress.nn.replace_layers import compressible_layers
from lit_compress.strategies.strategy import Strategy

__all__ = ["TERMS", "StrategyCallback", "add_strategies", "check_untouched", "save_compressed", "student_in"]

# Submodule of a student with the parameters of its distillation terms; no part of what is saved in the end.
TERMS = "distillation_terms"


def add_strategies(trainer: Trainer, strategies: Sequence[Strategy]) -> "StrategyCallback":
    """Compress what a Trainer trains.

    Args:
        trainer: not trained yet; its model is changed in place.
        strategies: in the order in which `fit` would be given them.

    Returns:
        The callback, which is in the Trainer already.

    Raises:
        UserError: a strategy cannot work on this model or in so many steps; a model of peft, or one that is wrapped
            already; sharded training; a CrossEncoder with a default prompt.

    """
    if not strategies:
        raise UserError("strategies: none are given; give one or more, such as MagnitudePruning(0.8)")
    if other := next((each for each in strategies if not isinstance(each, Strategy)), None):
        raise UserError(f"strategies: {other!r} is not a strategy; give instances, such as MagnitudePruning(0.8)")
    if any(isinstance(each, StrategyCallback) for each in trainer.callback_handler.callbacks):
        raise UserError("strategies: this Trainer has some already; give all in one call, before training")
    check_untouched(trainer, "strategies")
    if trainer.optimizer is not None:
        raise UserError(
            "strategies: the Trainer has an optimizer already, which would not know of the new parameters; call "
            "add_strategies before train(), and give the Trainer no optimizer of your own"
        )
    if trainer.is_fsdp_enabled or trainer.is_deepspeed_enabled:
        raise UserError("strategies: weights sharded by FSDP or DeepSpeed cannot be masked here; use lit_compress fit")
    check_prompts(trainer.model)
    callback = StrategyCallback(trainer, strategies)
    callback.install()
    # The first one, so that the loggers of the others write what it adds.
    trainer.callback_handler.callbacks.insert(0, callback)
    return callback


def save_compressed(trainer: Trainer, output: str | Path, overwrite: bool = False) -> Path:
    """Fold what a Trainer trained, and write it as a Hugging Face folder: weights, tokenizer, model card, manifest.

    Of a SentenceTransformer or CrossEncoder it is a folder that they load, with pooling, projection and prompts; of a
    SentenceTransformer with other modules it is the transformer alone, which is said.

    Args:
        trainer: of :func:`add_strategies`.
        output: folder to make.
        overwrite: replace an existing folder that an export wrote.

    Raises:
        UserError: the Trainer has no tokenizer, or the folder exists or cannot be written.

    """
    tokenizer: Any = trainer.processing_class
    tokenizer = getattr(tokenizer, "tokenizer", tokenizer)  # of a SentenceTransformer
    if tokenizer is None:
        raise UserError("save_compressed: the Trainer has no processing_class; give it the tokenizer")
    student = student_in(trainer.model)
    callbacks = [each for each in trainer.callback_handler.callbacks if isinstance(each, StrategyCallback)]
    unfinished = [entry for callback in callbacks for entry in callback.unfinished()]
    terms = student._modules.pop(TERMS, None)
    try:
        with with_settings_of(trainer.model, student):
            return save_folder(student, tokenizer, output, overwrite, unfinished)
    finally:
        if terms is not None:
            setattr(student, TERMS, terms)


def check_untouched(trainer: Trainer, what: str) -> None:
    """Raise a ``UserError`` when a Trainer makes its model itself, which would replace the one that is changed."""
    if trainer.model_init is not None:
        raise UserError(
            f"{what}: the Trainer has a model_init, and makes another model for each training; give it model= instead"
        )


def student_in(model: nn.Module | None) -> PreTrainedModel:
    """The Hugging Face model that is trained: the model itself, or the one inside a SentenceTransformer.

    Raises:
        UserError: there is none, or adapters of peft are around it.

    """
    if model is None:
        raise UserError("strategies: the Trainer has no model; give it one with model=")
    if any("peft" in type(part).__module__.split(".") for part in model.modules()) or getattr(
        model, "_hf_peft_config_loaded", False
    ):
        raise UserError(
            "strategies: the model has adapters of peft, with which weights cannot be pruned or quantized; merge "
            "them first: model = model.merge_and_unload()"
        )
    student = next((part for part in model.modules() if isinstance(part, PreTrainedModel)), None)
    if student is None:
        raise UserError(f"strategies: {type(model).__name__} has no Hugging Face model in it")
    return student


class StrategyCallback(TrainerCallback):
    """Calls the hooks of strategies at the steps of a Trainer; made by :func:`add_strategies`.

    The fraction of pruned weights is in the Trainer's logs as ``sparsity``.
    """

    def __init__(self, trainer: Trainer, strategies: Sequence[Strategy]) -> None:
        self.strategies = list(strategies)
        self._trainer = trainer
        self._student = student_in(trainer.model)
        self._run, self._module = _Run(trainer, self), _Module(trainer, self._student)
        self._end = 0  # optimizer step from which on everything is compressed

    def install(self) -> None:
        """Install the structure of every strategy.

        Raises:
            UserError: a strategy cannot work on this model or in so many steps.

        """
        for strategy in self.strategies:
            strategy.setup(self._run, self._module, "fit")  # type: ignore[arg-type]
        if name := next((name for name, _ in compressible_layers(self._student) if name.startswith(f"{TERMS}.")), None):
            raise UserError(f"strategies: targets match {name!r}, a part of the loss; add '{TERMS}.*' to ignore")

    def unfinished(self) -> list[dict[str, Any]]:
        """What strategies have not reached at this step."""
        found = (strategy.unfinished(self._run, self._module) for strategy in self.strategies)  # type: ignore[arg-type]
        return [entry for entry in found if entry is not None]

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Before the first step, or the first after a checkpoint."""
        self._end = max(strategy.end(self._run) for strategy in self.strategies)  # type: ignore[arg-type]
        self._forget_early_best(state)
        self._call("on_train_start")

    def on_step_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Before each optimizer step."""
        self._forget_early_best(state)
        self._call("on_train_batch_start", None, 0)

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """With the gradients of a step, clipped."""
        self._call("on_before_optimizer_step", self._trainer.optimizer)

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """After each optimizer step."""
        self._call("on_train_batch_end", None, None, 0)

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, Any] | None = None, **_: Any) -> None:
        """Adds the sparsity to what is logged of the training."""
        masked = [part for part in self._student.modules() if getattr(part, "weight_mask", None) is not None]
        if logs is not None and masked and "loss" in logs:
            pruned = sum(int((~part.weight_mask).sum()) for part in masked)  # type: ignore[operator]
            logs["sparsity"] = pruned / sum(part.weight_mask.numel() for part in masked)  # type: ignore[operator, union-attr]

    def _forget_early_best(self, state: Any) -> None:
        # Scores fall while weights go: the best model would be one from before it was compressed.
        if state.best_model_checkpoint is not None and (state.best_global_step or 0) < self._end:
            state.best_metric = state.best_model_checkpoint = state.best_global_step = None

    def _call(self, hook: str, *given: Any) -> None:
        for strategy in self.strategies:
            getattr(strategy, hook)(self._run, self._module, *given)


class _Run:
    """What strategies ask a Lightning Trainer for, of a Hugging Face one; a step here is an optimizer step."""

    accumulate_grad_batches = 1
    is_last_batch = False
    limit_train_batches = 1.0
    datamodule = None

    def __init__(self, trainer: Trainer, callback: StrategyCallback) -> None:
        self._trainer, self._callback = trainer, callback
        self.strategy = SimpleNamespace(batch_to_device=trainer._prepare_inputs, root_device=trainer.args.device)
        self.precision_plugin = SimpleNamespace(train_step_context=self._autocast)

    @property
    def lightning_module(self) -> "_Module":
        """The module with the student."""
        return self._callback._module

    @property
    def callbacks(self) -> list[Strategy]:
        """All strategies."""
        return self._callback.strategies

    @property
    def optimizers(self) -> list[Any]:
        """The optimizer, without what Accelerate puts around it."""
        found: Any = self._trainer.optimizer
        return [] if found is None else [getattr(found, "optimizer", found)]

    @property
    def global_step(self) -> int:
        """Optimizer steps so far."""
        return self._trainer.state.global_step

    @property
    def world_size(self) -> int:
        """Processes that train."""
        return self._trainer.args.world_size

    @property
    def global_rank(self) -> int:
        """Number of this process."""
        return self._trainer.args.process_index

    @property
    def is_global_zero(self) -> bool:
        """Whether this is the first process."""
        return self._trainer.is_world_process_zero()

    @property
    def train_dataloader(self) -> DataLoader:
        """The training examples as the Trainer collates them, in an order of their own."""
        theirs = self._theirs
        return DataLoader(
            theirs.dataset,
            batch_size=self._trainer.args.train_batch_size,
            collate_fn=theirs.collate_fn,
            generator=torch.Generator(),
        )

    @property
    def estimated_stepping_batches(self) -> int:
        """Optimizer steps of the run."""
        return self._steps()[0]

    @property
    def num_training_batches(self) -> float:
        """Optimizer steps of an epoch; infinite for a stream of data."""
        return self._steps()[1]

    def _steps(self) -> tuple[int, float]:
        """As the Trainer counts them."""
        args, loader = self._trainer.args, self._theirs
        try:
            epoch: float = max(math.ceil(len(loader) / args.gradient_accumulation_steps), 1)
        except TypeError:  # no length
            epoch = math.inf
        return args.max_steps if args.max_steps > 0 else math.ceil(args.num_train_epochs * epoch), epoch

    @cached_property
    def _theirs(self) -> DataLoader:
        """The Trainer's own loader, made once: Accelerate keeps each that it was ever given."""
        return self._trainer.get_train_dataloader()

    def _autocast(self) -> AbstractContextManager[Any]:
        return nullcontext()  # compute_loss of the Trainer enters its own


class _Module(nn.Module):
    """What strategies ask a LightningModule for: the student, and the loss of a batch."""

    def __init__(self, trainer: Trainer, student: PreTrainedModel) -> None:
        super().__init__()
        self.student = student
        # No submodule of this one: a SentenceTransformer holds the student.
        self._of: tuple[Trainer] = (trainer,)

    def task_loss(self, batch: Any) -> Tensor:
        """Mean loss of a batch as the Trainer computes it."""
        (trainer,) = self._of
        model: Any = trainer.model
        with trainer.compute_loss_context_manager():
            loss = trainer.compute_loss(model, dict(batch) if isinstance(batch, dict) else batch)
        return loss if isinstance(loss, Tensor) else loss[0]
