"""Strategies: Lightning callbacks that decide, between steps, what is pruned, locked, quantized or frozen."""

from lit_compress.strategies.freeze_embeddings import FreezeEmbeddings
from lit_compress.strategies.gradual_layer_drop import GradualLayerDropping
from lit_compress.strategies.layer_drop import LayerDropping
from lit_compress.strategies.low_rank_embedding import LowRankEmbedding
from lit_compress.strategies.magnitude import MagnitudePruning
from lit_compress.strategies.monitor import CompressionMonitor
from lit_compress.strategies.movement import MovementPruning
from lit_compress.strategies.pattern_lock import PatternLock
from lit_compress.strategies.quant_aware import QuantAwareTraining
from lit_compress.strategies.second_order import SecondOrderPruning
from lit_compress.strategies.strategy import Strategy
from lit_compress.strategies.structured import StructuredPruning

__all__ = [
    "CompressionMonitor",
    "FreezeEmbeddings",
    "GradualLayerDropping",
    "LayerDropping",
    "LowRankEmbedding",
    "MagnitudePruning",
    "MovementPruning",
    "PatternLock",
    "QuantAwareTraining",
    "SecondOrderPruning",
    "Strategy",
    "StructuredPruning",
]
