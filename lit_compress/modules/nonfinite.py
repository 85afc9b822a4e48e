"""What a training step was worth, kept on the device until somebody looks: nothing in a step waits for it."""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

import torch
from lightning.pytorch import Trainer
from lightning.pytorch.strategies import DDPStrategy, SingleDeviceStrategy
from torch import Tensor

__all__ = ["Broken", "LossWatch", "all_or_nan", "skips_on_device"]

# Steps that are kept without a look; each is a few numbers.
_MOST = 1000


@dataclass(frozen=True)
class Broken:
    """The first thing that was no number.

    Args:
        what: ``training loss`` or ``norm of the gradient``.
        value: NaN or an infinity.
        step: optimizer steps before it.
        parts: of the loss that are not numbers, ``loss`` when only their sum is; none of a gradient.
        shared: whether the gradient was no number either, which all ranks have in common.

    """

    what: str
    value: float
    step: int
    parts: tuple[str, ...] = ()
    shared: bool = False

    @staticmethod
    def first(found: Iterable["Broken"]) -> "Broken":
        """The first of several; of a step the loss, which says more than the gradient."""
        return min(found, key=lambda one: (one.step, not one.parts))


class LossWatch:
    """Remembers the loss of each batch and the norm of each gradient since :meth:`read` was last called.

    Attributes:
        found: fp32 ``()`` on the device, 1 from the first gradient on that is not finite, before that 0; None before
            the first gradient. As ``found_inf`` of a fused optimizer it leaves weights and moments as they are.
        last: the loss of the last batch that was read, by part.
        looked: whether anything was read yet.

    """

    def __init__(self) -> None:
        self.found: Tensor | None = None
        self.last: dict[str, float] = {}
        self.looked = False
        self._seen: list[tuple[int, tuple[str, ...]]] = []
        self._rows: list[Tensor] = []

    @property
    def full(self) -> bool:
        """Whether it is time to read."""
        return len(self._rows) >= _MOST

    def add_loss(self, step: int, parts: Mapping[str, Tensor]) -> None:
        """Remember the parts of a batch's loss, of which ``loss`` is the whole."""
        self._seen.append((step, tuple(parts)))
        device = parts["loss"].device
        rows = [part.detach().to(device, torch.float32, non_blocking=True).reshape(()) for part in parts.values()]
        self._rows.append(torch.stack(rows))

    def add_norm(self, step: int, norm: Tensor) -> None:
        """Remember the norm ``()`` of a gradient that an optimizer is about to use."""
        self._seen.append((step, ()))
        self._rows.append(norm.detach().float().reshape(1))
        found = (~norm.isfinite()).float()
        # For good: a model that resumes from a step left out is not the one that the report is about.
        self.found = found if self.found is None else torch.maximum(self.found, found)

    def read(self) -> Broken | None:
        """Wait for the device, take over all there is in one transfer, and say what of it is not a number."""
        self.looked = True
        if not self._rows:
            return None
        numbers = iter(torch.cat(self._rows).tolist())
        seen, self._seen, self._rows = self._seen, [], []
        broken: list[Broken] = []
        for step, names in seen:
            if not names:
                norm = next(numbers)
                if not math.isfinite(norm):
                    broken.append(Broken("norm of the gradient", norm, step))
                continue
            self.last = {name: next(numbers) for name in names}
            if not math.isfinite(self.last["loss"]):
                parts = tuple(n for n, value in self.last.items() if n != "loss" and not math.isfinite(value))
                broken.append(Broken("training loss", self.last["loss"], step, parts or ("loss",)))
        return replace(Broken.first(broken), shared=not all(one.parts for one in broken)) if broken else None


def all_or_nan(loss: Tensor) -> Tensor:
    """A loss as it is when it is finite; else NaN, and so is every gradient, on all ranks that share them."""
    whole = loss.detach()
    return loss * (whole - whole + 1)  # exactly 1 for a finite one


def skips_on_device(trainer: Trainer) -> bool:
    """Whether every optimizer leaves out a step when the device says so: a fused Adam on whole weights does."""
    if not isinstance(trainer.strategy, SingleDeviceStrategy | DDPStrategy):
        return False
    # An overflow of scaled gradients is not a fault: the scaler leaves out that step and continues. Fused kernels of
    # other devices do not ask whether to leave a step out.
    scaled = getattr(trainer.precision_plugin, "scaler", None) is not None
    if scaled or trainer.strategy.root_device.type not in ("cpu", "cuda"):
        return False
    adams = all(isinstance(optimizer, torch.optim.Adam) for optimizer in trainer.optimizers)
    return adams and all(group["fused"] for optimizer in trainer.optimizers for group in optimizer.param_groups)
