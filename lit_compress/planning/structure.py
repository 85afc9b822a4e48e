"""What is left of an encoder: heads and neurons of each layer, the layers, the rank of the word embedding."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

__all__ = ["LayerShape", "Structure"]


@dataclass(frozen=True, order=True)
class LayerShape:
    """One layer.

    Args:
        heads: attention heads, 1 or more.
        neurons: of the feed-forward block, 1 or more.

    """

    heads: int
    neurons: int


@dataclass(frozen=True, kw_only=True)
class Structure:
    """A whole encoder, in the layers of the dense model that it comes from.

    Args:
        layers: the shape of each layer, from the first to the last; None is a layer that is gone.
        rank: of the factorised word embedding; None is the whole table.

    """

    layers: tuple[LayerShape | None, ...]
    rank: int | None = None

    @property
    def kept(self) -> tuple[int, ...]:
        """0-based indices of the layers that are left."""
        return tuple(index for index, layer in enumerate(self.layers) if layer is not None)

    @property
    def shapes(self) -> tuple[LayerShape, ...]:
        """Shapes of the layers that are left."""
        return tuple(layer for layer in self.layers if layer is not None)

    def to_json(self) -> dict[str, Any]:
        """JSON types, for :meth:`from_json`: ``{"layers": [[12, 3072], None, ...], "rank": None}``."""
        layers = [layer and [layer.heads, layer.neurons] for layer in self.layers]
        return {"layers": layers, "rank": self.rank}

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> "Structure":
        """The structure that :meth:`to_json` described."""
        return cls(layers=tuple(each and LayerShape(*each) for each in content["layers"]), rank=content["rank"])
