"""What stands in the place of an encoder and of its layers: the same modules, run on unpadded tokens."""

from typing import Any, Self, cast

from torch import Tensor, nn
from transformers.modeling_outputs import BaseModelOutputWithPastAndCrossAttentions

from lit_compress.errors import UserError
from lit_compress.models.fused_layer import Distances, LayerSteps, Rows, rows_for, run_layer
from lit_compress.nn.packed import PackedLinear
from lit_compress.nn.packed_join import share
from lit_compress.ops.padding import Sequences, find_sequences, pad, unpad

__all__ = ["FusedEncoder", "FusedLayer"]


class FusedLayer(nn.Module):
    """Comes before a layer's own class, which is used whenever no rows are given: in training."""

    steps: LayerSteps
    projections: tuple[PackedLinear, ...]  # queries, keys and values

    def forward(self, hidden_states: Tensor | None, *args: Any, rows: Rows | None = None, **kwargs: Any) -> Any:
        if rows is None:
            return super().forward(hidden_states, *args, **kwargs)  # type: ignore[misc]
        return self._run(rows, **kwargs)

    def _run(
        self,
        rows: Rows,
        sequences: Sequences,
        following: PackedLinear | None,
        padded: bool,
        distances: Distances | None = None,
    ) -> tuple[Tensor | None, Rows]:
        rows = run_layer(self.steps, rows, sequences, following, distances)
        assert rows.y is not None
        # The first is what Transformers' hooks see when hidden states are asked for.
        return (pad(rows.y, sequences) if padded else None), rows

    def _apply(self, fn: Any, recurse: bool = True) -> Self:
        super()._apply(fn, recurse)
        self.steps.qkv._apply(fn)
        share(self.steps.qkv, self.projections)
        return self


class FusedEncoder(nn.Module):
    """Comes before an encoder's own class, which is used in training.

    Attributes:
        row_budget: rows that a captured or compiled graph computes, padding not counted; None computes all places of
            the batch. A batch with more tokens gives NaN.

    """

    layer: nn.ModuleList
    row_budget: int | None
    fused_config: Any

    def forward(
        self,
        hidden_states: Tensor,
        attention_mask: Tensor | None = None,
        encoder_hidden_states: Tensor | None = None,
        encoder_attention_mask: Tensor | None = None,
        past_key_values: Any = None,
        use_cache: bool | None = None,
        **kwargs: Any,
    ) -> Any:
        if self.training:
            # Dropout, and gradients through the packed linears, as in any other model.
            return super().forward(hidden_states, attention_mask, **kwargs)  # type: ignore[misc]
        if encoder_hidden_states is not None or past_key_values is not None:
            raise UserError("past_key_values, encoder_hidden_states: a fused encoder has neither; give neither")
        if kwargs.get("output_attentions", getattr(self.fused_config, "output_attentions", False)):
            raise UserError(
                "output_attentions: a fused encoder never holds the probabilities of its attention; "
                "call lit_compress.models.fused.unfuse(model) first"
            )
        wanted = kwargs.get("output_hidden_states", getattr(self.fused_config, "output_hidden_states", False))
        batch, length = hidden_states.shape[:2]
        sequences = find_sequences(attention_mask, batch, length, hidden_states.device, self.row_budget)
        states = self._layers(hidden_states, attention_mask, sequences, padded=wanted not in (None, False))
        return self._output(states, **kwargs)

    def _output(self, states: list[Tensor | None], **_: Any) -> Any:
        # Transformers' hooks collect hidden states from the layers.
        return BaseModelOutputWithPastAndCrossAttentions(last_hidden_state=cast(Any, states[-1]))

    def _plain(self, layer: nn.Module, hidden: Tensor, mask: Tensor | None) -> Tensor:
        """What a layer that is not fused makes of padded hidden states."""
        return layer(hidden, mask)

    def _distances(self, sequences: Sequences) -> Distances | None:
        """What the distance of two tokens means to attention; None where it means nothing."""
        return None

    def _layers(self, hidden: Tensor, mask: Tensor | None, sequences: Sequences, padded: bool) -> list[Tensor | None]:
        """Hidden states before the first layer and after each; the last ones padded, others where they had to be."""
        layers, distances = list(self.layer), self._distances(sequences)
        first = [layer.steps.qkv if isinstance(layer, FusedLayer) else None for layer in layers]
        rows = rows_for(first[0], unpad(hidden, sequences))
        states: list[Tensor | None] = [hidden]
        for layer, following in zip(layers, [*first[1:], None], strict=True):
            assert rows.y is not None
            if isinstance(layer, FusedLayer):
                whole, rows = layer(
                    states[-1], rows=rows, sequences=sequences, following=following, padded=padded, distances=distances
                )
            else:
                whole = self._plain(layer, pad(rows.y, sequences) if states[-1] is None else states[-1], mask)
                rows = rows_for(following, unpad(whole, sequences))
            states.append(whole)
        assert rows.y is not None
        return [*states[:-1], pad(rows.y, sequences)]
