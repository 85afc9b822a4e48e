"""The base of every strategy: which modules it works on, and when its structure is installed."""

import logging
from collections.abc import Iterable, Sequence
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_only
from torch import nn

from lit_compress.errors import UserError
from lit_compress.init_args import KeepsInitArgs
from lit_compress.models.targets import match_linears
from lit_compress.nn.compressible import CompressibleLinear
from lit_compress.nn.replace_layers import make_compressible
from lit_compress.training_steps import training_steps

__all__ = [
    "Strategy",
    "amount_of",
    "check_amount",
    "percent",
    "student_of",
    "tell_if_little",
    "zeros",
]


class Strategy(KeepsInitArgs, Callback):
    """Compresses ``pl_module.student``. Subclass it and define :meth:`prepare`, then the Lightning hooks it needs.

    What happens at certain steps is a :class:`Scheduled`. What changes other modules than linears defines its own
    ``setup`` instead of :meth:`prepare`.

    Structure (masks, quantizers) belongs in :meth:`prepare`, which runs in ``setup``: before weights are loaded,
    before the optimizer exists, before anything is wrapped. Later hooks change values in place. A strategy keeps no
    state of its own: what must survive a crash is a buffer of a layer, everything else follows from the step.

    Args:
        targets: globs or ``re:`` patterns of module names; None takes every linear of the transformer layers.
        ignore: patterns of modules to leave alone.

    """

    def __init__(self, targets: Sequence[str] | None = None, ignore: Sequence[str] = ()) -> None:
        self.targets = list(targets) if targets is not None else None
        self.ignore = list(ignore)

    def prepare(self, layers: dict[str, CompressibleLinear]) -> None:
        """Install structure on the targets; called in every ``setup``, so doing it twice must do no harm."""
        raise NotImplementedError(f"{type(self).__name__} must define prepare(layers)")

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        student = student_of(pl_module, type(self).__name__)
        self.prepare(make_compressible(student, list(self._match(student))))

    def end(self, trainer: Trainer) -> int:
        """Optimizer step from which on everything that was asked for is compressed; 0 when it is before the first."""
        return 0

    def amounts(self, pl_module: LightningModule) -> tuple[str, str]:
        """What was asked for and what has been reached, in a few words; of a strategy with an :meth:`end`."""
        raise NotImplementedError(f"{type(self).__name__} must define amounts(pl_module)")

    def unfinished(self, trainer: Trainer, pl_module: LightningModule) -> dict[str, Any] | None:
        """What a training that stops at this step leaves undone; None when nothing.

        ``{"strategy", "asked", "reached", "step", "end", "of"}``: class name, two texts, and in optimizer steps where
        it is, where it would be done, and the length of the run.
        """
        step, end = trainer.global_step, self.end(trainer)
        if step >= end:
            return None
        asked, reached = self.amounts(pl_module)
        steps = {"step": step, "end": end, "of": training_steps(trainer)[0]}
        return {"strategy": type(self).__name__, "asked": asked, "reached": reached, **steps}

    def layers(self, pl_module: LightningModule) -> dict[str, CompressibleLinear]:
        """The target layers of a module after ``setup``."""
        return self._match(student_of(pl_module))

    def _match(self, student: nn.Module) -> dict[str, Any]:
        return match_linears(student, self.targets, self.ignore, f"{type(self).__name__}.targets")


def check_amount(value: int | float, key: str) -> None:
    """Raise a ``UserError`` unless a value is a whole number of 1 or more, or a fraction in (0, 1)."""
    if not (value >= 1 if isinstance(value, int) else 0 < value < 1):
        raise UserError(f"{key}: {value} must be a whole number of 1 or more, or a fraction in (0, 1)")


def amount_of(value: int | float, whole: int) -> int:
    """A number as it is, or a fraction of a whole, rounded and at least 1.

    Example:
        >>> amount_of(4, 6), amount_of(0.3333, 12), amount_of(0.3333, 6), amount_of(0.1, 3)
        (4, 4, 2, 1)

    """
    return value if isinstance(value, int) else max(1, round(value * whole))


@rank_zero_only
def tell_if_little(key: str, left: int, whole: int, what: str) -> None:
    """Say in a line that less than a quarter is left, which a setting made for a larger model often leads to.

    Args:
        key: setting that says so.
        left: how many are left.
        whole: of how many.
        what: what they are, in the plural.

    """
    if 4 * left < whole:
        logging.getLogger(__name__).warning(
            "%s: %d of %d %s are left, less than a quarter; check the predictions, they may all be one class",
            *(key, left, whole, what),
        )


def zeros(layers: Iterable[CompressibleLinear]) -> str:
    """The fraction of weights that masks prune, in words."""
    masks = [layer.weight_mask for layer in layers if layer.weight_mask is not None]
    pruned = sum(int((~mask).sum()) for mask in masks)
    return percent(pruned / max(sum(mask.numel() for mask in masks), 1))


def percent(share: float) -> str:
    """A fraction of zeros in words."""
    return f"{100 * share:.3g} % zeros"


def student_of(pl_module: LightningModule, owner: str = "a strategy") -> nn.Module:
    """The network that strategies work on.

    Raises:
        UserError: the module keeps it under another name.

    """
    student = getattr(pl_module, "student", None)
    if not isinstance(student, nn.Module):
        raise UserError(f"compression: {owner} needs `self.student`, which {type(pl_module).__name__} does not have")
    return student
