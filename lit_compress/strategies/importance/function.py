"""A function of the user's: from a weight, and what was measured beside it, to scores."""

import inspect
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from lit_compress.errors import UserError
from lit_compress.functional.patterns import Pattern
from lit_compress.models.groups import Kind
from lit_compress.strategies.distributed_weights import full_weight
from lit_compress.strategies.importance.importance import Importance, Sample
from lit_compress.strategies.sampling import sample_gradients, sample_input_norms
from lit_compress.strategies.units import Units

__all__ = ["Function"]

_STATISTICS = ("input_norms", "gradients")


class Function(Importance):
    """Scores by a function ``f(weight)``, ``f(weight, input_norms)``, ``f(weight, gradients)`` or all three.

    What its parameters ask for beside the weight is measured anew at each update, on rows of the training data;
    ``input_norms`` are ``(in_features,)``, the root mean square of each input; ``gradients`` are of the weight's shape,
    the mean of ``|dL/dw|`` over mini-batches of the task's loss. Nothing is kept, no other weight changes.

    Args:
        function: gives scores of the weight's shape, low ones are pruned first; the same on every rank.
        batches: mini-batches that an update looks at, if the function asks for more than the weight.
        batch_size: rows of a mini-batch on each device.

    """

    def __init__(self, function: Callable[..., Tensor], batches: int = 8, batch_size: int = 16) -> None:
        self.function, self.batches, self.batch_size = function, batches, batch_size
        self.statistics = _asked(function)
        self.from_weights, self.needs_passes = not self.statistics, bool(self.statistics)

    def check(self, pattern: Pattern | Kind) -> None:
        if unknown := [name for name in self.statistics if name not in _STATISTICS]:
            raise UserError(
                f"{self.key}: {getattr(self.function, '__name__', self.function)!r} asks for {unknown[0]!r}; beside "
                f"the weight there are {', '.join(_STATISTICS)}"
            )
        for key, value in (("batches", self.batches), ("batch_size", self.batch_size)):
            if value < 1:
                raise UserError(f"{self.key}.{key}: {value} must be 1 or more")

    def of_weight(self, weight: Tensor) -> Tensor:
        return self.function(weight)

    def scores(self, units: Units, sample: Sample) -> dict[str, Tensor]:
        layers = units.layers
        measured: dict[str, dict[str, Any]] = {name: {} for name in layers}
        options = {"batches": self.batches, "batch_size": self.batch_size, "draw": sample.draw}
        if "input_norms" in self.statistics:
            norms = sample_input_norms(sample.trainer, sample.pl_module, layers, **options)
            for name, norm in norms.items():
                measured[name]["input_norms"] = norm
        if "gradients" in self.statistics:
            weights = [layer.weight for layer in layers.values()]
            sums = [torch.zeros_like(full_weight(layer)) for layer in layers.values()]
            for gradients in sample_gradients(sample.trainer, sample.pl_module, weights, **options):
                for total, gradient in zip(sums, gradients, strict=True):
                    total += gradient.abs() / self.batches
            for name, total in zip(layers, sums, strict=True):
                measured[name]["gradients"] = total
        return units.reduce(
            {name: self.function(full_weight(layer), **measured[name]) for name, layer in layers.items()}
        )


def _asked(function: Callable[..., Tensor]) -> tuple[str, ...]:
    """Names of the parameters without a default beside the first, which is the weight."""
    try:
        parameters = list(inspect.signature(function).parameters.values())
    except ValueError:  # a function of torch, written in C
        return ()
    positional = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    return tuple(p.name for p in parameters[1:] if p.kind in positional and p.default is inspect.Parameter.empty)
