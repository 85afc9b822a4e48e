"""Our attention implementation for Transformers, which models can use it, and who asks for it.

One function does what none of Transformers' own does: it quantizes both products, returns probabilities before dropout
(a dropped one has an infinite divergence from the teacher's), and takes a mask that only says which tokens are not
padding. With nothing of that to do it calls Transformers' own for a model that had ``sdpa``; for one that had ``eager``
it computes the same products itself.
"""

from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from lit_compress.errors import UserError
from lit_compress.nn.attention import OWN_PREFIX, QUANTIZERS_NAME, AttentionQuantizers, switch_attention

__all__ = ["UNPADDED", "attention_modules", "knows_padding", "never_ask_for_padding", "visible_attention", "waited_for"]

# Name under which masks stay (batch, tokens); no file ever holds it, as the names that begin with OWN_PREFIX.
UNPADDED = "unpadded_rows"

_UNQUANTIZED = AttentionQuantizers()


def attention_modules(model: nn.Module, key: str) -> dict[str, nn.Module]:
    """The modules of a model that call its attention implementation, by name.

    Args:
        model: Hugging Face encoder with any head.
        key: config key named in the error.

    Raises:
        UserError: as in :func:`visible_attention`.

    """
    _check(model, key, "its products cannot be quantized; leave this option out")
    # The innermost modules named so: Transformers itself finds those that use the interface by this name.
    named = {name: module for name, module in model.named_modules() if "Attention" in type(module).__name__}
    named = {name: module for name, module in named.items() if not isinstance(module, AttentionQuantizers)}
    return {name: module for name, module in named.items() if not any(other.startswith(f"{name}.") for other in named)}


def visible_attention(model: PreTrainedModel, key: str) -> None:
    """Let ``model`` return its attention probabilities when it is asked for them (``output_attentions``), in place.

    They are those before dropout. What is saved of the model does not change.

    Args:
        model: Hugging Face encoder with any head.
        key: config key named in the error.

    Raises:
        UserError: the family computes its attention in code of its own, or the model was loaded with an implementation
            that is neither ``sdpa`` nor ``eager``.

    """
    _check(model, key, "its maps cannot be compared; remove the AttentionDistillation, or use another model")
    switch_attention(model)


def waited_for(device: torch.device) -> bool:
    """Whether reading a tensor of a device on the host waits for the work before it."""
    return device.type != "cpu"


def never_ask_for_padding(model: PreTrainedModel) -> None:
    """Let ``model`` build its mask without looking whether there is any padding, for which a GPU is waited for.

    Who knows of a batch that it has none gives no mask, see :func:`knows_padding`. A model whose attention is its own,
    or neither ``sdpa`` nor ``eager``, stays as it is.
    """
    if model._supports_attention_backend and model.config._attn_implementation in ("sdpa", "eager"):
        switch_attention(model)


def knows_padding(model: nn.Module) -> bool:
    """Whether ``model`` computes the same for a batch without padding when it is given no mask."""
    return str(getattr(getattr(model, "config", None), "_attn_implementation", "")).startswith(OWN_PREFIX)


def _check(model: nn.Module, key: str, consequence: str) -> None:
    if not isinstance(model, PreTrainedModel) or not model._supports_attention_backend:
        raise UserError(
            f"{key}: {type(model).__name__} has an attention of its own that does not go through the attention "
            f"interface of Transformers, so {consequence}"
        )
    implementation = str(model.config._attn_implementation).removeprefix(OWN_PREFIX)
    if implementation not in ("sdpa", "eager"):
        raise UserError(f"{key}: attention implementation {implementation!r} must be sdpa or eager, or {consequence}")


def _attend(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    *,
    plain: str,
    output_attentions: bool | None = None,
    **kwargs: Any,
) -> tuple[Tensor, Tensor | None]:
    """As :class:`AttentionQuantizers` computes it where that makes a difference to ``plain``."""
    if attention_mask is not None and attention_mask.dim() == 2:
        attention_mask = attention_mask[:, None, None, :]
    quantizers: AttentionQuantizers = getattr(module, QUANTIZERS_NAME, _UNQUANTIZED)
    if plain == "eager" or output_attentions or quantizers.enabled:
        return quantizers(query, key, value, attention_mask, scaling, dropout)
    sdpa = ALL_ATTENTION_FUNCTIONS["sdpa"]
    return sdpa(module, query, key, value, attention_mask, dropout=dropout, scaling=scaling, **kwargs)


def _mask(
    *args: Any,
    plain: str,
    attention_mask: Tensor | None = None,
    allow_is_bidirectional_skip: bool = False,
    **options: Any,
) -> Tensor | None:
    """Transformers' mask; whether all tokens are real is looked up where nothing waits for the answer."""
    skips = allow_is_bidirectional_skip and (attention_mask is None or not waited_for(attention_mask.device))
    return ALL_MASK_ATTENTION_FUNCTIONS[plain](
        *args, attention_mask=attention_mask, allow_is_bidirectional_skip=skips, **options
    )


def _rows_mask(attention_mask: Tensor | None = None, **_: Any) -> Tensor | None:
    """A mask as it was given: which tokens are real, and nothing about pairs of them."""
    return attention_mask


# Without a mask of its own here a model would be given none at all.
for _name, _plain, _made in (
    (OWN_PREFIX + "sdpa", "sdpa", partial(_mask, plain="sdpa")),
    (OWN_PREFIX + "eager", "eager", partial(_mask, plain="eager")),
    (UNPADDED, "sdpa", _rows_mask),
):
    AttentionInterface.register(_name, partial(_attend, plain=_plain))
    AttentionMaskInterface.register(_name, _made)
