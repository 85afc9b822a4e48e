"""How much each layer of an encoder changes what passes through it."""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lit_compress.models.layout import encoder_layers, layout_of

__all__ = ["evaluating", "similarity_sums"]


@torch.no_grad()
def similarity_sums(model: nn.Module, forward: Callable[[Any], Any], batches: Iterable[Any]) -> Tensor:
    """Cosine of each layer's input and output at the token that stands for the sequence, summed over rows.

    That token is the first; the last in XLNet. There is no dropout and no gradient, and nothing of the model changes.

    Args:
        model: Hugging Face encoder with any head.
        forward: runs the model once on a batch.
        batches: what ``forward`` takes.

    Returns:
        Float64 tensor ``(layers + 1,)``: the sums, and the number of rows. Tensors of several ranks may be added.

    """
    token = {"first": 0, "last": -1}[layout_of(model).summary_token]
    layers = list(encoder_layers(model))
    sums = torch.zeros(len(layers) + 1, dtype=torch.float64, device=next(model.parameters()).device)

    def watch(layer: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        before, after = (
            # XLNet computes on (tokens, rows, hidden), everybody else on (rows, tokens, hidden).
            hidden[token] if token else hidden[:, token]
            for hidden in (args[0], output[0] if isinstance(output, tuple) else output)
        )
        index = layers.index(layer)
        sums[index] += F.cosine_similarity(before.double(), after.double(), dim=-1).sum()
        sums[-1] += len(before) if index == 0 else 0

    with evaluating(model), _hooks(layers, watch):
        for batch in batches:
            forward(batch)
    return sums


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Evaluation mode; afterwards every module is in the mode it was in."""
    was_training = [module for module in model.modules() if module.training]
    model.eval()
    try:
        yield
    finally:
        for module in was_training:
            module.training = True


@contextmanager
def _hooks(layers: list[nn.Module], hook: Callable[[nn.Module, tuple[Any, ...], Any], None]) -> Iterator[None]:
    handles = [layer.register_forward_hook(hook) for layer in layers]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
