"""Modules that carry compression: masked and fake-quantized layers, quantizers, the frozen teacher, replacement."""

from lit_compress.nn.attention import AttentionQuantizers, attention_quantizers
from lit_compress.nn.compressible import CompressibleLinear
from lit_compress.nn.embedding import CompressibleEmbedding
from lit_compress.nn.factorized import FactorizedEmbedding, factorized_embeddings
from lit_compress.nn.manifest import describe, rebuild
from lit_compress.nn.quantizers import (
    DynamicTokenQuantizer,
    MinMaxWeightQuantizer,
    MovingAverageQuantizer,
    TableQuantizer,
)
from lit_compress.nn.replace_layers import (
    compressible_layers,
    compressible_tables,
    make_compressible,
    make_tables_compressible,
    match_modules,
)
from lit_compress.nn.slicing import keep_inputs, keep_outputs
from lit_compress.nn.teacher import FrozenTeacher

__all__ = [
    "AttentionQuantizers",
    "CompressibleEmbedding",
    "CompressibleLinear",
    "DynamicTokenQuantizer",
    "FactorizedEmbedding",
    "FrozenTeacher",
    "MinMaxWeightQuantizer",
    "MovingAverageQuantizer",
    "TableQuantizer",
    "attention_quantizers",
    "compressible_layers",
    "compressible_tables",
    "describe",
    "factorized_embeddings",
    "keep_inputs",
    "keep_outputs",
    "make_compressible",
    "make_tables_compressible",
    "match_modules",
    "rebuild",
]
