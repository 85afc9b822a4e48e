"""Hugging Face models: loading them, where their parts are, and making them smaller."""

from lit_compress.models.groups import remove_heads, remove_neurons
from lit_compress.models.layout import (
    LayerParts,
    Layout,
    embedding_tables,
    encoder_layers,
    layer_linears,
    layer_parts,
    layout_of,
)
from lit_compress.models.load import check_compatible, load_classifier
from lit_compress.models.smaller_config import SmallerConfig, SmallerModel  # registers them with Transformers

__all__ = [
    "LayerParts",
    "Layout",
    "SmallerConfig",
    "SmallerModel",
    "check_compatible",
    "embedding_tables",
    "encoder_layers",
    "layer_linears",
    "layer_parts",
    "layout_of",
    "load_classifier",
    "remove_heads",
    "remove_neurons",
]
