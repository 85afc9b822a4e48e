"""Quantized attention as an attention implementation of transformers, and which models can use it."""

from typing import Any

from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from lit_compress.errors import UserError
from lit_compress.nn.attention import QUANTIZED_PREFIX, QUANTIZERS_NAME, AttentionQuantizers

__all__ = ["attention_modules"]


def attention_modules(model: nn.Module, key: str) -> dict[str, nn.Module]:
    """The modules of a model that call its attention implementation, by name.

    Args:
        model: Hugging Face encoder with any head.
        key: config key named in the error.

    Raises:
        UserError: the family multiplies queries and keys in code of its own, or was loaded with an implementation
            that is neither ``sdpa`` nor ``eager``.

    """
    if not isinstance(model, PreTrainedModel) or not model._supports_attention_backend:
        raise UserError(
            f"{key}: {type(model).__name__} computes its attention itself and not through the attention interface of "
            "transformers, so its products cannot be quantized; leave this option out"
        )
    implementation = str(model.config._attn_implementation).removeprefix(QUANTIZED_PREFIX)
    if implementation not in ("sdpa", "eager"):
        raise UserError(f"{key}: attention implementation {implementation!r} must be sdpa or eager to be quantized")
    # The innermost modules named so: Transformers itself finds those that use the interface by this name.
    named = {name: module for name, module in model.named_modules() if "Attention" in type(module).__name__}
    named = {name: module for name, module in named.items() if not isinstance(module, AttentionQuantizers)}
    return {name: module for name, module in named.items() if not any(other.startswith(f"{name}.") for other in named)}


def _through(original: str) -> Any:
    """An attention function that is ``original`` as long as nothing is quantized."""

    def attention(
        module: nn.Module,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attention_mask: Tensor | None,
        dropout: float = 0.0,
        scaling: float | None = None,
        **kwargs: Any,
    ) -> tuple[Tensor, Tensor | None]:
        quantizers = getattr(module, QUANTIZERS_NAME)
        if original == "sdpa" and not quantizers.enabled:
            sdpa = ALL_ATTENTION_FUNCTIONS["sdpa"]
            return sdpa(module, query, key, value, attention_mask, dropout=dropout, scaling=scaling, **kwargs)
        return quantizers(query, key, value, attention_mask, scaling, dropout)

    return attention


for _original in ("sdpa", "eager"):
    AttentionInterface.register(QUANTIZED_PREFIX + _original, _through(_original))
    # Without an entry of its own here a model would be given no mask at all.
    AttentionMaskInterface.register(QUANTIZED_PREFIX + _original, ALL_MASK_ATTENTION_FUNCTIONS[_original])
