"""Hugging Face models: loading them, where their parts are, and fewer layers."""

from lit_compress.models.attention import attention_modules
from lit_compress.models.layout import (
    LayerParts,
    Layout,
    embedding_tables,
    encoder_layers,
    layer_linears,
    layer_parts,
    layout_of,
)
from lit_compress.models.load import check_compatible, load_classifier, load_model
from lit_compress.models.shrink import drop_layers, kept_layers

__all__ = [
    "LayerParts",
    "Layout",
    "attention_modules",
    "check_compatible",
    "drop_layers",
    "embedding_tables",
    "encoder_layers",
    "kept_layers",
    "layer_linears",
    "layer_parts",
    "layout_of",
    "load_classifier",
    "load_model",
]
