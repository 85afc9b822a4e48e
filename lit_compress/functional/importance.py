"""Importance criteria: a weight tensor in, a score per weight out; low scores are pruned first."""

from torch import Tensor

__all__ = ["magnitude"]


def magnitude(weight: Tensor) -> Tensor:
    """Absolute value: the criterion of gradual magnitude pruning (Zhu & Gupta 2017, arXiv 1710.01878).

    Args:
        weight: any shape, usually ``(out_features, in_features)``.

    Returns:
        Scores of the same shape.

    Example:
        >>> magnitude(torch.tensor([-2.0, 0.5])).tolist()
        [2.0, 0.5]

    """
    return weight.detach().abs()
