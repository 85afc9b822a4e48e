"""Vectors of tokens to one vector of a text."""

import torch
from torch import Tensor
from torch.nn import functional as F

__all__ = ["POOLINGS", "pool"]

POOLINGS = ("mean", "cls", "max")


def pool(hidden: Tensor, mask: Tensor | None, pooling: str, normalize: bool) -> Tensor:
    """One vector for each text, in fp32: sums of many tokens need it.

    Sentence-BERT (Reimers and Gurevych 2019, arXiv 1908.10084), as sentence-transformers computes it.

    Args:
        hidden: last hidden states ``(texts, tokens, width)``.
        mask: ``(texts, tokens)``, nonzero for tokens that are not padding; None counts all.
        pooling: ``mean`` or ``max`` over the tokens, or ``cls``, the first token.
        normalize: divide each vector by its length.

    Returns:
        ``(texts, width)``.

    Example:
        >>> hidden = torch.tensor([[[3.0, 0.0], [3.0, 8.0], [9.0, 9.0]]])
        >>> pool(hidden, torch.tensor([[1, 1, 0]]), "mean", normalize=True)
        tensor([[0.6000, 0.8000]])

    """
    hidden = hidden.float()
    counted = torch.ones_like(hidden[..., :1]) if mask is None else mask.unsqueeze(-1).to(hidden.dtype)
    if pooling == "mean":
        vectors = (hidden * counted).sum(1) / counted.sum(1).clamp_min(1)
    elif pooling == "max":
        vectors = hidden.masked_fill(counted == 0, -torch.inf).amax(1)
    else:
        assert pooling == "cls", pooling
        vectors = hidden[:, 0]
    return F.normalize(vectors, dim=-1) if normalize else vectors
