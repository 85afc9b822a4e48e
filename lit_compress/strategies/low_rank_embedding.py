"""Embedding factorisation: the word table becomes the product of a narrow table and a projection."""

from collections.abc import Sequence

import torch
from lightning.pytorch import LightningModule, Trainer
from torch import nn

from lit_compress.errors import UserError
from lit_compress.functional.schedules import width_at
from lit_compress.nn.factorized import FactorizedEmbedding
from lit_compress.nn.replace_layers import match_modules
from lit_compress.strategies.distributed_weights import zero_outside
from lit_compress.strategies.scheduled import Scheduled
from lit_compress.strategies.strategy import amount_of, check_amount, student_of
from lit_compress.strategies.window import PartsWindow

__all__ = ["LowRankEmbedding"]


class LowRankEmbedding(Scheduled):
    """Factorises the word embedding by a truncated SVD, as ROSITA does (Liu et al. 2021, arXiv 2103.11367).

    ``E (V x H)`` becomes ``U_r S_r (V x r)`` and ``V_r^T (r x H)``, both of which keep learning. With
    ``pruning_steps`` the factors start at the full rank and lose their last columns step by step; there is no second
    SVD, so what was learned since the first stays. Positions and token types keep their tables. The folded model has
    the final rank.

    Args:
        rank: columns that are kept in the end, or a fraction in (0, 1) of the table's.
        pruning_steps: number of equal reductions on the way to it, each at the end of its part of ``start`` to
            ``end``; 0 factorises to the rank before training.
        start: where the first share begins: ``"10%"`` of training, ``"1 epochs"`` or ``"500 steps"``; ``"0%"`` when
            not given. Only with ``pruning_steps``.
        end: the last reduction; ``"50%"`` when not given. Only with ``pruning_steps``.
        targets: globs or ``re:`` patterns of ``nn.Embedding`` modules; None takes the word embedding.
        ignore: patterns to leave alone.

    """

    def __init__(
        self,
        rank: int | float = 128,
        pruning_steps: int = 0,
        start: str | None = None,
        end: str | None = None,
        targets: Sequence[str] | None = None,
        ignore: Sequence[str] = (),
    ) -> None:
        super().__init__(targets, ignore)
        owner = type(self).__name__
        check_amount(rank, f"{owner}.rank")
        if pruning_steps < 0:
            raise UserError(f"{owner}.pruning_steps: {pruning_steps} must be 0 or more")
        for key, value in (("start", start), ("end", end)):
            if value is not None and not pruning_steps:
                raise UserError(
                    f"{owner}.{key}: {value!r} has no effect without pruning_steps, which would be spread up to it; "
                    f"give {owner}.pruning_steps or leave it out"
                )
        if targets is None and ignore:
            raise UserError(f"{owner}.ignore: {list(ignore)} has no effect without targets; give both or neither")
        self.rank = rank
        if pruning_steps:
            self.window = PartsWindow(owner, start or "0%", end or "50%", pruning_steps, "pruning_steps")

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        student = student_of(pl_module, type(self).__name__)
        for name, table in self._tables(student).items():
            self._factorise(student, name, table)
        if stage == "fit" and self.window is not None:
            self.updates(trainer)

    def amounts(self, pl_module: LightningModule) -> tuple[str, str]:
        found = self._tables(student_of(pl_module)).values()
        tables = [table for table in found if isinstance(table, FactorizedEmbedding)]
        masks = [table.rank_mask for table in tables]
        asked = {amount_of(self.rank, table.embedding_dim) for table in tables}
        ranks = {int(mask.sum()) for mask in masks if mask is not None}
        wanted, reached = (", ".join(map(str, sorted(each))) for each in (asked, ranks))
        return f"rank {wanted}", f"rank {reached}"

    @torch.no_grad()
    def update(self, trainer: Trainer, pl_module: LightningModule, progress: float) -> None:
        for table in self._tables(student_of(pl_module)).values():
            assert isinstance(table, FactorizedEmbedding)
            assert table.rank_mask is not None
            rank = width_at(progress, table.rank, amount_of(self.rank, table.embedding_dim))
            table.rank_mask.copy_(torch.arange(table.rank, device=table.rank_mask.device) < rank)
            for factor in (table.weight, table.projection.weight):
                zero_outside(factor, table.rank_mask.expand(factor.shape).contiguous(), trainer)

    def _tables(self, student: nn.Module) -> dict[str, nn.Module]:
        key = f"{type(self).__name__}.targets"
        if self.targets is not None:
            return match_modules(student, self.targets, self.ignore, nn.Embedding, key)
        find = getattr(student, "get_input_embeddings", None)
        words = find() if find else None
        if not isinstance(words, nn.Embedding):
            raise UserError(f"{key}: {type(student).__name__} does not say which is its word embedding; name it")
        return {name: module for name, module in student.named_modules() if module is words}

    def _factorise(self, student: nn.Module, name: str, table: nn.Module) -> None:
        owner = type(self).__name__
        assert isinstance(table, nn.Embedding)
        _check_untied(student, name, table, f"{owner}.targets")
        if isinstance(table, FactorizedEmbedding):
            self._shorten(name, table)
            return
        if type(table) is not nn.Embedding:
            raise UserError(
                f"{owner}.targets: {name!r} is a {type(table).__name__}, no plain nn.Embedding; leave it out"
            )
        rows, width = table.num_embeddings, table.embedding_dim
        rank = amount_of(self.rank, width)
        if rank * (rows + width) >= rows * width:
            largest = (rows * width - 1) // (rows + width)
            raise UserError(
                f"{owner}.rank: {rank} does not make {name!r} of {rows} x {width} smaller; it must be {largest} or less"
            )
        factors = FactorizedEmbedding.from_embedding(table, min(rows, width) if self.window else rank)
        if self.window:
            factors.add_rank_mask()
        student.set_submodule(name, factors)

    def _shorten(self, name: str, table: FactorizedEmbedding) -> None:
        """Start from a model that arrives factorised, or do nothing the second time."""
        rank = amount_of(self.rank, table.embedding_dim)
        if rank > table.rank or (self.window and rank == table.rank):
            raise UserError(f"{type(self).__name__}.rank: {name!r} has rank {table.rank} already; give a lower rank")
        if self.window:
            table.add_rank_mask()
        elif rank < table.rank:
            table.to_rank(rank)


def _check_untied(student: nn.Module, name: str, table: nn.Embedding, key: str) -> None:
    tied = [
        other
        for other, module in student.named_modules(remove_duplicate=False)
        if other != name and any(p is table.weight for p in module.parameters(recurse=False))
    ]
    if tied:
        raise UserError(
            f"{key}: {name!r} shares its weight with {tied[0]!r}, which needs the whole table; "
            "factorise a model without such a decoder, or untie the two"
        )
