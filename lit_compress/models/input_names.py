"""What a model reads of what tokenizers make."""

import inspect

from transformers import PreTrainedModel

__all__ = ["model_inputs"]

_INPUTS = ("input_ids", "attention_mask", "token_type_ids")


def model_inputs(model: PreTrainedModel) -> list[str]:
    """Names of a model's inputs that tokenizers make, in the order of the exports' graphs."""
    taken = inspect.signature(model.forward).parameters
    types = getattr(model.config, "type_vocab_size", 1) != 0  # XLNet has no such entry and has types
    return [name for name in _INPUTS if name in taken and (name != "token_type_ids" or types)]
