"""Which layers of an encoder stay when some are dropped: the rules of "Poor Man's BERT" (arXiv 2004.03844).

Layers count from 0 at the bottom, next to the embeddings. All functions give the layers kept, in ascending order.
"""

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

__all__ = ["Position", "keep_by_position", "keep_dissimilar", "keep_highest", "weight_score"]

Position = Literal["top", "bottom", "symmetric", "alternate-odd", "alternate-even"]


def keep_by_position(count: int, drop: int, position: Position) -> list[int]:
    """Drop layers for where they are.

    Args:
        count: number of layers.
        drop: how many go.
        position: ``top`` or ``bottom`` drops there; ``symmetric`` drops the middle and keeps as many layers at either
            end, of an odd number one more at the bottom; ``alternate-odd`` and ``alternate-even`` drop every other
            layer from the top downwards, those with odd or even numbers counted from 1.

    Raises:
        ValueError: there are not that many layers to drop.

    Example:
        >>> keep_by_position(12, 4, "symmetric")
        [0, 1, 2, 3, 8, 9, 10, 11]
        >>> keep_by_position(12, 4, "alternate-odd")
        [0, 1, 2, 3, 5, 7, 9, 11]

    """
    kept_below = (count - drop + 1) // 2
    order = {
        "top": range(count - 1, -1, -1),
        "bottom": range(count),
        "symmetric": range(kept_below, kept_below + drop),
        "alternate-odd": range((count - 1) // 2 * 2, -1, -2),
        "alternate-even": range(count // 2 * 2 - 1, -1, -2),
    }[position]
    most = min(len(order), count - 1) if position.startswith("alternate") else count - 1
    if not 1 <= drop <= most:
        raise ValueError(f"of {count} layers {position} can drop 1 to {most}, not {drop}")
    return _without(count, order[:drop])


def keep_dissimilar(
    similarities: Sequence[float], drop: int | None = None, threshold: float | None = None
) -> list[int]:
    """Drop the layers that change the least, those whose output is most similar to their input.

    Args:
        similarities: mean cosine of each layer's input and output.
        drop: how many go, the most similar first and of equals the upper.
        threshold: instead, every layer above it goes.

    Raises:
        ValueError: no layer would go, or none would stay.

    Example:
        >>> keep_dissimilar([0.6, 0.9, 0.8, 0.95], drop=2)
        [0, 2]
        >>> keep_dissimilar([0.6, 0.9, 0.8, 0.95], threshold=0.85)
        [0, 2]

    """
    if threshold is None:
        assert drop is not None
        return keep_highest([-similarity for similarity in similarities], drop)
    keep = [index for index, similarity in enumerate(similarities) if similarity <= threshold]
    if not 1 <= len(keep) < len(similarities):
        raise ValueError(
            f"similarities from {min(similarities):.4f} to {max(similarities):.4f} leave "
            f"{'every' if keep else 'no'} layer at {threshold}"
        )
    return keep


def keep_highest(scores: Sequence[float], drop: int) -> list[int]:
    """Drop the layers with the lowest scores, of equals the upper.

    Raises:
        ValueError: there are not that many layers to drop.

    Example:
        >>> keep_highest([3.0, 1.0, 2.0, 2.0], drop=2)
        [0, 2]

    """
    count = len(scores)
    if not 1 <= drop < count:
        raise ValueError(f"of {count} layers 1 to {count - 1} can be dropped, not {drop}")
    return _without(count, sorted(range(count), key=lambda index: (scores[index], -index))[:drop])


def weight_score(weights: Sequence[Tensor], measure: Literal["aggregation", "variance"]) -> Tensor:
    """Score of a layer from its weights alone: mean over its weight matrices of their mean magnitude or variance.

    The third version of the paper names both measures; that matrices count alike, whatever their size, is our reading.

    Args:
        weights: weight matrices of the layer, any shapes.
        measure: ``aggregation`` of magnitudes, or ``variance``.

    Returns:
        Tensor of shape ``()``.

    Example:
        >>> weight_score([torch.tensor([1.0, -3.0]), torch.tensor([4.0, 4.0])], "aggregation").item()
        3.0

    """
    if measure == "aggregation":
        return torch.stack([weight.double().abs().mean() for weight in weights]).mean()
    return torch.stack([weight.double().var(correction=0) for weight in weights]).mean()


def _without(count: int, dropped: Sequence[int]) -> list[int]:
    return sorted(set(range(count)) - set(dropped))
