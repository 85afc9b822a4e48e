"""How weights are stored: integers with scales, compressed layouts, and files whose every tensor has a digest."""

from lit_compress.storage.weight import QuantizedWeight, round_weight

__all__ = ["QuantizedWeight", "round_weight"]
