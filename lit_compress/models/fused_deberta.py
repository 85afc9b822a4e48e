"""DeBERTa's encoder on unpadded tokens: queries and keys are multiplied with positions, too (arXiv:2006.03654)."""

from typing import Any

import torch
from torch import Tensor, nn
from transformers import PretrainedConfig
from transformers.modeling_outputs import BaseModelOutput

from lit_compress.errors import UserError
from lit_compress.models.fused_encoder import FusedEncoder
from lit_compress.models.fused_layer import Distances
from lit_compress.ops.padding import Sequences

__all__ = ["FusedDebertaEncoder", "deberta_steps", "why_not_deberta"]


class FusedDebertaEncoder(FusedEncoder):
    """Comes before DeBERTa's own class; what its layers are given and what it returns differ from BERT's.

    Attributes:
        columns: int32 ``(2 * reach + 1,)``, row of the table of positions for each distance of key and query.
        rows: the same numbers on the host.

    """

    columns: Tensor
    rows: list[int]

    def start(self, config: Any) -> None:
        super().start(config)
        if not self.relative_attention:
            return
        theirs: Any = self
        reach: int = theirs.max_relative_positions
        span = theirs.position_buckets if theirs.position_buckets > 0 else reach
        # Of queries and keys: the first column has keys before the query, the first row those behind it.
        places = theirs.get_rel_pos(torch.empty(reach + 1, 0)).squeeze(0)
        columns = (torch.cat([places[1:, 0].flip(0), places[0]]).int() + span).clamp(0, 2 * span - 1)
        # Found once: a buffer that moves with the model and is in no file.
        self.register_buffer("columns", columns.to(next(self.parameters()).device), persistent=False)
        self.rows = columns.tolist()

    def stop(self) -> None:
        super().stop()
        if self.relative_attention:
            del self.columns, self.rows

    def forward(  # type: ignore[override]
        self,
        hidden_states: Tensor,
        attention_mask: Tensor | None = None,
        query_states: Tensor | None = None,
        relative_pos: Tensor | None = None,
        **kwargs: Any,
    ) -> Any:
        if query_states is not None or relative_pos is not None:
            raise UserError("query_states, relative_pos: a fused encoder takes neither; give neither")
        return super().forward(hidden_states, attention_mask, **kwargs)

    def _output(self, states: list[Tensor | None], **kwargs: Any) -> Any:
        every = tuple(states) if kwargs.get("output_hidden_states", True) else None
        if kwargs.get("return_dict", True):
            return BaseModelOutput(last_hidden_state=states[-1], hidden_states=every)  # type: ignore[arg-type]
        return (states[-1],) if every is None else (states[-1], every)

    def _plain(self, layer: nn.Module, hidden: Tensor, mask: Tensor | None) -> Tensor:
        theirs: Any = self
        given = {"relative_pos": theirs.get_rel_pos(hidden), "rel_embeddings": theirs.get_rel_embedding()}
        return layer(hidden, theirs.get_attention_mask(mask), **given)[0]

    def _distances(self, sequences: Sequences) -> Distances:
        if not self.relative_attention:
            return Distances()
        middle = len(self.rows) // 2
        farthest = min(sequences.length - 1, middle)
        first, last = self.rows[middle + farthest], self.rows[middle - farthest]
        # Positions that are farther away than this batch is long are not part of any product.
        table = self.get_rel_embedding()[first : last + 1]  # type: ignore[operator]
        return Distances(sequences.positions(), columns=self.columns - first, table=table)


def deberta_steps(layer: Any, config: Any) -> dict[str, Any]:
    """What the steps of DeBERTa's layers are besides those of BERT's."""
    attention = layer.attention.self
    kinds = tuple(kind for kind in ("c2p", "p2c") if kind in attention.pos_att_type)
    return {
        "scale": (attention.attention_head_size * (1 + len(kinds))) ** -0.5,
        "relative": kinds if attention.relative_attention else (),
    }


def why_not_deberta(config: PretrainedConfig) -> str | None:
    """Why the layers of a model cannot be fused; None when they can."""
    if getattr(config, "conv_kernel_size", 0) > 0:
        return "a convolution after the first layer reads the tokens around each"
    if getattr(config, "relative_attention", False) and not getattr(config, "share_att_key", False):
        return "positions have projections of their own (share_att_key is False)"
    return None
