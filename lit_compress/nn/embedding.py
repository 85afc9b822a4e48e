"""The training form of an embedding table: dense weight, optional quantizer of the rows that are looked up."""

from typing import Any, Self

import torch
from torch import Tensor, nn

from lit_compress.nn.quantizers import TableQuantizer
from lit_compress.storage.weight import QuantizedWeight

__all__ = ["CompressibleEmbedding"]


class CompressibleEmbedding(nn.Embedding):
    """An ``nn.Embedding`` whose ``weight`` keeps its name and its Parameter, with a slot for a quantizer.

    Args:
        *args: as for ``nn.Embedding``.
        **kwargs: as for ``nn.Embedding``.

    Attributes:
        weight_quantizer: module on the looked-up rows; None when the table is not quantized.

    """

    weight_quantizer: TableQuantizer | None

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.weight_quantizer = None

    @classmethod
    def from_embedding(cls, table: nn.Embedding) -> Self:
        """Take over the Parameter of ``table`` (the same object: an optimizer on it stays valid)."""
        layer = cls(*_arguments(table), device="meta")
        layer.weight = table.weight
        return layer.train(table.training)

    def effective_weight(self) -> Tensor:
        """The whole table as lookups see it; ``(num_embeddings, embedding_dim)``."""
        if self.weight_quantizer is None:
            return self.weight
        self.weight_quantizer.observe(self.weight)
        return self.weight_quantizer(self.weight, torch.arange(self.num_embeddings, device=self.weight.device))

    def quantized_weight(self) -> QuantizedWeight | None:
        """The same as integers and their scales; None when the table is not quantized."""
        return None if self.weight_quantizer is None else self.weight_quantizer.quantize(self.weight)

    def forward(self, input: Tensor) -> Tensor:
        """Token ids ``(...)`` to rows ``(..., embedding_dim)``."""
        rows = super().forward(input)
        if self.weight_quantizer is None:
            return rows
        self.weight_quantizer.observe(self.weight)
        return self.weight_quantizer(rows, input)

    @torch.no_grad()
    def to_embedding(self) -> nn.Embedding:
        """A plain ``nn.Embedding`` with the effective weight, for export."""
        table = nn.Embedding(*_arguments(self), device="meta")
        table.weight = nn.Parameter(self.effective_weight().detach().clone())
        return table.train(self.training)


def _arguments(table: nn.Embedding) -> tuple[Any, ...]:
    return (
        *(table.num_embeddings, table.embedding_dim, table.padding_idx),
        *(table.max_norm, table.norm_type, table.scale_grad_by_freq, table.sparse),
    )
