"""Activations: a weight is worth what its input carries."""

from torch import Tensor

from lit_compress.errors import UserError
from lit_compress.functional.importance import wanda
from lit_compress.functional.patterns import Pattern
from lit_compress.models.groups import Kind
from lit_compress.strategies.distributed_weights import full_weight
from lit_compress.strategies.importance.importance import Importance, Sample
from lit_compress.strategies.sampling import sample_input_norms
from lit_compress.strategies.units import Units

__all__ = ["Activations"]


class Activations(Importance):
    """``|w| * norm of the input feature`` (Wanda: Sun et al. 2023, arXiv 2306.11695).

    The norms are measured anew at each update, on rows of the training data, without dropout and without padding; it
    keeps nothing and changes no other weight. Where the paper ranks the weights of each output by themselves, the ranks
    here are those of the pattern and the scope.

    Args:
        batches: mini-batches that an update looks at.
        batch_size: rows of a mini-batch on each device.

    """

    needs_passes = True

    def __init__(self, batches: int = 8, batch_size: int = 16) -> None:
        self.batches, self.batch_size = batches, batch_size

    def check(self, pattern: Pattern | Kind) -> None:
        for key, value in (("batches", self.batches), ("batch_size", self.batch_size)):
            if value < 1:
                raise UserError(f"{self.key}.{key}: {value} must be 1 or more")

    def scores(self, units: Units, sample: Sample) -> dict[str, Tensor]:
        layers = units.layers
        norms = sample_input_norms(sample.trainer, sample.pl_module, layers, self.batches, self.batch_size, sample.draw)
        return units.reduce({name: wanda(full_weight(layer), norms[name]) for name, layer in layers.items()})
