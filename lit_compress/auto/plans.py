"""The structure of each member: planned by a latency table, and measured before anything is trained."""

import math
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Any

from lit_compress.auto.request import Request
from lit_compress.choices import Target
from lit_compress.errors import UserError
from lit_compress.models.heads_and_neurons import KINDS, Kind
from lit_compress.planning.latency_table import LatencyTable
from lit_compress.planning.plan import NEURON_MULTIPLE, Losses, fastest, plan
from lit_compress.planning.structure import LayerShape, Structure

__all__ = ["INT8", "Cases", "Planned", "describe", "member_name", "plan_members", "smallest_structure"]

INT8 = "int8"
# How far from what is asked a structure may be before it is planned again, once.
_TOLERANCE = 0.05
# Fraction of a layer's neurons that are the fewest whose time and loss are measured.
_FEW = 1 / 32

# What is measured, by name: a structure and the target that it is exported to.
Cases = Mapping[str, tuple[Structure, Target]]
Measure = Callable[[Cases], dict[str, float]]


@dataclass(frozen=True, kw_only=True)
class Planned:
    """A member before its training.

    Args:
        name: ``4x``; ``int8`` is the teacher in integers.
        asked: times the speed of the dense model in fp32 in the same runtime; None for ``int8``.
        structure: what is left.
        measured: times the speed, of this structure with random weights.
        corrected: whether the first plan missed what was asked and was made again.

    """

    name: str
    asked: float | None
    structure: Structure
    measured: float
    corrected: bool = False

    def to_json(self) -> dict[str, Any]:
        """JSON types, for :meth:`from_json`."""
        return vars(self) | {"structure": self.structure.to_json()}

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> "Planned":
        """What :meth:`to_json` described."""
        return cls(**{**content, "structure": Structure.from_json(content["structure"])})


def member_name(speedup: float) -> str:
    """Name of a member, by what is asked of it.

    Example:
        >>> member_name(4.0), member_name(2.5)
        ('4x', '2_5x')

    """
    return f"{speedup:g}x".replace(".", "_")


def plan_members(
    request: Request, losses: Losses, table: LatencyTable, dense: Structure, measure: Measure
) -> list[Planned]:
    """A structure for each speedup that is asked for, each inside the one before.

    The table says what a part takes in addition to others; what the dense model takes in fp32 and in the target is
    measured along with it, so that a machine that is slower today does not shift the budget. Every plan is measured as
    a whole before it is trained; one that is more than 5 % slower or faster than asked because the table was wrong by
    as much is made again with what was measured.

    Args:
        request: speedups and target.
        losses: what removing costs.
        table: of the target.
        dense: the whole model.
        measure: from structures and targets by name to seconds, measured side by side.

    Raises:
        UserError: no structure is as fast as asked.

    """
    first = measure({"dense": (dense, request.runtime), INT8: (dense, request.target)})
    scale = first[INT8] / table.seconds(dense)
    budgets = {speedup: first["dense"] / speedup / scale for speedup in request.speedups}
    limit = first["dense"] / scale / table.seconds(fastest(losses, table))
    if (most := max(request.speedups)) > limit:
        raise UserError(
            f"--speedup: {most:g} is above {limit:.1f}, the most that the planned parts of this model reach"
        )
    planned = _structures(losses, table, dense, budgets)
    achieved = _speedups(request, dense, planned, measure)
    # What the table said of each, and how much faster it was than that.
    said = {s: first["dense"] / scale / table.seconds(structure) for s, structure in planned.items()}
    corrected = {
        s
        for s in planned
        if abs(achieved[s] / s - 1) > _TOLERANCE and abs(achieved[s] / said[s] - 1) > _TOLERANCE and planned[s] != dense
    }
    if corrected:
        least = table.seconds(fastest(losses, table))
        for speedup in corrected:
            budgets[speedup] = max(budgets[speedup] * achieved[speedup] / said[speedup], least)
        planned = _structures(losses, table, dense, budgets)
        achieved = _speedups(request, dense, planned, measure)
    members = (
        [Planned(name=INT8, asked=None, structure=dense, measured=first["dense"] / first[INT8])] if request.int8 else []
    )
    return members + [
        Planned(name=member_name(s), asked=s, structure=planned[s], measured=achieved[s], corrected=s in corrected)
        for s in request.speedups
    ]


def _structures(
    losses: Losses, table: LatencyTable, dense: Structure, budgets: Mapping[float, float]
) -> dict[float, Structure]:
    """A structure for each budget, from the largest down."""
    found: dict[float, Structure] = {}
    within = dense
    for speedup, seconds in sorted(budgets.items()):
        try:
            within = found[speedup] = plan(losses, table, seconds, within)
        except ValueError as error:
            raise UserError(f"--speedup: {speedup:g} is out of reach: {error}") from error
    return found


def _speedups(
    request: Request, dense: Structure, planned: Mapping[float, Structure], measure: Measure
) -> dict[float, float]:
    """How many times as fast as the dense model in fp32 each is."""
    cases: dict[str, tuple[Structure, Target]] = {"dense": (dense, request.runtime)}
    for speedup, structure in planned.items():
        cases[member_name(speedup)] = structure, request.target
    seconds = measure(cases)
    return {speedup: seconds["dense"] / seconds[member_name(speedup)] for speedup in planned}


def smallest_structure(dense: Structure, fixed: Collection[Kind] = ()) -> Structure:
    """The first layer with one head and the fewest neurons that a plan has: nothing is faster.

    Args:
        dense: the whole model.
        fixed: what a layer of this family cannot lose; of both, where it repeats one layer, nothing goes.

    """
    if len(fixed) == len(KINDS):
        return dense
    first, *others = dense.layers
    assert first is not None
    heads = first.heads if "heads" in fixed else 1
    few = min(math.ceil(first.neurons * _FEW / NEURON_MULTIPLE) * NEURON_MULTIPLE, first.neurons)
    least = LayerShape(heads, first.neurons if "neurons" in fixed else few)
    return Structure(layers=(least, *(None for _ in others)))


def describe(structure: Structure, dense: Structure) -> str:
    """What is left, in words.

    Example:
        >>> full = Structure(layers=(LayerShape(12, 100),) * 4)
        >>> describe(Structure(layers=(LayerShape(6, 20), None, None, LayerShape(6, 30))), full)
        '2 of 4 layers, in them 50 % of heads and 25 % of neurons'
        >>> describe(full, full)
        'all layers, heads and neurons'

    """
    if structure == dense:
        return "all layers, heads and neurons"
    before = [dense.layers[layer] for layer in structure.kept]
    shares = [
        sum(getattr(shape, kind) for shape in structure.shapes) / sum(getattr(shape, kind) for shape in before)
        for kind in ("heads", "neurons")
    ]
    layers = f"{len(structure.kept)} of {len(dense.kept)} layers"
    return f"{layers}, in them {100 * shares[0]:.0f} % of heads and {100 * shares[1]:.0f} % of neurons"
