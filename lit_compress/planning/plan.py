"""The structure with the least estimated loss that is as fast as asked, from tables of losses and of times alone."""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any, Protocol

import numpy as np

from lit_compress.planning.latency_table import interpolated
from lit_compress.planning.structure import LayerShape, Structure

__all__ = ["NEURON_MULTIPLE", "Losses", "Times", "fastest", "plan"]

NEURON_MULTIPLE = 32

# Into how many steps of time the dense model is cut. The times of layers are rounded up to them: of 12 layers at most
# 0.02 % of the dense model's time is given away.
_STEPS = 2**16


class Times(Protocol):
    """What is asked of a latency table: times that add up over the layers."""

    def layer(self, shape: LayerShape) -> float:
        """Seconds of one layer."""
        ...

    def seconds(self, structure: Structure) -> float:
        """Seconds of all: those of the layers, and what does not depend on them."""
        ...


@dataclass(frozen=True, kw_only=True)
class Losses:
    """How much more a model is estimated to lose without some of its parts; over parts and layers it adds up.

    Args:
        heads: for each layer of the dense model, what is lost when so many of its heads are left: from all of them,
            0.0, down to the fewest that are allowed; between two numbers it is interpolated.
        neurons: the same for its neurons.
        layers: what is lost without each layer as a whole; infinite where it cannot go.
        same_heads: whether all layers that are left have the same number of heads.

    """

    heads: tuple[Mapping[int, float], ...]
    neurons: tuple[Mapping[int, float], ...]
    layers: tuple[float, ...]
    same_heads: bool = False

    @property
    def dense(self) -> Structure:
        """The structure of which nothing is removed."""
        return Structure(
            layers=tuple(LayerShape(max(h), max(n)) for h, n in zip(self.heads, self.neurons, strict=True))
        )

    def layer(self, index: int, shape: LayerShape | None) -> float:
        """What is lost in one layer when this is left of it; None: nothing."""
        if shape is None:
            return self.layers[index]
        return interpolated(self.heads[index], shape.heads) + interpolated(self.neurons[index], shape.neurons)

    def of(self, structure: Structure) -> float:
        """What is lost in all, without what the rank of the embedding costs."""
        return sum(self.layer(index, shape) for index, shape in enumerate(structure.layers))

    def to_json(self) -> dict[str, Any]:
        """JSON types, for :meth:`from_json`; a layer that cannot go has null."""
        return {
            "heads": [{str(count): loss for count, loss in each.items()} for each in self.heads],
            "neurons": [{str(count): loss for count, loss in each.items()} for each in self.neurons],
            "layers": [None if math.isinf(loss) else loss for loss in self.layers],
            "same_heads": self.same_heads,
        }

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> "Losses":
        """The losses that :meth:`to_json` described."""
        heads, neurons = (
            tuple({int(count): loss for count, loss in each.items()} for each in content[kind])
            for kind in ("heads", "neurons")
        )
        layers = tuple(math.inf if loss is None else loss for loss in content["layers"])
        return cls(heads=heads, neurons=neurons, layers=layers, same_heads=content.get("same_heads", False))


@dataclass(frozen=True)
class _Layer:
    """What may become of a layer: shapes of which each takes longer and loses less than the one before, or nothing."""

    shapes: list[LayerShape]
    seconds: list[float]
    losses: list[float]
    loss_without: float


def plan(
    losses: Losses,
    table: Times,
    seconds: float,
    within: Structure | None = None,
    neuron_multiple: int = NEURON_MULTIPLE,
    rank: int | None = None,
) -> Structure:
    """The structure with the least estimated loss among those that take at most so long.

    Exact up to the rounding of times (for each layer 1/65,536 of the dense model's time), by dynamic programming over
    the layers. More time never gives a larger loss. The same tables give the same structure on every machine; of equal
    losses the shorter time is taken.

    Args:
        losses: of the model.
        table: times of a layer by its shape, and of the whole.
        seconds: what it may take.
        within: the structure of which parts are taken away; None is the whole model.
        neuron_multiple: neurons that are left are a multiple of it, or all that ``within`` has.
        rank: of the word embedding, which is given and not planned; None is that of ``within``.

    Raises:
        ValueError: no structure is as fast; the message says how fast the fastest is.

    Example:
        >>> class Table:  # a second for each head and each neuron
        ...     def layer(self, shape):
        ...         return shape.heads + shape.neurons
        ...     def seconds(self, structure):
        ...         return sum(map(self.layer, structure.shapes))
        >>> heads, neurons = ({2: 0.0, 1: 0.1}, {2: 0.0, 1: 0.3}), ({4: 0.0, 2: 0.5}, {4: 0.0, 2: 0.2})
        >>> losses = Losses(heads=heads, neurons=neurons, layers=(0.9, 2.0))
        >>> plan(losses, Table(), seconds=9.5, neuron_multiple=1).layers
        (LayerShape(heads=1, neurons=4), LayerShape(heads=2, neurons=2))

    """
    within = within or losses.dense
    rank = within.rank if rank is None else rank
    whole = Structure(layers=within.layers, rank=rank)
    quick = fastest(losses, table, within, neuron_multiple, rank)
    if (limit := table.seconds(quick)) > seconds:
        raise ValueError(f"{seconds:.4g} seconds are less than the {limit:.4g} that the fastest structure takes")
    # Times that are rounded up may leave out what just fits; of the fastest and the whole it is known.
    fitting = [quick]
    if table.seconds(whole) <= seconds:
        fitting.append(whole)
        seconds = table.seconds(whole)
    step = table.seconds(losses.dense) / _STEPS
    budget = math.floor((seconds - table.seconds(whole) + sum(table.layer(shape) for shape in whole.shapes)) / step)
    for layers in _choices(losses, table, within, neuron_multiple):
        for steps in (budget, budget - 1):
            found = _least_loss(layers, step, steps)
            # A sum of floating-point numbers may be a last digit above a budget that it meets.
            if found is not None and table.seconds(Structure(layers=found, rank=rank)) <= seconds:
                fitting.append(Structure(layers=found, rank=rank))
                break
    return min(fitting, key=lambda structure: (losses.of(structure), table.seconds(structure)))


def fastest(
    losses: Losses,
    table: Times,
    within: Structure | None = None,
    neuron_multiple: int = NEURON_MULTIPLE,
    rank: int | None = None,
) -> Structure:
    """The structure that takes the least time; arguments are those of :func:`plan`."""
    within = within or losses.dense
    rank = within.rank if rank is None else rank
    found = [
        Structure(layers=_fastest(layers), rank=rank) for layers in _choices(losses, table, within, neuron_multiple)
    ]
    return min(found, key=lambda structure: (table.seconds(structure), losses.of(structure)))


def _choices(losses: Losses, table: Times, within: Structure, neuron_multiple: int) -> Iterator[list[_Layer]]:
    """What may become of the layers; where all have the same number of heads, for one number after the other."""
    if not losses.same_heads:
        yield _choices_of(losses, table, within, neuron_multiple, None)
        return
    least = max(min(*known, most.heads) for known, most in zip(losses.heads, within.layers, strict=True) if most)
    for heads in range(least, min(shape.heads for shape in within.shapes) + 1):
        yield _choices_of(losses, table, within, neuron_multiple, heads)


def _choices_of(
    losses: Losses, table: Times, within: Structure, neuron_multiple: int, same_heads: int | None
) -> list[_Layer]:
    seconds_of = cache(table.layer)
    found: list[_Layer] = []
    for index, most in enumerate(within.layers):
        if most is None:
            found.append(_Layer([], [], [], 0.0))
            continue
        heads, neurons = (
            [(count, interpolated(known[index], count)) for count in counts]
            for known, counts in (
                (losses.heads, [same_heads] if same_heads else _counts(losses.heads[index], most.heads, 1)),
                (losses.neurons, _counts(losses.neurons[index], most.neurons, neuron_multiple)),
            )
        )
        options = sorted(
            (seconds_of(shape := LayerShape(left, width)), of_heads + of_neurons, shape)
            for left, of_heads in heads
            for width, of_neurons in neurons
        )
        layer = _Layer([], [], [], losses.layers[index])
        for seconds, loss, shape in options:
            if not layer.losses or loss < layer.losses[-1]:
                layer.shapes.append(shape)
                layer.seconds.append(seconds)
                layer.losses.append(loss)
        found.append(layer)
    return found


def _counts(losses: Mapping[int, float], most: int, multiple: int) -> list[int]:
    """How many may be left: multiples, from the fewest that were looked at up to all there are."""
    return [count for count in range(min(*losses, most), most + 1) if count % multiple == 0 or count == most]


def _fastest(layers: Sequence[_Layer]) -> tuple[LayerShape | None, ...]:
    least = [layer.shapes[0] if math.isinf(layer.loss_without) else None for layer in layers]
    if not any(least):  # one has to stay
        kept = min(
            (index for index, layer in enumerate(layers) if layer.shapes),
            key=lambda index: (layers[index].seconds[0], layers[index].losses[0] - layers[index].loss_without),
        )
        least[kept] = layers[kept].shapes[0]
    return tuple(least)


def _least_loss(layers: Sequence[_Layer], step: float, budget: int) -> tuple[LayerShape | None, ...] | None:
    """The best shapes whose times, rounded up to steps, are at most the budget; None when there are none."""
    steps = [[math.ceil(seconds / step) for seconds in layer.seconds] for layer in layers]
    if budget < 0:
        return None
    # By steps: the least loss of the layers so far when one of them or more are kept; and their loss when none is.
    best, none_kept = np.full(budget + 1, np.inf), 0.0
    choices: list[np.ndarray] = []
    firsts: list[np.ndarray] = []
    for layer, each in zip(layers, steps, strict=True):
        firsts.append(none_kept <= best)
        before = np.minimum(best, none_kept)
        best = best + layer.loss_without
        choices.append(np.full(budget + 1, -1))
        for number, (taken, loss) in enumerate(zip(each, layer.losses, strict=True)):
            if taken > budget:
                break
            candidate = before[: budget + 1 - taken] + loss
            better = candidate < best[taken:]
            best[taken:][better] = candidate[better]
            choices[-1][taken:][better] = number
        none_kept += layer.loss_without
    if np.isinf(best[-1]):
        return None
    # From the last layer to the first that is kept, at the least time with this loss.
    shapes: list[LayerShape | None] = [None] * len(layers)
    at = int(np.argmax(best == best[-1]))
    for index in reversed(range(len(layers))):
        if (number := int(choices[index][at])) < 0:
            continue
        shapes[index] = layers[index].shapes[number]
        at -= steps[index][number]
        if firsts[index][at]:
            break
    return tuple(shapes)
