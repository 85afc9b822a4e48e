"""Batches, and gradients of the task, between the steps of a training, sampled without a trace."""

import inspect
import os
import random
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from itertools import count, islice
from typing import Any

import numpy as np
import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.utilities.seed import isolate_rng
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.utils.data import DataLoader, IterableDataset

from lit_compress.data.batch_transfer import to_device
from lit_compress.data.batches import LengthGroupedBatches
from lit_compress.errors import UserError
from lit_compress.models.layout import tokens_first
from lit_compress.strategies.distributed_weights import full_tensor, sum_over_ranks_
from lit_compress.strategies.strategy import student_of

__all__ = ["loader_batch_size", "sample_batches", "sample_gradients", "sample_input_norms"]


def sample_batches(
    trainer: Trainer, pl_module: LightningModule, batches: int, batch_size: int, draw: int = 0
) -> Iterator[Any]:
    """Mini-batches of training examples, on the device, while the module is in evaluation mode.

    Which rows are drawn follows from the run's seed, the step and ``draw`` alone. When all rows were drawn they come
    again, in another order. Ranks draw different rows. Nothing is left behind: no evaluation mode, no random number
    drawn, no batch taken from the training.

    Args:
        trainer: whose training examples are drawn.
        pl_module: the module that looks at them.
        batches: number of mini-batches.
        batch_size: examples of a mini-batch on each device.
        draw: tells apart several samples of one step.

    Raises:
        UserError: rows cannot be drawn from the training data.

    """
    seed = np.random.SeedSequence([int(os.environ.get("PL_GLOBAL_SEED", 0)), trainer.global_step, draw])
    with _undisturbed(pl_module, [*seed.generate_state(1), trainer.global_rank]):
        for batch in islice(_draw(trainer, batch_size, seed), batches):
            yield to_device(batch, trainer)


def sample_gradients(
    trainer: Trainer,
    pl_module: LightningModule,
    weights: Sequence[Tensor],
    batches: int,
    batch_size: int,
    draw: int = 0,
) -> Iterator[list[Tensor]]:
    """Gradients of the task's mean loss on :func:`sample_batches`, one list per mini-batch, the mean of all ranks.

    Dropout is off; distillation and penalties have no part in it; masks and quantizers have, as in training. No
    gradient is left behind.

    Args:
        trainer: whose training examples are drawn.
        pl_module: has ``task_loss(batch)``.
        weights: parameters to differentiate by.
        batches: number of mini-batches, that is of gradients.
        batch_size: examples of a mini-batch on each device.
        draw: tells apart several samples of one step.

    Yields:
        A gradient for each weight, of its full shape.

    Raises:
        UserError: the module has no task loss, or rows cannot be drawn from the training data.

    """
    task_loss = _task_loss(pl_module)
    for batch in sample_batches(trainer, pl_module, batches, batch_size, draw):
        with torch.enable_grad(), trainer.precision_plugin.train_step_context():
            loss = task_loss(batch)
        yield _differentiate(loss, weights, trainer, pl_module)


@torch.no_grad()
def sample_input_norms(
    trainer: Trainer,
    pl_module: LightningModule,
    layers: Mapping[str, nn.Module],
    batches: int,
    batch_size: int,
    draw: int = 0,
) -> dict[str, Tensor]:
    """Root mean square of each input feature of some layers over the tokens of :func:`sample_batches`, without padding.

    Of a layer that is used on tokens, other uses do not count (DeBERTa's projections of its relative positions).

    Args:
        trainer: whose training examples are drawn.
        pl_module: has ``task_loss(batch)``, which runs the layers.
        layers: linears by name.
        batches: number of mini-batches.
        batch_size: examples of a mini-batch on each device.
        draw: tells apart several samples of one step.

    Returns:
        By name ``(in_features,)`` in fp32, the same on every rank.

    Raises:
        UserError: the module has no task loss, or rows cannot be drawn from the training data.

    """
    task_loss, student = _task_loss(pl_module), student_of(pl_module)
    parameters = inspect.signature(student.forward)
    sums: dict[str, Tensor] = {}
    attended: list[Tensor | None] = [None]
    on_tokens: set[str] = set()  # layers that this forward used on its tokens
    transposed = tokens_first(student)

    def begin(_: nn.Module, given: tuple[Any, ...], named: dict[str, Any]) -> None:
        attended[0] = parameters.bind_partial(*given, **named).arguments.get("attention_mask")
        on_tokens.clear()

    def look(name: str, layer: nn.Module, inputs: tuple[Tensor], __: Tensor) -> None:
        rows = inputs[0].detach().float()
        mask = attended[0]
        if mask is not None:
            tokens = rows.transpose(0, 1) if layer in transposed and rows.ndim == 3 else rows
            # Longformer adds tokens at the end to fill its windows.
            tokens = tokens[:, : mask.shape[1]] if transposed else tokens
            if tokens.shape[:-1] == mask.shape:
                on_tokens.add(name)
                rows = tokens[mask.bool()]
            elif name in on_tokens:
                return
        rows = rows.reshape(-1, rows.shape[-1])
        # The number of tokens is one more entry: a single tensor to add up over ranks.
        total = torch.cat([rows.square().sum(0), rows.new_tensor([len(rows)])])
        sums[name] = sums[name] + total if name in sums else total

    # They only look. What is padding, the call of the student says, whatever a batch is like.
    hooks = [layer.register_forward_hook(partial(look, name)) for name, layer in layers.items()]
    hooks.append(student.register_forward_pre_hook(begin, with_kwargs=True))
    try:
        for batch in sample_batches(trainer, pl_module, batches, batch_size, draw):
            # A compiled student would be compiled again for the hooks of each update.
            with trainer.precision_plugin.train_step_context(), torch.compiler.set_stance("force_eager"):
                task_loss(batch)
    finally:
        for hook in hooks:
            hook.remove()
    if missing := [name for name in layers if name not in sums]:
        raise UserError(f"compression: {missing[0]!r} is not called by `task_loss(batch)`; add it to ignore")
    totals = {name: sum_over_ranks_(total) for name, total in sums.items()}
    return {name: (total[:-1] / total[-1].clamp_min(1)).sqrt() for name, total in totals.items()}


def loader_batch_size(trainer: Trainer) -> int:
    """Rows of a training batch on each device."""
    loader: Any = trainer.train_dataloader
    sampler = getattr(loader, "sampler", None)
    return getattr(sampler, "batch_size", None) or getattr(loader, "batch_size", None) or 1


def _task_loss(pl_module: LightningModule) -> Any:
    task_loss = getattr(pl_module, "task_loss", None)
    if task_loss is None:
        raise UserError(
            f"compression: pruning samples from `task_loss(batch)`, which {type(pl_module).__name__} does not have; "
            "define it"
        )
    return task_loss


def _draw(trainer: Trainer, batch_size: int, seed: np.random.SeedSequence) -> Iterator[Any]:
    """Mini-batches without an end, as the training's loader would make them of the same rows."""
    loader = trainer.train_dataloader
    by_batch = isinstance(loader, DataLoader) and isinstance(loader.sampler, LengthGroupedBatches)
    if (
        not isinstance(loader, DataLoader)
        or isinstance(loader.dataset, IterableDataset)
        or not (by_batch or loader.batch_size)
    ):
        raise UserError(
            "data: pruning draws training examples by their number; give one DataLoader of a dataset with a length"
        )
    rows: Any = loader.dataset
    lengths = loader.sampler.lengths if isinstance(loader.sampler, LengthGroupedBatches) else np.zeros(len(rows))
    order = LengthGroupedBatches(
        lengths,
        batch_size,
        seed=int(seed.generate_state(1)[0]),
        num_replicas=trainer.world_size,
        rank=trainer.global_rank,
    )
    for epoch in count():
        order.set_epoch(epoch)
        for numbers in order:
            yield loader.collate_fn(rows[numbers] if by_batch else [rows[number] for number in numbers])


def _differentiate(
    loss: Tensor, weights: Sequence[Tensor], trainer: Trainer, pl_module: LightningModule
) -> list[Tensor]:
    if any(isinstance(weight, DTensor) for weight in weights):
        # FSDP2 takes part in a whole backward pass only; it averages over the ranks itself.
        pl_module.zero_grad()
        loss.backward()
        gathered = [_gathered(weight) for weight in weights]
        pl_module.zero_grad()
        return gathered
    # By hand and not by backward(), which would fill `.grad` and wake DDP.
    gradients = torch.autograd.grad(loss, list(weights), materialize_grads=True)
    return [sum_over_ranks_(gradient).div_(trainer.world_size) for gradient in gradients]


def _gathered(weight: Tensor) -> Tensor:
    if weight.grad is None:
        return torch.zeros(weight.shape, device=weight.device)
    return full_tensor(weight.grad)


@contextmanager
def _undisturbed(pl_module: LightningModule, seed: list[int]) -> Iterator[None]:
    """Evaluation mode and random numbers of its own; afterwards every module is in the mode it was in."""
    modes = [(module, module.training) for module in pl_module.modules()]
    pl_module.eval()
    try:
        with isolate_rng():
            # For collate functions that draw, such as those that mask tokens.
            state = int(np.random.SeedSequence(seed).generate_state(1)[0])
            random.seed(state)
            np.random.seed(state)
            torch.manual_seed(state)
            yield
    finally:
        for module, mode in modes:
            module.training = mode
