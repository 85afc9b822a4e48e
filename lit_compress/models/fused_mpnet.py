"""MPNet's encoder on unpadded tokens: one table of relative positions is added to the scores of all layers."""

from typing import Any

import torch
from torch import Tensor, nn
from transformers import PretrainedConfig
from transformers.modeling_outputs import BaseModelOutput

from lit_compress.models.fused_encoder import FusedEncoder
from lit_compress.models.fused_layer import Distances
from lit_compress.ops.padding import Sequences

__all__ = ["FusedMPNetEncoder", "why_no_buckets"]

# Transformers' MPNet calls its own bucketing with these, whatever the configuration says.
_BUCKETS, _FARTHEST = 32, 128


class FusedMPNetEncoder(FusedEncoder):
    """Comes before MPNet's own class; what its layers are given and what it returns differ from BERT's.

    Attributes:
        buckets: int64 ``(257,)``, row of the table for each distance from -128 to 128; beyond that all are alike.

    """

    buckets: Tensor
    relative_attention_bias: nn.Module

    def start(self, config: Any) -> None:
        super().start(config)
        distances = torch.arange(-_FARTHEST, _FARTHEST + 1)
        buckets = self.relative_position_bucket(distances, _BUCKETS, _FARTHEST)  # type: ignore[operator]
        # Found once: a buffer that moves with the model and is in no file.
        self.register_buffer("buckets", buckets.to(next(self.parameters()).device), persistent=False)

    def stop(self) -> None:
        super().stop()
        del self.buckets

    def forward(self, hidden_states: Tensor, attention_mask: Tensor | None = None, **kwargs: Any) -> Any:
        if self.training:
            attention_mask = _added(attention_mask, hidden_states)
        return super().forward(hidden_states, attention_mask, **kwargs)

    def _output(self, states: list[Tensor | None], **kwargs: Any) -> Any:
        every = tuple(states) if kwargs.get("output_hidden_states") else None
        if kwargs.get("return_dict"):
            return BaseModelOutput(last_hidden_state=states[-1], hidden_states=every)  # type: ignore[arg-type]
        return (states[-1],) if every is None else (states[-1], every)

    def _plain(self, layer: nn.Module, hidden: Tensor, mask: Tensor | None) -> Tensor:
        bias = self.compute_position_bias(hidden)  # type: ignore[operator]
        return layer(hidden, _added(mask, hidden), bias)[0]

    def _distances(self, sequences: Sequences) -> Distances:
        return Distances(sequences.positions(), self.relative_attention_bias(self.buckets).T.float().contiguous())


def why_no_buckets(config: PretrainedConfig) -> str | None:
    """Why a table of relative positions cannot be served; None when it can."""
    rows = getattr(config, "relative_attention_num_buckets", _BUCKETS)
    return None if rows >= _BUCKETS else f"relative_attention_num_buckets is {rows}, and MPNet reads {_BUCKETS} rows"


def _added(mask: Tensor | None, hidden: Tensor) -> Tensor | None:
    """A mask of unpadded tokens as MPNet's own layers add it to their scores."""
    if mask is None or mask.dim() != 2:
        return mask
    added = torch.zeros(mask.shape, dtype=hidden.dtype, device=hidden.device)
    return added.masked_fill(mask == 0, torch.finfo(hidden.dtype).min)[:, None, None, :]
