"""Importance criteria: a weight tensor in, a score per weight, neuron or head out; low scores are pruned first."""

from torch import Tensor

__all__ = ["head_scores", "magnitude", "neuron_scores", "taylor", "wanda"]


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


def taylor(weight: Tensor, absolute_gradient: Tensor) -> Tensor:
    """First-order Taylor importance: what the loss would change by, were the weight 0.

    ``I(w) = |w * sum over mini-batches of |dL/dw||``, as in the official code of ROSITA (Liu et al. 2021, arXiv
    2103.11367); the sum, not the mean, because only the ranking counts.

    Args:
        weight: any shape, usually ``(out_features, in_features)``.
        absolute_gradient: same shape; ``|dL/dw|`` added up over mini-batches.

    Returns:
        Scores of the same shape.

    Example:
        >>> taylor(torch.tensor([-2.0, 0.5]), torch.tensor([0.5, 3.0])).tolist()
        [1.0, 1.5]

    """
    return (weight.detach() * absolute_gradient.detach()).abs()


def wanda(weight: Tensor, input_norms: Tensor) -> Tensor:
    """Magnitude times the norm of the input it meets (Wanda: Sun et al. 2023, arXiv 2306.11695, equation 1).

    Args:
        weight: ``(out_features, in_features)``.
        input_norms: ``(in_features,)``, L2 norms or root mean squares over tokens.

    Returns:
        Scores of the weight's shape.

    Example:
        >>> wanda(torch.tensor([[-2.0, 0.5]]), torch.tensor([1.0, 8.0])).tolist()
        [[2.0, 4.0]]

    """
    return weight.detach().abs() * input_norms


def neuron_scores(first: Tensor, second: Tensor) -> Tensor:
    """Score of each neuron of a feed-forward block: its row of the first matrix plus its column of the second.

    Args:
        first: scores of the weights that lead to the neurons, ``(neurons, hidden)``.
        second: scores of those that lead away from them, ``(hidden, neurons)``.

    Returns:
        ``(neurons,)``.

    Example:
        >>> neuron_scores(torch.tensor([[1.0, 2.0], [0.0, 1.0]]), torch.tensor([[1.0, 0.0], [1.0, 5.0]])).tolist()
        [5.0, 6.0]

    """
    return first.sum(dim=1) + second.sum(dim=0)


def head_scores(output: Tensor, heads: int) -> Tensor:
    """Score of each attention head: its columns of the attention's output projection.

    Args:
        output: scores of the projection's weights, ``(hidden, heads * head_size)``.
        heads: number of heads.

    Returns:
        ``(heads,)``.

    Example:
        >>> head_scores(torch.tensor([[1.0, 2.0, 0.0, 1.0], [1.0, 0.0, 0.0, 1.0]]), 2).tolist()
        [4.0, 2.0]

    """
    return output.sum(dim=0).reshape(heads, -1).sum(dim=1)
