"""Attention in its plain form: its probabilities can be read, and the operands and results of its products quantized.

The products are not modules of a Hugging Face encoder: the attention calls a function that its configuration names. A
model is switched to ours by another name there, and back by the old one; :mod:`lit_compress.models.attention` has it.
"""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lit_compress.nn.quantizers import FakeQuantizer

__all__ = [
    "ATTENTION_SLOTS",
    "OWN_PREFIX",
    "QUANTIZERS_NAME",
    "AttentionQuantizers",
    "attention_quantizers",
    "quantize_attention",
    "restore_attention",
    "switch_attention",
]

# Operands of query @ key^T and of probabilities @ value; then the results of both.
ATTENTION_SLOTS = ("query", "key", "probabilities", "value", "scores", "context")

# What an attention module calls its quantizers, and what goes before the name of an attention implementation.
QUANTIZERS_NAME = "matmul_quantizers"
OWN_PREFIX = "lit_compress_"


class AttentionQuantizers(nn.Module):
    """``softmax(query @ key^T * scaling + mask) @ value`` with a slot for a quantizer at each tensor; all start empty.

    Attributes:
        query: left operand of the first product.
        key: its right operand.
        probabilities: left operand of the second product, before dropout, so that its range is that of inference.
        value: its right operand.
        scores: result of the first product, before scaling and mask.
        context: result of the second.

    """

    def __init__(self) -> None:
        super().__init__()
        for slot in ATTENTION_SLOTS:
            setattr(self, slot, None)

    @property
    def enabled(self) -> bool:
        """Whether any slot quantizes."""
        return any(module.enabled for module in self.children() if isinstance(module, FakeQuantizer))

    def forward(
        self, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, scaling: float | None, dropout: float
    ) -> tuple[Tensor, Tensor]:
        """Attention in its plain form.

        Args:
            query: ``(batch, heads, queries, width)``.
            key: ``(batch, heads, keys, width)``.
            value: like ``key``.
            mask: bool, True attends, or added to the scores; broadcastable to ``(batch, heads, queries, keys)``.
            scaling: of the scores; None takes ``1 / sqrt(width)``.
            dropout: probability on the attention probabilities; 0 in evaluation.

        Returns:
            Context ``(batch, queries, heads, width)`` and probabilities ``(batch, heads, queries, keys)``, which are
            those before dropout and before they are quantized: the divergence from one that became 0 would be infinite.

        """
        scale = query.shape[-1] ** -0.5 if scaling is None else scaling
        keys = self._quantized("key", key).transpose(2, 3)
        scores = self._quantized("scores", torch.matmul(self._quantized("query", query), keys)) * scale
        if mask is not None and mask.dtype == torch.bool:
            scores = scores.masked_fill(~mask, torch.finfo(scores.dtype).min)
        elif mask is not None:
            scores = scores + mask
        probabilities = F.softmax(scores, dim=-1)
        attended = F.dropout(self._quantized("probabilities", probabilities), p=dropout, training=dropout > 0)
        context = self._quantized("context", torch.matmul(attended, self._quantized("value", value)))
        return context.transpose(1, 2).contiguous(), probabilities

    def _quantized(self, slot: str, x: Tensor) -> Tensor:
        quantizer = getattr(self, slot)
        return x if quantizer is None else quantizer(x)


def attention_quantizers(model: nn.Module) -> Iterator[tuple[str, AttentionQuantizers]]:
    """Name of each attention module that has quantizers, and them, in model order."""
    for name, module in model.named_modules():
        if isinstance(module, AttentionQuantizers):
            yield name.removesuffix(QUANTIZERS_NAME).removesuffix("."), module


def switch_attention(model: nn.Module) -> None:
    """Route the attention of a Hugging Face model through ours, in place; idempotent.

    The name in the configuration is one of those that no file ever holds.
    """
    config: Any = model.config
    config._attn_implementation = OWN_PREFIX + config._attn_implementation.removeprefix(OWN_PREFIX)


def quantize_attention(model: nn.Module, names: list[str]) -> dict[str, AttentionQuantizers]:
    """Give the named attention modules of a Hugging Face model empty slots and route the model through them."""
    for name in names:
        module = model.get_submodule(name)
        if not hasattr(module, QUANTIZERS_NAME):
            module.add_module(QUANTIZERS_NAME, AttentionQuantizers().train(module.training))
    if names:
        switch_attention(model)
    return {name: quantizers for name, quantizers in attention_quantizers(model) if name in names}


def restore_attention(model: nn.Module) -> None:
    """Undo :func:`switch_attention` and :func:`quantize_attention`, in place."""
    for name in [name for name, _ in attention_quantizers(model)]:
        delattr(model.get_submodule(name), QUANTIZERS_NAME)
    config: Any = getattr(model, "config", None)
    if (name := getattr(config, "_attn_implementation", None)) is not None:
        config._attn_implementation = name.removeprefix(OWN_PREFIX)
