"""A teacher that can only be asked."""

from typing import Any

import torch
from torch import nn

__all__ = ["FrozenTeacher"]


class FrozenTeacher(nn.Module):
    """Wraps a model: always in evaluation mode, never with a gradient, never in a checkpoint.

    Moves between devices with its parent. The parent's ``state_dict`` has no key of it and strict loading does not
    ask for one.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model.requires_grad_(False).eval()

    @torch.no_grad()
    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return self.model(*args, **kwargs)

    def train(self, mode: bool = True) -> "FrozenTeacher":
        """Stay in evaluation mode: dropout in a teacher would be noise in the target."""
        return super().train(False)

    def state_dict(self, *args: Any, **kwargs: Any) -> dict[str, Any]:
        """Nothing: the source of the teacher is in the run's configuration, not in each checkpoint."""
        return kwargs.get("destination") or (args[0] if args else {})

    def _load_from_state_dict(self, *args: Any, **kwargs: Any) -> None:
        """Expect nothing, so that the parent loads strictly."""

    def load_state_dict(self, *args: Any, **kwargs: Any) -> Any:
        raise RuntimeError("a FrozenTeacher takes its weights from its source, never from a state dict")
