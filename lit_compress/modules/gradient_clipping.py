"""Gradient clipping that neither waits for the device nor refuses a fused optimizer."""

import torch
from lightning.pytorch import LightningModule
from lightning.pytorch.plugins.precision import MixedPrecision, Precision
from lightning.pytorch.utilities import GradClipAlgorithmType
from torch import Tensor
from torch.optim import Optimizer

__all__ = ["clip_as_lightning", "clip_on_device"]


def clip_as_lightning(
    module: LightningModule, optimizer: Optimizer, value: float | None, algorithm: str | None
) -> None:
    """Clip the gradients of an optimizer by Lightning's own means.

    Args:
        module: that trains.
        optimizer: whose parameters' gradients are clipped in place.
        value: ``Trainer.gradient_clip_val``.
        algorithm: ``Trainer.gradient_clip_algorithm``.

    """
    plugin = module.trainer.precision_plugin
    if isinstance(plugin, MixedPrecision) and plugin.scaler is None:
        # bf16: Lightning refuses to clip for a fused optimizer, which might unscale; here nothing is scaled.
        Precision.clip_gradients(plugin, optimizer, value or 0.0, GradClipAlgorithmType(algorithm or "norm"))
    else:
        module.clip_gradients(optimizer, value, algorithm)


def clip_on_device(optimizer: Optimizer, value: float | None, algorithm: str | None) -> Tensor:
    """Clip the gradients of an optimizer in place, and give their norm ``()`` before that.

    Not through Lightning, which under mixed precision refuses to clip for a fused optimizer: such a one unscales
    gradients itself. Only fp16 scales them, and is not fused.

    Args:
        optimizer: whose parameters' gradients are clipped in place.
        value: ``Trainer.gradient_clip_val``; None or 0 for no clipping.
        algorithm: ``value``, or anything else for ``norm``.

    """
    parameters = [p for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
    clip, by_value = value or 0.0, algorithm == "value"
    norm = torch.nn.utils.get_total_norm([p.grad for p in parameters])  # first: an infinite gradient is clipped, too
    if clip > 0 and by_value:
        torch.nn.utils.clip_grad_value_(parameters, clip)
    elif clip > 0:
        torch.nn.utils.clip_grads_with_norm_(parameters, clip, norm)
    return norm
