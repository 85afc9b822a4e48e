"""Keep the zeros of a sparse model through further training: the second half of "prune once, use everywhere"."""

import torch
from lightning.pytorch import LightningModule, Trainer

from lit_compress.errors import UserError
from lit_compress.nn.compressible import CompressibleLinear
from lit_compress.strategies.distributed_weights import full_weight, set_mask
from lit_compress.strategies.strategy import Strategy

__all__ = ["PatternLock"]


class PatternLock(Strategy):
    """Locks the zero pattern a model arrives with: ``mask = (weight != 0)``, once, at the first step.

    Prune Once for All (Zafrir et al. 2021, arXiv 2111.05754) transfers a pruned pretrained model to tasks this way;
    SparseML called it ``ConstantPruningModifier``.

    Args:
        targets: globs or ``re:`` patterns; None takes every linear of the transformer layers.
        ignore: patterns to leave alone.

    """

    def prepare(self, layers: dict[str, CompressibleLinear]) -> None:
        for layer in layers.values():
            layer.add_mask()

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.global_step > 0:
            return  # a resumed run has its masks from the checkpoint
        layers = self.layers(pl_module)
        patterns = {name: full_weight(layer) != 0 for name, layer in layers.items()}
        if all(bool(torch.all(pattern)) for pattern in patterns.values()):
            raise UserError("PatternLock.targets: no target has zeros to lock; start from a pruned model.pretrained")
        for name, pattern in patterns.items():
            set_mask(layers[name], pattern, trainer)
