"""Activations that are computed again in the backward pass instead of being kept (arXiv 1604.06174)."""

from typing import Any

from transformers import PreTrainedModel

from lit_compress.errors import UserError
from lit_compress.nn.recompute import checkpoint_contexts

__all__ = ["enable_gradient_checkpointing"]


def enable_gradient_checkpointing(model: PreTrainedModel, key: str) -> None:
    """Let each layer of ``model`` keep only its input while it trains, in place.

    Args:
        model: Hugging Face encoder with any head.
        key: config key named in the error.

    Raises:
        UserError: Transformers cannot do it for this family.

    """
    # The second is the older name, which newer versions of Transformers warn about.
    enable: Any = getattr(model, "activation_checkpointing_enable", None) or model.gradient_checkpointing_enable
    try:
        enable({"use_reentrant": False, "context_fn": checkpoint_contexts})
    except ValueError as error:
        raise UserError(
            f"{key}: Transformers has none for {type(model).__name__}; leave it out, and for less memory lower "
            "data.batch_size and raise trainer.accumulate_grad_batches"
        ) from error
