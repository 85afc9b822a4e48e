"""A function of the user's: from a weight, and measured statistics, to scores."""

import inspect
from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from lit_compress.errors import UserError
from lit_compress.functional.patterns import Pattern
from lit_compress.models.heads_and_neurons import Kind
from lit_compress.nn.compressible import CompressibleLinear
from lit_compress.strategies.distributed_weights import full_weight
from lit_compress.strategies.importance.importance import Importance, Sample
from lit_compress.strategies.sampling import sample_gradients, sample_input_norms
from lit_compress.strategies.units import Units

__all__ = ["Function"]

_STATISTICS = ("input_norms", "gradients")


class Function(Importance):
    """Scores by a function ``f(weight)``, ``f(weight, input_norms)``, ``f(weight, gradients)`` or all three.

    What its parameters ask for in addition to the weight is measured again at each update, on training examples;
    ``input_norms`` are ``(in_features,)``, the root mean square of each input; ``gradients`` are of the weight's shape,
    the mean of ``|dL/dw|`` over mini-batches of the task's loss. Nothing is kept, no other weight changes.

    Args:
        function: gives scores of the weight's shape, low ones are pruned first; the same on every rank.
        batches: mini-batches that an update looks at, if the function asks for more than the weight.
        batch_size: examples of a mini-batch on each device.

    """

    def __init__(self, function: Callable[..., Tensor], batches: int = 8, batch_size: int = 16) -> None:
        self.function, self.batches, self.batch_size = function, batches, batch_size
        self.statistics = _asked(function)
        self.from_weights, self.needs_passes = not self.statistics, bool(self.statistics)

    def check(self, pattern: Pattern | Kind) -> None:
        if isinstance(self.function, type) or not callable(self.function):
            given = f"the class {_name(self.function)}" if isinstance(self.function, type) else repr(self.function)
            raise UserError(
                f"{self.key}: {given} is not a function of a weight; give one, or an importance such as Magnitude()"
            )
        if unknown := [name for name in self.statistics if name not in _STATISTICS]:
            raise UserError(
                f"{self.key}: {_name(self.function)!r} asks for {unknown[0]!r}; besides "
                f"the weight there are {', '.join(_STATISTICS)}"
            )
        self._check_positive("batches", "batch_size")

    def of_weight(self, weight: Tensor) -> Tensor:
        return self._score(weight, {})

    def scores(self, units: Units, sample: Sample) -> dict[str, Tensor]:
        measured = self._measure(units.layers, sample)
        return units.reduce(
            {name: self._score(full_weight(layer), measured[name]) for name, layer in units.layers.items()}
        )

    def _score(self, weight: Tensor, measured: dict[str, Tensor]) -> Tensor:
        scores = self.function(weight, **measured)
        if scores.shape != weight.shape:
            raise UserError(
                f"{self.key}: {_name(self.function)!r} gives scores of shape {tuple(scores.shape)} for a weight of "
                f"{tuple(weight.shape)}; give one for each weight"
            )
        return scores

    def _measure(self, layers: Mapping[str, CompressibleLinear], sample: Sample) -> dict[str, dict[str, Tensor]]:
        measured: dict[str, dict[str, Tensor]] = {name: {} for name in layers}
        where = (sample.trainer, sample.pl_module)
        options = {"batches": self.batches, "batch_size": self.batch_size, "draw": sample.draw}
        if "input_norms" in self.statistics:
            for name, norms in sample_input_norms(*where, layers, **options).items():
                measured[name]["input_norms"] = norms
        if "gradients" in self.statistics:
            for name, layer in layers.items():
                measured[name]["gradients"] = torch.zeros_like(full_weight(layer))
            for gradients in sample_gradients(*where, [layer.weight for layer in layers.values()], **options):
                for name, gradient in zip(layers, gradients, strict=True):
                    measured[name]["gradients"] += gradient.abs() / self.batches
        return measured


def _name(function: Callable[..., Tensor]) -> str:
    return getattr(function, "__name__", repr(function))


def _asked(function: Callable[..., Tensor]) -> tuple[str, ...]:
    """Names of the parameters without a default after the first, which is the weight."""
    try:
        parameters = list(inspect.signature(function).parameters.values())
    except (ValueError, TypeError):  # a function of torch, written in C; or none at all, which check() refuses
        return ()
    positional = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    return tuple(p.name for p in parameters[1:] if p.kind in positional and p.default is inspect.Parameter.empty)
