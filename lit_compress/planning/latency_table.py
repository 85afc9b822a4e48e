"""How long each part of an encoder takes on one machine, as measured; what a structure takes is their sum."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from lit_compress.planning.structure import LayerShape, Structure

__all__ = ["LatencyTable", "interpolated"]


@dataclass(frozen=True, kw_only=True)
class LatencyTable:
    """Times of a forward pass by part, in seconds; what lies between two measured counts is interpolated.

    Args:
        heads: of a layer's attention, by number of heads.
        neurons: of a layer's feed-forward block, by number of neurons.
        ranks: of a factorised word embedding minus that of the whole table, by rank; may be below 0. Empty where the
            model cannot have one.
        fixed: of embeddings, head and the runtime itself.
        settings: what the times depend on: target, versions, processor, threads, rows, tokens and model.
        busy: what to say of the machine when something else disturbed the measuring; empty when it was quiet.

    """

    heads: Mapping[int, float]
    neurons: Mapping[int, float]
    ranks: Mapping[int, float]
    fixed: float
    settings: Mapping[str, str]
    busy: str = ""

    def layer(self, shape: LayerShape) -> float:
        """Seconds of one layer."""
        return interpolated(self.heads, shape.heads) + interpolated(self.neurons, shape.neurons)

    def seconds(self, structure: Structure) -> float:
        """Seconds of a forward pass; a layer that is gone takes none.

        Raises:
            ValueError: a factorised embedding, of which nothing was measured.

        """
        if structure.rank is not None and not self.ranks:
            raise ValueError("a factorised embedding was not measured: this model cannot have one")
        embedding = 0.0 if structure.rank is None else interpolated(self.ranks, structure.rank)
        return self.fixed + embedding + sum(map(self.layer, structure.shapes))

    def to_json(self) -> dict[str, Any]:
        """JSON types, for :meth:`from_json`."""
        parts = {name: {str(count): time for count, time in getattr(self, name).items()} for name in _PARTS}
        return {"settings": dict(self.settings), "busy": self.busy, "fixed": self.fixed, **parts}

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> "LatencyTable":
        """The table that :meth:`to_json` described.

        Raises:
            KeyError: something is missing.
            ValueError: something is not a number.

        """
        heads, neurons, ranks = ({int(count): float(time) for count, time in content[name].items()} for name in _PARTS)
        settings, fixed, busy = dict(content["settings"]), float(content["fixed"]), content.get("busy", "")
        return cls(heads=heads, neurons=neurons, ranks=ranks, fixed=fixed, settings=settings, busy=busy)


_PARTS = ("heads", "neurons", "ranks")


def interpolated(known: Mapping[int, float], count: int) -> float:
    """The value at a count, on straight lines between those that are known; beyond them that of the nearest."""
    counts = sorted(known)
    return float(np.interp(count, counts, [known[each] for each in counts]))
