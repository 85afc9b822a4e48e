"""Gradients of the task between the steps of a training, sampled without a trace."""

import os
import random
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import count, islice
from typing import Any

import numpy as np
import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.utilities.seed import isolate_rng
from torch import Tensor
from torch.distributed.tensor import DTensor
from torch.utils.data import DataLoader, IterableDataset

from lit_compress.data.batches import LengthGroupedBatches
from lit_compress.errors import UserError

__all__ = ["sample_gradients"]


def sample_gradients(
    trainer: Trainer,
    pl_module: LightningModule,
    weights: Sequence[Tensor],
    batches: int,
    batch_size: int,
    draw: int = 0,
) -> Iterator[list[Tensor]]:
    """Gradients of the task's mean loss on mini-batches of training rows, one list per mini-batch.

    Dropout is off; distillation and penalties have no part in it; masks and quantizers have, as in training. Which
    rows are drawn follows from the run's seed, the step and ``draw`` alone. When all rows were drawn they come again,
    in another order. Ranks draw different rows and get the same gradients, their mean.

    Nothing is left behind: no gradient, no evaluation mode, no random number drawn, no batch taken from the training.

    Args:
        trainer: whose training rows are drawn.
        pl_module: has ``task_loss(batch)``.
        weights: parameters to differentiate by.
        batches: number of mini-batches, that is of gradients.
        batch_size: rows of a mini-batch on each device.
        draw: tells apart several samples of one step.

    Yields:
        A gradient for each weight, of its full shape.

    Raises:
        UserError: the module has no task loss, or rows cannot be drawn from the training data.

    """
    task_loss = getattr(pl_module, "task_loss", None)
    if task_loss is None:
        raise UserError(
            f"compression: gradients are sampled from `task_loss(batch)`, which {type(pl_module).__name__} does not "
            "have; define it"
        )
    seed = np.random.SeedSequence([int(os.environ.get("PL_GLOBAL_SEED", 0)), trainer.global_step, draw])
    with _undisturbed(pl_module, [*seed.generate_state(1), trainer.global_rank]):
        for batch in islice(_draw(trainer, batch_size, seed), batches):
            with torch.enable_grad(), trainer.precision_plugin.train_step_context():
                loss = task_loss(trainer.strategy.batch_to_device(batch))
            yield _differentiate(loss, weights, pl_module)


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
            "data: gradients are sampled from rows that have a number; give one DataLoader of a dataset with a length"
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


def _differentiate(loss: Tensor, weights: Sequence[Tensor], pl_module: LightningModule) -> list[Tensor]:
    if any(isinstance(weight, DTensor) for weight in weights):
        # FSDP2 takes part in a whole backward pass only; it averages over the ranks itself.
        pl_module.zero_grad()
        loss.backward()
        gathered = [_gathered(weight) for weight in weights]
        pl_module.zero_grad()
        return gathered
    # By hand and not by backward(), which would fill `.grad` and wake DDP.
    gradients = list(torch.autograd.grad(loss, list(weights), materialize_grads=True))
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        for gradient in gradients:
            torch.distributed.all_reduce(gradient)
            gradient /= torch.distributed.get_world_size()
    return gradients


def _gathered(weight: Tensor) -> Tensor:
    if weight.grad is None:
        return torch.zeros(weight.shape, device=weight.device)
    return weight.grad.full_tensor() if isinstance(weight.grad, DTensor) else weight.grad


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
