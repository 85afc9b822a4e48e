"""The best answer span from start and end logits."""

import torch
from torch import Tensor

__all__ = ["best_spans"]


def best_spans(
    start_logits: Tensor, end_logits: Tensor, allowed: Tensor, n_best: int = 20, max_length: int = 30
) -> tuple[Tensor, Tensor, Tensor]:
    """Score, first and last token of each row's best span; the score is -inf when a row has none.

    As in SQuAD's reference code for BERT: the ``n_best`` starts and ends are combined, and what is not a span of
    allowed tokens, in order, and short enough falls out.

    Args:
        start_logits: ``(batch, tokens)``.
        end_logits: ``(batch, tokens)``.
        allowed: bool ``(batch, tokens)``, the tokens of the context.
        n_best: how many starts and ends are looked at.
        max_length: longest answer in tokens.

    Example:
        >>> start, end = torch.tensor([[5.0, 2.0, 0.0]]), torch.tensor([[5.0, 0.0, 3.0]])
        >>> best_spans(start, end, torch.tensor([[False, True, True]]))
        (tensor([5.]), tensor([1]), tensor([2]))

    """
    count = min(n_best, start_logits.shape[1])
    start_scores, starts = start_logits.topk(count)
    end_scores, ends = end_logits.topk(count)
    scores = start_scores[:, :, None] + end_scores[:, None, :]
    length = ends[:, None, :] - starts[:, :, None] + 1
    fits = (length >= 1) & (length <= max_length)
    fits &= allowed.gather(1, starts)[:, :, None] & allowed.gather(1, ends)[:, None, :]
    score, pair = scores.masked_fill(~fits, -torch.inf).flatten(1).max(1)
    first, last = starts.gather(1, pair[:, None] // count), ends.gather(1, pair[:, None] % count)
    return score, first[:, 0], last[:, 0]
