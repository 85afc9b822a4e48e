"""Hugging Face models: loading them, and where their parts are."""

from lit_compress.models.groups import remove_heads, remove_neurons
from lit_compress.models.layout import encoder_layers
from lit_compress.models.load import check_compatible, load_classifier
from lit_compress.models.smaller_config import SmallerConfig, SmallerModel  # registers them with Transformers

__all__ = [
    "SmallerConfig",
    "SmallerModel",
    "check_compatible",
    "encoder_layers",
    "load_classifier",
    "remove_heads",
    "remove_neurons",
]
