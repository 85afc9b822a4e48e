"""Activations: a weight is worth what its input carries."""

from lit_compress.functional.importance import wanda
from lit_compress.strategies.importance.function import Function

__all__ = ["Activations"]


class Activations(Function):
    """``|w| * norm of the input feature`` (Wanda: Sun et al. 2023, arXiv 2306.11695).

    The norms are measured again at each update, on training examples, without dropout and without padding; it
    keeps nothing and changes no other weight. The paper ranks the weights of each output by themselves: give the scope
    ``output``.

    Args:
        batches: mini-batches that an update looks at.
        batch_size: examples of a mini-batch on each device.

    """

    def __init__(self, batches: int = 8, batch_size: int = 16) -> None:
        super().__init__(wanda, batches, batch_size)
