"""Reading the queries, keys and values of a Hugging Face encoder while it runs."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

from torch import Tensor, nn

from lit_compress.errors import UserError
from lit_compress.models.layout import encoder_layers

__all__ = ["read_projections"]

_PATHS = {
    "attention.self": ("query", "key", "value"),
}


@contextmanager
def read_projections(model: nn.Module, layers: Iterable[int]) -> Iterator[dict[int, dict[str, Tensor]]]:
    """Inside the block, a forward of ``model`` also fills the dictionary given.

    Args:
        model: an encoder with any head.
        layers: 1 is the first, -1 the last.

    Returns:
        Layer, as given, to ``{"query": (batch, tokens, width), "key": ..., "value": ...}``, all heads side by side.

    Raises:
        UserError: no such layer, or a family whose projections are no modules of their own.

    """
    taken: dict[int, dict[str, Tensor]] = {}
    handles = []
    try:
        for index in layers:
            layer = _layer(model, index)
            for name in ("query", "key", "value"):
                module = layer.get_submodule(f"attention.self.{name}")

                def keep(_: nn.Module, __: object, output: Tensor, index: int = index, name: str = name) -> None:
                    taken.setdefault(index, {})[name] = output

                handles.append(module.register_forward_hook(keep))
        yield taken
    finally:
        for handle in handles:
            handle.remove()


def _layer(model: nn.Module, index: int) -> nn.Module:
    layers = encoder_layers(model)
    if index == 0 or not -len(layers) <= index <= len(layers):
        raise UserError(f"distillation: {type(model).__name__} has no layer {index}; it has 1 to {len(layers)}")
    return layers[index - 1 if index > 0 else index]
