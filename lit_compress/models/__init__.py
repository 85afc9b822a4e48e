"""Hugging Face models: loading them, and where their parts are."""

from lit_compress.models.attention import attention_modules
from lit_compress.models.layout import encoder_layers
from lit_compress.models.load import check_compatible, load_classifier, load_model

__all__ = ["attention_modules", "check_compatible", "encoder_layers", "load_classifier", "load_model"]
