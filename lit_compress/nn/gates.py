"""Gates: a layer that is closed passes its input on, and can be removed later without changing anything.

A gate is a bool buffer of the layer and a forward hook. Names and other entries of the state dict stay as they were; a
gate that closes is a value written in place, so nothing is compiled again; and a closed layer is still computed, so
every parameter takes part in every step and DDP finds them all used, with gradients of exactly 0.
"""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

__all__ = ["add_layer_gate", "gated_layers", "layer_gate", "remove_layer_gate"]

_GATE = "layer_open"


def add_layer_gate(layer: nn.Module) -> None:
    """Give a transformer layer an open gate; does nothing when it has one.

    Args:
        layer: takes hidden states as its first positional argument and returns them, alone or first in a tuple.

    """
    if layer_gate(layer) is None:
        device = next(layer.parameters()).device
        layer.register_buffer(_GATE, torch.ones((), dtype=torch.bool, device=device))
        # First of all hooks: Transformers records hidden states with hooks, and they are to see what comes out.
        layer.register_forward_hook(_pass_on_when_closed, prepend=True)


def layer_gate(layer: nn.Module) -> Tensor | None:
    """The gate, a bool tensor ``()``, True when open; None without one."""
    return layer._buffers.get(_GATE)


def gated_layers(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """Names and layers that have a gate, in model order."""
    return ((name, module) for name, module in model.named_modules() if layer_gate(module) is not None)


def remove_layer_gate(layer: nn.Module) -> None:
    """Take the gate away, open or closed; does nothing without one."""
    if layer_gate(layer) is not None:
        delattr(layer, _GATE)
        for key in [key for key, hook in layer._forward_hooks.items() if hook is _pass_on_when_closed]:
            del layer._forward_hooks[key]


# A function of the module, so that copies and pickles of a layer are gated by their own buffer.
def _pass_on_when_closed(layer: nn.Module, args: tuple[Any, ...], output: Any) -> Any:
    gate = layer_gate(layer)
    assert gate is not None
    if isinstance(output, tuple):
        return (torch.where(gate, output[0], args[0]), *output[1:])
    return torch.where(gate, output, args[0])
