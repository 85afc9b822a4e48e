"""Modules that carry compression: masked and fake-quantized linears, quantizers, the frozen teacher, surgery."""

from lit_compress.nn.compressible import CompressibleLinear
from lit_compress.nn.factorized import FactorizedEmbedding, factorized_embeddings
from lit_compress.nn.manifest import describe, rebuild
from lit_compress.nn.quantizers import (
    DynamicTokenQuantizer,
    MinMaxWeightQuantizer,
    MovingAverageQuantizer,
)
from lit_compress.nn.slicing import keep_inputs, keep_outputs
from lit_compress.nn.surgery import compressible_layers, make_compressible, match_modules
from lit_compress.nn.teacher import FrozenTeacher

__all__ = [
    "CompressibleLinear",
    "DynamicTokenQuantizer",
    "FactorizedEmbedding",
    "FrozenTeacher",
    "MinMaxWeightQuantizer",
    "MovingAverageQuantizer",
    "compressible_layers",
    "describe",
    "factorized_embeddings",
    "keep_inputs",
    "keep_outputs",
    "make_compressible",
    "match_modules",
    "rebuild",
]
