"""Parts of the validation data in which a model may lose more than in the whole."""

import numpy as np

from lit_compress.tasks import Outcomes

__all__ = ["length_slices", "slices_of"]


def slices_of(outcomes: Outcomes) -> dict[str, np.ndarray]:
    """Name to bool ``(units,)``: by length of the input, and what the task divides its units into."""
    return length_slices(outcomes.lengths, outcomes.length_unit) | dict(outcomes.slices)


def length_slices(lengths: np.ndarray, unit: str, most: int = 4) -> dict[str, np.ndarray]:
    """Units by length in up to ``most`` parts of about the same number; none when all are equally long.

    Args:
        lengths: int ``(units,)``.
        unit: what is counted.
        most: parts.

    Example:
        >>> {name: mask.tolist() for name, mask in length_slices(np.array([3, 9, 4, 7]), "tokens", most=2).items()}
        {'3 to 4 tokens': [True, False, True, False], '7 to 9 tokens': [False, True, False, True]}

    """
    shares = np.arange(1, most) / most
    edges = np.unique(np.quantile(lengths, shares, method="inverted_cdf"))
    part = np.searchsorted(edges, lengths, side="left")
    found = {}
    for number in np.unique(part):
        low, high = lengths[part == number].min(), lengths[part == number].max()
        found[f"{low} to {high} {unit}" if low < high else f"{low} {unit}"] = part == number
    return found if len(found) > 1 else {}
