"""How far up the right documents are among all."""

import torch
from torch import Tensor

__all__ = ["retrieval_scores"]


def retrieval_scores(similarity: Tensor, relevant: Tensor, top: int = 10) -> dict[str, Tensor]:
    r"""NDCG, reciprocal rank and recall of each query among its ``top`` documents.

    torchmetrics has them for one query at a time, and takes no similarity below 0 for found.

    Relevance is yes or no: :math:`\mathrm{DCG} = \sum_r 1 / \log_2(1 + r)` over the ranks ``r`` of relevant documents
    (Järvelin and Kekäläinen 2002). Of equal similarities the irrelevant come first: a model whose vectors are all the
    same finds nothing.

    Args:
        similarity: ``(queries, documents)``.
        relevant: bool, of the same shape; each query has one or more.
        top: how many documents are looked at.

    Returns:
        ``ndcg``, ``mrr`` and ``recall``, float64 ``(queries,)``.

    Example:
        >>> found = retrieval_scores(torch.tensor([[0.9, 0.8, 0.1]]), torch.tensor([[False, True, False]]))
        >>> {name: round(value.item(), 3) for name, value in found.items()}
        {'ndcg': 0.631, 'mrr': 0.5, 'recall': 1.0}

    """
    first = relevant.to(torch.uint8).argsort(dim=1, stable=True)
    order = similarity.gather(1, first).argsort(dim=1, descending=True, stable=True)[:, :top]
    hits = relevant.gather(1, first.gather(1, order)).double()
    ranks = torch.arange(1, hits.shape[1] + 1, dtype=torch.float64, device=hits.device)
    gains, count = 1 / (1 + ranks).log2(), relevant.sum(1)
    best = gains.cumsum(0)[count.clamp(max=len(ranks)) - 1]
    return {
        "ndcg": (hits * gains).sum(1) / best,
        "mrr": (hits / ranks).amax(1),
        "recall": hits.sum(1) / count,
    }
