"""Compression inside the training loops of others."""

from lit_compress.integrations.hf_teacher import add_teacher
from lit_compress.integrations.hf_trainer import StrategyCallback, add_strategies, save_compressed

__all__ = ["StrategyCallback", "add_strategies", "add_teacher", "save_compressed"]
