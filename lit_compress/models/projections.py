"""Reading the queries, keys and values of a Hugging Face encoder while it runs."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn

from lit_compress.errors import UserError
from lit_compress.models.layout import encoder_layers

__all__ = ["read_projections"]

_NAMES = ("query", "key", "value")
# Inside a layer, by family: BERT and RoBERTa, DistilBERT, DeBERTa v2, MPNet; ModernBERT has all three in one module.
_PATHS = (
    ("attention.self.query", "attention.self.key", "attention.self.value"),
    ("attention.q_lin", "attention.k_lin", "attention.v_lin"),
    ("attention.self.query_proj", "attention.self.key_proj", "attention.self.value_proj"),
    ("attention.attn.q", "attention.attn.k", "attention.attn.v"),
    ("attn.Wqkv",),
)


@contextmanager
def read_projections(model: nn.Module, layers: Iterable[int]) -> Iterator[dict[int, dict[str, Tensor]]]:
    """Inside the block, a forward of ``model`` also fills the dictionary given.

    Args:
        model: an encoder with any head.
        layers: 1 is the first, -1 the last.

    Yields:
        Layer, as given, to ``{"query": (batch, tokens, width), "key": ..., "value": ...}``, all heads side by side.

    Raises:
        UserError: no such layer, or a family whose projections are no modules of their own.

    """
    taken: dict[int, dict[str, Tensor]] = {}
    handles = []
    try:
        for index in layers:
            for names, module in _projections(model, index):

                def keep(
                    _: nn.Module, __: Any, output: Tensor, index: int = index, names: tuple[str, ...] = names
                ) -> None:
                    taken.setdefault(index, {}).update(zip(names, output.chunk(len(names), dim=-1), strict=True))

                handles.append(module.register_forward_hook(keep))
        yield taken
    finally:
        for handle in handles:
            handle.remove()


def _projections(model: nn.Module, index: int) -> list[tuple[tuple[str, ...], nn.Module]]:
    """Modules of a layer, each with the names of what its output consists of."""
    layers = encoder_layers(model)
    if index == 0 or not -len(layers) <= index <= len(layers):
        raise UserError(f"distillation: {type(model).__name__} has no layer {index}; it has 1 to {len(layers)}")
    modules = dict(layers[index - 1 if index > 0 else index].named_modules())
    for paths in _PATHS:
        if all(path in modules for path in paths):
            names = [_NAMES] if len(paths) == 1 else [(name,) for name in _NAMES]
            return [(name, modules[path]) for name, path in zip(names, paths, strict=True)]
    raise UserError(
        f"distillation: the queries, keys and values of {type(model).__name__} are no modules of their own; "
        "remove the RelationDistillation, or take another model"
    )
