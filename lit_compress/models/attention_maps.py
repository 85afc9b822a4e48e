"""Attention maps of a Hugging Face encoder, as a term that imitates them needs them: probabilities before dropout.

Fused attention kernels have no probabilities to return, and Transformers' eager attention returns them after dropout:
a dropped probability of 0 has an infinite divergence from the teacher's.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel
from transformers.masking_utils import eager_mask

from lit_compress.errors import UserError

__all__ = ["visible_attention"]

_IMPLEMENTATION = "eager_before_dropout"


def visible_attention(model: PreTrainedModel, key: str) -> None:
    """Let ``model`` return its attention probabilities when it is asked for them (``output_attentions``).

    It computes the same as before, without a fused kernel; what is saved of it does not change.

    Args:
        model: changed in place.
        key: config key named in the error.

    Raises:
        UserError: the family has an attention of its own.

    """
    if not model._can_set_attn_implementation():
        raise UserError(
            f"{key}: {type(model).__name__} has an attention of its own whose maps cannot be compared; "
            "remove the AttentionDistillation, or take another model"
        )
    model.set_attn_implementation(_IMPLEMENTATION)


def _attend(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    **_: Any,
) -> tuple[Tensor, Tensor]:
    """Output ``(batch, tokens, heads, head size)`` and probabilities ``(batch, heads, tokens, tokens)``."""
    scores = query @ key.transpose(2, 3) * (query.shape[-1] ** -0.5 if scaling is None else scaling)
    if attention_mask is not None:
        scores = scores + attention_mask
    probabilities = F.softmax(scores, dim=-1, dtype=torch.float32).to(query.dtype)
    attended = F.dropout(probabilities, dropout, module.training) @ value
    return attended.transpose(1, 2).contiguous(), probabilities


AttentionInterface.register(_IMPLEMENTATION, _attend)
AttentionMaskInterface.register(_IMPLEMENTATION, eager_mask)
