"""ModernBERT on unpadded tokens: the model itself is the encoder; layers have rotations and, most of them, a window."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from transformers.masking_utils import create_bidirectional_mask, create_bidirectional_sliding_window_mask
from transformers.modeling_outputs import BaseModelOutput

from lit_compress.errors import UserError
from lit_compress.models.fused_encoder import FusedEncoder
from lit_compress.models.fused_layer import Distances
from lit_compress.ops.padding import find_sequences, pad, unpad

__all__ = ["FusedModernBert", "modernbert_steps"]

_LOCAL = "sliding_attention"


class FusedModernBert(FusedEncoder):
    """Comes before the class of the base model.

    Attributes:
        rotary_emb: Transformers' module that makes cosines and sines.

    """

    config: Any
    layers: nn.ModuleList
    embeddings: nn.Module
    final_norm: nn.LayerNorm
    rotary_emb: nn.Module

    @property
    def layer(self) -> nn.ModuleList:  # type: ignore[override]
        return self.layers

    def start(self, config: Any) -> None:
        """Nothing: no code of Transformers builds a mask before this module runs, and in training it needs its own."""

    def stop(self) -> None:
        self.__dict__.pop("token_budget", None)

    def forward(  # type: ignore[override]
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        **kwargs: Any,
    ) -> Any:
        if self.training:
            theirs: Any = super(FusedEncoder, self)
            return theirs.forward(input_ids, attention_mask, position_ids, inputs_embeds, **kwargs)
        if (input_ids is None) == (inputs_embeds is None):
            raise UserError("input_ids, inputs_embeds: exactly one of them must be given")
        if isinstance(attention_mask, Mapping):
            raise UserError(
                "attention_mask: a mask for each kind of layer; a fused encoder takes (batch, tokens), or none; for "
                "masks between single tokens call lit_compress.models.fused.unfuse(model)"
            )
        wanted = self._wanted(kwargs, self.config)
        hidden = self.embeddings(input_ids=input_ids, inputs_embeds=inputs_embeds)
        batch, length = hidden.shape[:2]
        if position_ids is None:
            position_ids = torch.arange(length, device=hidden.device).unsqueeze(0)
        places = {kind: self.rotary_emb(hidden, position_ids, kind) for kind in dict.fromkeys(self.config.layer_types)}

        def plain(layer: Any, hidden: Tensor) -> Tensor:
            make = (
                create_bidirectional_sliding_window_mask
                if layer.attention_type == _LOCAL
                else create_bidirectional_mask
            )
            mask = make(config=self.config, inputs_embeds=hidden, attention_mask=attention_mask)
            return layer(hidden, attention_mask=mask, position_embeddings=places[layer.attention_type])

        sequences = find_sequences(attention_mask, batch, length, hidden.device, self.token_budget)
        rotations = {
            kind: (unpad(cos.expand(batch, -1, -1), sequences), unpad(sin.expand(batch, -1, -1), sequences))
            for kind, (cos, sin) in places.items()
        }
        distances = Distances(sequences.positions(), rotations=rotations)
        states, last = self._layers(hidden, sequences, distances, wanted, plain)
        last = pad(self.final_norm(last), sequences)
        found = BaseModelOutput(
            last_hidden_state=last,  # type: ignore[arg-type]
            hidden_states=(*states, last) if wanted else None,  # type: ignore[arg-type]
        )
        return found if kwargs.get("return_dict", getattr(self.config, "return_dict", True)) else found.to_tuple()


def modernbert_steps(layer: Any, config: Any) -> dict[str, Any]:
    """What the steps of ModernBERT's layers are besides those of BERT's."""
    kind = layer.attention_type
    return {"rotation": kind, "window": config.sliding_window if kind == _LOCAL else None}
