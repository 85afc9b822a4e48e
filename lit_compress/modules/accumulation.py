"""The gradient that a checkpoint between two optimizer steps finds half accumulated; without it a resume loses it."""

from typing import Any

import torch
from lightning.pytorch import LightningModule
from torch import Tensor
from torch.distributed.tensor import DTensor, distribute_tensor

from lit_compress.errors import UserError
from lit_compress.training_steps import interrupted, stepped

__all__ = ["partial_gradients", "restore_gradients"]


def partial_gradients(module: LightningModule) -> list[dict[str, Tensor]]:
    """What the batches since the last optimizer step added up to, by parameter; empty when there are none.

    When an exception ends a batch before its backward pass, that batch has no part in it and comes again.

    One entry for each rank, which adds up its own until the step, or a single one where gradients are sharded. With
    several ranks all must ask, and rank 0 is answered.
    """
    trainer = module.trainer
    batch_idx = trainer.fit_loop.batch_idx
    if batch_idx % trainer.accumulate_grad_batches == 0 if interrupted(trainer) else stepped(trainer, batch_idx):
        return []
    found = {name: p.grad for name, p in module.named_parameters() if p.grad is not None}
    whole = {name: grad.full_tensor() if isinstance(grad, DTensor) else grad for name, grad in found.items()}
    if trainer.world_size == 1 or any(isinstance(grad, DTensor) for grad in found.values()):
        return [whole]
    everybody: list[Any] = [None] * trainer.world_size
    own = {name: grad.cpu() for name, grad in whole.items()}
    torch.distributed.gather_object(own, everybody if trainer.global_rank == 0 else None)
    return everybody


@torch.no_grad()
def restore_gradients(module: LightningModule, gradients: list[dict[str, Tensor]]) -> None:
    """Put back what :func:`partial_gradients` found; Lightning adds to it, as the optimizer steps only later.

    Raises:
        UserError: it was found by another number of ranks.

    """
    if not gradients:
        return
    ranks = module.trainer.world_size
    if len(gradients) not in (1, ranks):
        raise UserError(
            f"ckpt_path: the checkpoint holds half accumulated gradients of {len(gradients)} processes and this run "
            f"has {ranks}; resume with trainer.devices of then"
        )
    own = gradients[module.trainer.global_rank if len(gradients) > 1 else 0]
    for name, parameter in module.named_parameters():
        if name in own:
            grad = own[name].to(parameter.device, parameter.dtype)
            if isinstance(parameter, DTensor):
                grad = distribute_tensor(grad, parameter.device_mesh, parameter.placements)
            parameter.grad = grad
