"""Hugging Face models: loading them, where their parts are, making them smaller, and what they are then stored as."""

from lit_compress.models.attention import attention_modules
from lit_compress.models.drop_layers import drop_layers, kept_layers
from lit_compress.models.fold import fold
from lit_compress.models.fused import fuse, unfuse
from lit_compress.models.fused_report import describe_fused
from lit_compress.models.heads_and_neurons import remove_heads, remove_neurons
from lit_compress.models.hf_quantizer import (  # registers them with Transformers
    LitCompressConfig,
    LitCompressQuantizer,
)
from lit_compress.models.in_place import prune_, quantize_
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
from lit_compress.models.pack import pack

__all__ = [
    "LayerParts",
    "Layout",
    "LitCompressConfig",
    "LitCompressQuantizer",
    "attention_modules",
    "check_compatible",
    "describe_fused",
    "drop_layers",
    "embedding_tables",
    "encoder_layers",
    "fold",
    "fuse",
    "kept_layers",
    "layer_linears",
    "layer_parts",
    "layout_of",
    "load_classifier",
    "load_model",
    "pack",
    "prune_",
    "quantize_",
    "remove_heads",
    "remove_neurons",
    "unfuse",
]
