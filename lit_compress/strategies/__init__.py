"""Strategies: Lightning callbacks that decide, between steps, what is pruned, locked, quantized or frozen."""

from lit_compress.strategies.distributed_weights import full_weight, set_mask, write_weight
from lit_compress.strategies.freeze_embeddings import FreezeEmbeddings
from lit_compress.strategies.gradual_layer_drop import GradualLayerDropping
from lit_compress.strategies.importance import Activations, Fisher, Function, Importance, Magnitude, Movement, Taylor
from lit_compress.strategies.layer_drop import LayerDropping
from lit_compress.strategies.low_rank_embedding import LowRankEmbedding
from lit_compress.strategies.magnitude import MagnitudePruning
from lit_compress.strategies.monitor import CompressionMonitor
from lit_compress.strategies.movement import MovementPruning
from lit_compress.strategies.pattern_lock import PatternLock
from lit_compress.strategies.pruning import Pruning
from lit_compress.strategies.quant_aware import QuantAwareTraining
from lit_compress.strategies.scheduled import Scheduled
from lit_compress.strategies.second_order import SecondOrderPruning
from lit_compress.strategies.strategy import Strategy, percent, student_of, zeros
from lit_compress.strategies.structured import StructuredPruning
from lit_compress.strategies.window import PartsWindow, Window, parse_duration, to_steps

__all__ = [
    "Activations",
    "CompressionMonitor",
    "Fisher",
    "FreezeEmbeddings",
    "Function",
    "GradualLayerDropping",
    "Importance",
    "LayerDropping",
    "LowRankEmbedding",
    "Magnitude",
    "MagnitudePruning",
    "Movement",
    "MovementPruning",
    "PartsWindow",
    "PatternLock",
    "Pruning",
    "QuantAwareTraining",
    "Scheduled",
    "SecondOrderPruning",
    "Strategy",
    "StructuredPruning",
    "Taylor",
    "Window",
    "full_weight",
    "parse_duration",
    "percent",
    "set_mask",
    "student_of",
    "to_steps",
    "write_weight",
    "zeros",
]
