"""What stands in the place of an encoder and of its layers: the same modules, run on unpadded tokens."""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, Self, cast

from torch import Tensor, nn
from transformers.modeling_outputs import BaseModelOutputWithPastAndCrossAttentions

from lit_compress.errors import UserError
from lit_compress.models.attention import UNPADDED
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
        distances: Distances,
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

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        share(self.steps.qkv, self.projections)  # pickle knows no views


class FusedEncoder(nn.Module):
    """Comes before an encoder's own class, which is used in training.

    Attributes:
        token_budget: unpadded tokens that a captured or compiled graph computes; None computes all places of the
            batch. A batch with more unpadded tokens gives NaN.

    """

    layer: nn.ModuleList
    token_budget: int | None = None
    fused_config: Any
    plain_attention: str

    @property
    def row_budget(self) -> int | None:  # codespell:ignore row_budget
        """The old name of ``token_budget``."""
        return self.token_budget

    @row_budget.setter  # codespell:ignore row_budget
    def row_budget(self, budget: int | None) -> None:  # codespell:ignore row_budget
        self.token_budget = budget

    def start(self, config: Any) -> None:
        """Make ready what :meth:`forward` needs, once the class is this one."""
        self.fused_config = config
        self.plain_attention = config._attn_implementation
        config._attn_implementation = UNPADDED

    def stop(self) -> None:
        """Undo :meth:`start`."""
        self.fused_config._attn_implementation = self.plain_attention
        del self.fused_config, self.plain_attention
        self.__dict__.pop("token_budget", None)

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
        wanted = self._wanted(kwargs, self.fused_config)
        batch, length = hidden_states.shape[:2]
        sequences = find_sequences(attention_mask, batch, length, hidden_states.device, self.token_budget)
        plain = partial(self._plain, mask=attention_mask)
        states, last = self._layers(hidden_states, sequences, self._distances(sequences), wanted, plain)
        return self._output([*states, pad(last, sequences)], **kwargs)

    def _wanted(self, options: Mapping[str, Any], config: Any) -> bool:
        """Whether the hidden states of all layers are wanted.

        Raises:
            UserError: the probabilities of attention are.

        """
        if options.get("output_attentions", getattr(config, "output_attentions", False)):
            raise UserError(
                "output_attentions: a fused encoder never holds the probabilities of its attention; "
                "call lit_compress.models.fused.unfuse(model) first"
            )
        return options.get("output_hidden_states", getattr(config, "output_hidden_states", False)) not in (None, False)

    def _output(self, states: list[Tensor | None], **_: Any) -> Any:
        # Transformers' hooks collect hidden states from the layers.
        return BaseModelOutputWithPastAndCrossAttentions(last_hidden_state=cast(Any, states[-1]))

    def _plain(self, layer: nn.Module, hidden: Tensor, mask: Tensor | None) -> Tensor:
        """What a layer that is not fused makes of padded hidden states."""
        return layer(hidden, mask)

    def _distances(self, sequences: Sequences) -> Distances:
        """What positions mean to attention."""
        return Distances()

    def _layers(
        self,
        hidden: Tensor,
        sequences: Sequences,
        distances: Distances,
        padded: bool,
        plain: Callable[[nn.Module, Tensor], Tensor],
    ) -> tuple[list[Tensor | None], Tensor]:
        """Hidden states before each layer, padded where they had to be, and the rows behind the last one."""
        layers = list(self.layer)
        first = [layer.steps.reads if isinstance(layer, FusedLayer) else None for layer in layers]
        rows = rows_for(first[0], unpad(hidden, sequences))
        states: list[Tensor | None] = [hidden]
        for layer, following in zip(layers, [*first[1:], None], strict=True):
            assert rows.y is not None
            if isinstance(layer, FusedLayer):
                whole, rows = layer(
                    states[-1], rows=rows, sequences=sequences, following=following, padded=padded, distances=distances
                )
            else:
                whole = plain(layer, pad(rows.y, sequences) if states[-1] is None else states[-1])
                rows = rows_for(following, unpad(whole, sequences))
            states.append(whole)
        assert rows.y is not None
        return states[:-1], rows.y
