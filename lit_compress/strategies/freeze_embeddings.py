"""Keep embedding tables at their pretrained values."""

from collections.abc import Sequence

from lightning.pytorch import LightningModule, Trainer
from torch import nn

from lit_compress.nn.replace_layers import match_modules
from lit_compress.strategies.strategy import Strategy, student_of

__all__ = ["FreezeEmbeddings"]


class FreezeEmbeddings(Strategy):
    """Takes embedding tables out of training, as movement pruning (arXiv 2005.07683) and oBERTa (arXiv 2303.17612) do.

    The tables (words, positions, token types) get no gradient; the normalisation after them still learns. A decoder
    tied to a table is the same Parameter and freezes with it.

    Args:
        targets: globs or ``re:`` patterns of ``nn.Embedding`` modules.
        ignore: patterns to leave alone.

    """

    def __init__(self, targets: Sequence[str] = ("*embedding*",), ignore: Sequence[str] = ()) -> None:
        super().__init__(targets, ignore)

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        # Before configure_optimizers, so that the optimizer never hears of the tables.
        tables = match_modules(
            student_of(pl_module), self.targets or (), self.ignore, nn.Embedding, "FreezeEmbeddings.targets"
        )
        for table in tables.values():
            table.requires_grad_(False)
