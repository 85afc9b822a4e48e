"""What pruning asks of an importance, whichever it is."""

from collections.abc import Mapping
from dataclasses import dataclass

from lightning.pytorch import LightningModule, Trainer
from torch import Tensor

from lit_compress.errors import UserError
from lit_compress.functional.patterns import Pattern
from lit_compress.init_args import KeepsInitArgs
from lit_compress.models.heads_and_neurons import Kind
from lit_compress.nn.compressible import CompressibleLinear
from lit_compress.strategies.distributed_weights import full_weight
from lit_compress.strategies.units import Units

__all__ = ["Importance", "Sample"]


@dataclass(frozen=True)
class Sample:
    """What an importance may use in addition to the weights.

    Args:
        trainer: of the run.
        pl_module: whose student is pruned.
        draw: tells apart several samples of one step.
        first: whether it is the start of the window, before which nothing was collected.

    """

    trainer: Trainer
    pl_module: LightningModule
    draw: int = 0
    first: bool = False


class Importance(KeepsInitArgs):
    """Says what a weight, a block, a head or a neuron is worth. Subclass it and define :meth:`of_weight` or more.

    An importance keeps no state of its own: what it collects during training is a buffer, what it learns a Parameter of
    a layer, both installed in :meth:`prepare`; everything else it computes again at each update.

    Attributes:
        key: how error messages begin that name an option.
        needs_passes: whether each update takes forward passes on training examples, so that one that prunes nothing is
            left out.
        collects: whether :meth:`collect` looks at the gradients of each training step.
        from_weights: whether :meth:`of_weight` says it all, so that it can be asked before training.
        learned: whether what is pruned competes on with what is kept, and may come back until the last update.
        finds_sparsity: whether it says itself how much is pruned.
        recomputations: parts that an update is made in.

    """

    key: str = "Pruning.importance"
    needs_passes: bool = False
    collects: bool = False
    from_weights: bool = False
    learned: bool = False
    finds_sparsity: bool = False
    recomputations: int = 1

    def check(self, pattern: Pattern | Kind) -> None:
        """Raise a ``UserError`` for options that make no sense, alone or with a pattern, ``heads`` or ``neurons``."""

    def _check_positive(self, *options: str) -> None:
        for option in options:
            if (value := getattr(self, option)) < 1:
                raise UserError(f"{self.key}.{option}: {value} must be 1 or more")

    def amount(self) -> str | None:
        """How much it prunes, in a few words, if it finds that itself."""
        return None

    def why_no_regrowth(self) -> str | None:
        """Why a pruned weight cannot come back; None when it can."""
        return None

    def prepare(self, units: Units) -> None:
        """Install buffers or Parameters; called in every ``setup``, so doing it twice must do no harm."""

    def check_size(self, units: Units) -> None:
        """Raise a ``UserError`` for what this model is too large for, before a training begins."""

    def collect(self, units: Units, gradients: Mapping[str, Tensor]) -> None:
        """Look at the gradients of a training step, by the name of the layer, before the optimizer does."""

    def of_weight(self, weight: Tensor) -> Tensor:
        """Scores of a weight ``(out_features, in_features)``, of the same shape; low ones are pruned first."""
        raise NotImplementedError(f"{type(self).__name__} must define of_weight(weight)")

    def of_layer(self, name: str, layer: CompressibleLinear) -> Tensor:
        """The same of a layer, for what looks at more than its weight."""
        return self.of_weight(full_weight(layer))

    def scores(self, units: Units, sample: Sample) -> dict[str, Tensor]:
        """Scores of all units."""
        return units.reduce({name: self.of_layer(name, layer) for name, layer in units.layers.items()})

    def choose(self, units: Units, sparsity: float, sample: Sample) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Which units to keep, and new values of weights, by the name of the layer, that make up for the others."""
        return units.select(self.scores(units, sample), sparsity), {}

    def forget(self, units: Units) -> None:
        """Begin to collect again, after an update."""
