"""Reading the queries, keys and values of a Hugging Face encoder while it runs."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

from torch import Tensor, nn

from lit_compress.errors import UserError
from lit_compress.models.layout import encoder_layers, layout_of, tokens_first

__all__ = ["read_projections"]

_NAMES = ("query", "key", "value")


@contextmanager
def read_projections(model: nn.Module, layers: Iterable[int]) -> Iterator[dict[int, dict[str, Tensor]]]:
    """Inside the block, a forward of ``model`` also fills the dictionary given.

    Args:
        model: an encoder with any head.
        layers: 1 is the first, -1 the last.

    Yields:
        Layer, as given, to ``{"query": (batch, tokens, width), "key": ..., "value": ...}``, all heads side by side.
        Longformer's have the tokens that fill its windows, too, at the end.

    Raises:
        UserError: no such layer, or a family whose projections are not modules of their own.

    """
    taken: dict[int, dict[str, Tensor]] = {}
    handles, transposed = [], tokens_first(model)

    def keep(index: int, names: tuple[str, ...], layer: nn.Module, _: Any, output: Tensor) -> None:
        output = output.transpose(0, 1) if layer in transposed else output
        parts = dict(zip(names, output.chunk(len(names), dim=-1), strict=True))
        before = taken.get(index, {})
        # Of a layer that is run as every layer it is the last use; of others the first, which is that on the tokens:
        # DeBERTa projects its relative positions with the same weights afterwards.
        taken[index] = before | parts if layout_of(model).shared else parts | before

    try:
        for index in layers:
            for names, module in _projections(model, index):
                handles.append(module.register_forward_hook(partial(keep, index, names)))
        yield taken
    finally:
        for handle in handles:
            handle.remove()


def _projections(model: nn.Module, index: int) -> list[tuple[tuple[str, ...], nn.Module]]:
    """Modules of a layer, each with the names of what its output consists of."""
    layout, layers, name = layout_of(model, "distillation"), encoder_layers(model), type(model).__name__
    if layout.shared and index != -1:
        raise UserError(f"distillation: {name} runs one stored layer as all; of its layers only -1, the last, is seen")
    if index == 0 or not -len(layers) <= index <= len(layers):
        raise UserError(f"distillation: {name} has no layer {index}; it has 1 to {len(layers)}")
    layer = layers[index - 1 if index > 0 else index]
    if layout.query_key_value is not None:
        return [(_NAMES, layer.get_submodule(layout.query_key_value))]
    if layout.query is None or layout.key is None or layout.value is None:
        raise UserError(
            f"distillation: the queries, keys and values of {name} are not modules of their own; "
            "remove the RelationDistillation, or use another model"
        )
    paths = (layout.query, layout.key, layout.value)
    return [((part,), layer.get_submodule(path)) for part, path in zip(_NAMES, paths, strict=True)]
