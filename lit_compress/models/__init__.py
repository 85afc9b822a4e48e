"""Hugging Face models: loading them, and where their parts are."""

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

__all__ = [
    "LayerParts",
    "Layout",
    "check_compatible",
    "embedding_tables",
    "encoder_layers",
    "layer_linears",
    "layer_parts",
    "layout_of",
    "load_classifier",
    "load_model",
]
