"""Masks and weights, written the same on every rank, whether DDP copies a weight or FSDP2 shards it."""

import torch
from lightning.pytorch import Trainer
from torch import Tensor
from torch.distributed.tensor import DTensor, distribute_tensor

from lit_compress.nn.compressible import CompressibleLinear

__all__ = ["agreed", "full_tensor", "full_weight", "set_mask", "sum_over_ranks_", "write_weight", "zero_outside"]


@torch.no_grad()
def set_mask(layer: CompressibleLinear, mask: Tensor, trainer: Trainer, keep_values: bool = False) -> None:
    """Write a mask in place and make zero what it prunes: the weight, and the optimizer's moments of it.

    With weight, gradient (the forward masks it) and moments at 0, AdamW's step is exactly 0 there, decay included.
    Under DDP the mask of rank 0 is everybody's.

    Args:
        layer: has a mask already.
        mask: bool ``(out_features, in_features)``, True keeps.
        trainer: whose optimizers learn the weight.
        keep_values: leave weight and moments as they are behind the mask, so that a later mask may bring them back.

    """
    assert layer.weight_mask is not None
    layer.weight_mask.copy_(agreed(mask))
    if not keep_values:
        zero_outside(layer.weight, layer.weight_mask, trainer)


@torch.no_grad()
def write_weight(layer: CompressibleLinear, values: Tensor) -> None:
    """Write a whole weight ``(out_features, in_features)`` in place; under DDP and FSDP2 that of rank 0."""
    if _distributed():
        torch.distributed.broadcast(values, src=0)
    layer.weight.copy_(_laid_out_like(layer.weight, values))


def full_weight(layer: CompressibleLinear) -> Tensor:
    """The whole weight ``(out_features, in_features)`` without its gradient, gathered when FSDP2 has sharded it."""
    return full_tensor(layer.weight)


def full_tensor(tensor: Tensor) -> Tensor:
    """A detached tensor, gathered when FSDP2 has sharded it."""
    tensor = tensor.detach()
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def agreed(mask: Tensor) -> Tensor:
    """The bool mask of rank 0, on every rank."""
    if _distributed():
        mask = mask.to(torch.uint8)
        torch.distributed.broadcast(mask, src=0)
        mask = mask.bool()
    return mask


def sum_over_ranks_(tensor: Tensor) -> Tensor:
    """Add up a tensor over all ranks, in place."""
    if _distributed():
        torch.distributed.all_reduce(tensor)
    return tensor


@torch.no_grad()
def zero_outside(parameter: Tensor, kept: Tensor, trainer: Trainer) -> None:
    """Make a parameter and the optimizer's moments of it zero where a mask of its shape is False."""
    kept = _laid_out_like(parameter, kept)
    parameter.mul_(kept)
    for optimizer in trainer.optimizers:
        for moment in optimizer.state.get(parameter, {}).values():
            if isinstance(moment, Tensor) and moment.shape == parameter.shape:
                moment.mul_(kept)


def _distributed() -> bool:
    return torch.distributed.is_available() and torch.distributed.is_initialized()


def _laid_out_like(weight: Tensor, values: Tensor) -> Tensor:
    if isinstance(weight, DTensor):
        return distribute_tensor(values.to(weight.dtype), weight.device_mesh, weight.placements)
    return values
