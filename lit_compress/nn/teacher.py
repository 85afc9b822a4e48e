"""A teacher that only runs forward passes."""

from collections.abc import Callable
from typing import Any, Self

import torch
from torch import Tensor, nn

__all__ = ["FrozenTeacher"]


class FrozenTeacher(nn.Module):
    """Holds a model that is always in evaluation mode, never has a gradient and is never in a checkpoint.

    The model is not a submodule: ``state_dict``, ``parameters``, ``train`` and wrappers such as DDP and FSDP do not see
    it. Moving and casting reach it.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self._held = (model.requires_grad_(False).eval(),)  # in a tuple, where nn.Module does not look for modules

    @property
    def model(self) -> nn.Module:
        """The model held."""
        return self._held[0]

    @torch.no_grad()
    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return self.model(*args, **kwargs)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        # What .to(), .cuda() and .half() call.
        self.model._apply(fn, recurse)
        return super()._apply(fn, recurse)
