"""An embedding table as the product of two factors, whose rank can fall while they are trained."""

from collections.abc import Iterator
from typing import Self

import torch
from torch import Tensor, nn

from lit_compress.functional.low_rank import truncated_svd
from lit_compress.nn.slicing import keep_inputs

__all__ = ["FactorizedEmbedding", "factorized_embeddings"]


class FactorizedEmbedding(nn.Embedding):
    """A table of few columns and a projection to the width of the model: ``projection(weight[ids])``.

    ``weight`` has the key of the table it replaces and another shape, so that weights of one form never load silently
    into the other. Like ROSITA (arXiv 2103.11367) the rank falls by leaving out the last columns of both *trained*
    factors; ``rank_mask`` leaves them out while shapes and names stay as they are, :meth:`to_rank` cuts them off.

    Args:
        num_embeddings: rows of the table.
        rank: columns of the table; inputs of the projection.
        embedding_dim: width of what comes out.
        padding_idx: row without gradient, as in ``nn.Embedding``.
        device: where the factors are.
        dtype: their type.

    Attributes:
        weight: ``(num_embeddings, rank)``.
        projection: ``nn.Linear(rank, embedding_dim)`` without bias.
        rank_mask: bool buffer ``(rank,)``, True for the columns in use; None until :meth:`add_rank_mask`.

    """

    rank_mask: Tensor | None

    def __init__(
        self,
        num_embeddings: int,
        rank: int,
        embedding_dim: int,
        padding_idx: int | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(num_embeddings, rank, padding_idx, device=device, dtype=dtype)
        self.rank, self.embedding_dim = rank, embedding_dim
        self.projection = nn.Linear(rank, embedding_dim, bias=False, device=device, dtype=dtype)
        self.register_buffer("rank_mask", None)

    @classmethod
    def empty_like(cls, table: nn.Embedding, rank: int) -> Self:
        """Factors of the shape that a table of this size has at a rank, with values to be loaded."""
        like = {"device": table.weight.device, "dtype": table.weight.dtype}
        factors = cls(table.num_embeddings, rank, table.embedding_dim, table.padding_idx, **like)
        return factors.train(table.training)

    @classmethod
    @torch.no_grad()
    def from_embedding(cls, table: nn.Embedding, rank: int) -> Self:
        """The best factors of a table at a rank; ``ValueError`` for a rank above the table's smaller side."""
        left, right = truncated_svd(table.weight, rank)
        factors = cls.empty_like(table, rank)
        factors.weight.copy_(left)
        factors.projection.weight.copy_(right.T)
        factors.requires_grad_(table.weight.requires_grad)
        return factors

    def add_rank_mask(self) -> None:
        """Install a mask that keeps every column; does nothing when there is one."""
        if self.rank_mask is None:
            self.rank_mask = torch.ones(self.rank, dtype=torch.bool, device=self.weight.device)

    def forward(self, input: Tensor) -> Tensor:
        """Token ids ``(...)`` to ``(..., embedding_dim)``."""
        rows = super().forward(input)
        if self.rank_mask is not None:
            rows = rows * self.rank_mask
        return self.projection(rows)

    @torch.no_grad()
    def to_rank(self, rank: int) -> None:
        """Cut both factors to their first columns, in place; the mask goes.

        The parameters become new ones, so this is for before the optimizer exists or after training.
        """
        index = torch.arange(rank, device=self.weight.device)
        self.weight = nn.Parameter(self.weight[:, :rank].clone(), requires_grad=self.weight.requires_grad)
        keep_inputs(self.projection, index)
        self.rank, self.rank_mask = rank, None

    def kept_rank(self) -> int:
        """Number of columns in use."""
        return self.rank if self.rank_mask is None else int(self.rank_mask.sum())

    def extra_repr(self) -> str:
        return f"{self.num_embeddings}, {self.embedding_dim}, rank={self.rank}, padding_idx={self.padding_idx}"


def factorized_embeddings(model: nn.Module) -> Iterator[tuple[str, FactorizedEmbedding]]:
    """Names and tables of every :class:`FactorizedEmbedding`, in model order."""
    return ((name, module) for name, module in model.named_modules() if isinstance(module, FactorizedEmbedding))
