"""Movement pruning's mathematics: scores learned along with the weights (Sanh et al. 2020, arXiv 2005.07683)."""

from torch import Tensor

__all__ = ["masked_by_scores", "score_penalty", "threshold_mask"]


def masked_by_scores(weight: Tensor, mask: Tensor, scores: Tensor) -> Tensor:
    """``weight * mask``, with the mask's gradient handed straight through to the scores it was made from.

    ``dL/dS = dL/dW' * W``, for pruned entries as well: a score rises when its weight moves away from 0. The weight's
    own gradient is ``dL/dW' * mask``.

    Args:
        weight: ``(out_features, in_features)``.
        mask: bool, of the same shape.
        scores: of the same shape; their values do not matter here.

    Example:
        >>> weight, scores = torch.tensor([2.0, -3.0]), torch.zeros(2, requires_grad=True)
        >>> masked = masked_by_scores(weight, torch.tensor([True, False]), scores)
        >>> masked.sum().backward()
        >>> masked.tolist(), scores.grad.tolist()
        ([2.0, -0.0], [2.0, -3.0])

    """
    # The bracket is exactly 0: the product equals weight * mask to the last bit.
    return weight * (mask + (scores - scores.detach()))


def threshold_mask(scores: Tensor, threshold: float, least: float = 0.005) -> Tensor:
    """Keep where ``sigmoid(scores) > threshold``, and at least the highest ``int(least * numel) + 1`` scores.

    The soft variant of the paper; the least kept is that of the authors' code.

    Args:
        scores: any shape.
        threshold: in [0, 1).
        least: fraction of entries that is always kept.

    Example:
        >>> threshold_mask(torch.tensor([2.0, -2.0, -3.0]), 0.5).tolist()
        [True, False, False]
        >>> threshold_mask(torch.tensor([-4.0, -2.0, -3.0]), 0.5).tolist()
        [False, True, False]

    """
    flat = scores.detach().reshape(-1)
    mask = flat.sigmoid() > threshold
    mask[flat.topk(int(least * flat.numel()) + 1).indices] = True
    return mask.reshape(scores.shape)


def score_penalty(scores: Tensor) -> Tensor:
    """``sum(sigmoid(scores)) / numel``: the L1 norm that pulls scores below the threshold.

    Example:
        >>> score_penalty(torch.zeros(2, 2)).item()
        0.5

    """
    return scores.sigmoid().mean()
