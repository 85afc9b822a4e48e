"""Magnitude: the weights nearest to 0 are worth least."""

from torch import Tensor

from lit_compress.functional.importance import magnitude
from lit_compress.strategies.importance.importance import Importance

__all__ = ["Magnitude"]


class Magnitude(Importance):
    """Absolute value of a weight (Zhu & Gupta 2017, arXiv 1710.01878). Collects nothing, changes no other weight."""

    from_weights = True

    def of_weight(self, weight: Tensor) -> Tensor:
        return magnitude(weight)
