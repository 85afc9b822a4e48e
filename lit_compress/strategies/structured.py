"""Structured pruning: whole attention heads and feed-forward neurons go, and the folded model is smaller and faster."""

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import torch
from lightning.pytorch import LightningModule, Trainer
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.optim import Optimizer

from lit_compress.errors import UserError
from lit_compress.functional.importance import head_scores, magnitude, neuron_scores, taylor
from lit_compress.functional.masks import global_group_masks, group_mask
from lit_compress.functional.schedules import pruning_steps, width_after
from lit_compress.models.groups import KINDS, Groups, Kind, column_mask, removable_groups, row_mask
from lit_compress.nn.compressible import CompressibleLinear
from lit_compress.nn.surgery import match_modules
from lit_compress.strategies.gradients import sample_gradients
from lit_compress.strategies.strategy import (
    Strategy,
    Window,
    agreed,
    amount_of,
    check_amount,
    full_weight,
    set_mask,
    stepped,
    student_of,
    tell_if_little,
)

__all__ = ["StructuredPruning"]

_SCORE_BATCHES = 64


class StructuredPruning(Strategy):
    """Prunes heads and neurons by importance, at once or step by step (ROSITA: Liu et al. 2021, arXiv 2103.11367).

    A head's importance is that of its columns in the attention's output projection, a neuron's that of its row in the
    first and its column in the second feed-forward matrix. Between ``start`` and ``end`` the widths fall in equal
    parts, ``prunings`` times; a pruned head or neuron is masked at once and physically gone in the folded model.

    Args:
        heads: what each layer keeps: a number, or a fraction in (0, 1) of its heads; None leaves heads alone. With a
            global scope the same on the average.
        neurons: likewise the neurons of the feed-forward block.
        scope: every layer keeps the same (``layer``), or what is least important of all layers goes (``global``), and
            of each layer at least one stays.
        prunings: number of prunings; each at the end of its share of ``start`` to ``end``. 1 is one-shot.
        start: where importance begins to be collected: ``"10%"`` of training, ``"1 epochs"`` or ``"500 steps"``.
        end: the last pruning. With ``start`` and ``end`` at ``"0%"`` a single pruning comes before the first step.
        criterion: ``taylor`` (weight times gradient, first order, of the real training steps since the last pruning)
            or ``magnitude``.
        score_batches: batches of training data that give the gradients of the task when pruning comes before the first
            step; 64 when not given. Only then.
        targets: globs or ``re:`` patterns of the linears that read what is removed: attention outputs and second
            feed-forward matrices; None takes those of every layer.
        ignore: patterns to leave alone.

    """

    def __init__(
        self,
        heads: int | float | None = None,
        neurons: int | float | None = None,
        scope: Literal["layer", "global"] = "layer",
        prunings: int = 10,
        start: str = "0%",
        end: str = "50%",
        criterion: Literal["taylor", "magnitude"] = "taylor",
        score_batches: int | None = None,
        targets: Sequence[str] | None = None,
        ignore: Sequence[str] = (),
    ) -> None:
        super().__init__(targets, ignore)
        owner = type(self).__name__
        self.keep: dict[Kind, int | float | None] = {"heads": heads, "neurons": neurons}
        if heads is None and neurons is None:
            raise UserError(f"{owner}.heads: nothing is removed; give heads or neurons that each layer keeps")
        for key, value in self.keep.items():
            if value is not None:
                check_amount(value, f"{owner}.{key}")
        for key, value, allowed in (
            ("scope", scope, ("layer", "global")),
            ("criterion", criterion, ("taylor", "magnitude")),
        ):
            if value not in allowed:
                raise UserError(f"{owner}.{key}: {value!r} must be one of {', '.join(allowed)}")
        for key, value in (("prunings", prunings), ("score_batches", score_batches)):
            if value is not None and value < 1:
                raise UserError(f"{owner}.{key}: {value} must be 1 or more")
        self.window = Window(owner, start, end, "1 steps")
        if score_batches and (criterion != "taylor" or self.window.end.value > 0):
            raise UserError(
                f"{owner}.score_batches: {score_batches} has no effect unless criterion taylor prunes before the "
                "first step; give start and end of 0%, or leave it out"
            )
        self.scope, self.prunings, self.criterion = scope, prunings, criterion
        self.score_batches = score_batches or _SCORE_BATCHES

    def prepare(self, layers: dict[str, CompressibleLinear]) -> None:
        for layer in layers.values():
            layer.add_mask()

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        super().setup(trainer, pl_module, stage)
        student = student_of(pl_module)
        for kind, blocks in self._blocks(student).items():
            for block in blocks:
                _linear(student, block.consumer).add_groups(block.count)
            widths = [(self._final(kind, block.count), block.count) for block in blocks]
            if all(left == whole for left, whole in widths):
                most = max(whole for _, whole in widths)
                raise UserError(
                    f"{type(self).__name__}.{kind}: {self.keep[kind]} removes nothing, no layer has more than {most}; "
                    "give fewer"
                )
            if stage == "fit":
                left, whole = min(widths, key=lambda width: width[0] / width[1])
                tell_if_little(f"{type(self).__name__}.{kind}", left, whole, f"{kind} of a layer")
        if stage == "fit":
            self._steps(trainer)

    def end(self, trainer: Trainer) -> int:
        return self._steps(trainer)[-1]

    def amounts(self, pl_module: LightningModule) -> tuple[str, str]:
        student = student_of(pl_module)
        asked, reached = [], []
        for kind, blocks in self._blocks(student).items():
            kept = [_linear(student, block.consumer).kept_groups for block in blocks]
            asked.append(f"{sum(self._final(kind, block.count) for block in blocks):,} {kind}")
            reached.append(f"{sum(int(groups.sum()) for groups in kept if groups is not None):,} {kind}")
        return ", ".join(asked), ", ".join(reached)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if learned := [name for name, layer in self.layers(pl_module).items() if layer.mask_scores is not None]:
            raise UserError(
                f"{type(self).__name__}.targets: {learned[0]!r} learns its mask, which brings weights back; "
                "give movement pruning and this strategy different layers"
            )
        if trainer.global_step == 0 and self._steps(trainer)[-1] == 0:
            if self.criterion == "taylor":
                self._score_before_training(trainer, pl_module)
            self._prune(trainer, pl_module, self.prunings)

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer) -> None:
        if self.criterion != "taylor":
            return
        start, end, _ = self.window.steps(trainer)
        if start <= trainer.global_step < end:
            # Under DDP and FSDP2 gradients are those of all ranks by now, so every rank adds up the same.
            self._collect(
                student_of(pl_module), {name: _gradient(layer) for name, layer in self.layers(pl_module).items()}
            )

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if stepped(trainer, batch_idx):
            steps = self._steps(trainer)
            if trainer.global_step in steps:
                self._prune(trainer, pl_module, steps.index(trainer.global_step) + 1)

    @torch.no_grad()
    def _collect(self, student: nn.Module, gradients: Mapping[str, Tensor]) -> None:
        """Add a mini-batch's importance of every head and neuron to its layer's buffer."""
        for blocks in self._blocks(student).values():
            for block in blocks:
                names = _scored(block)
                scores = [taylor(full_weight(_linear(student, name)), gradients[name].abs()) for name in names]
                total = _linear(student, block.consumer).group_scores
                assert total is not None
                # A step whose gradients overflowed in half precision is skipped by the scaler; it says nothing.
                total += _group_scores(block, scores).nan_to_num(0.0, 0.0, 0.0)

    @torch.no_grad()
    def _prune(self, trainer: Trainer, pl_module: LightningModule, number: int) -> None:
        student = student_of(pl_module)
        for kind, blocks in self._blocks(student).items():
            consumers = [_linear(student, block.consumer) for block in blocks]
            scores = [self._scores(student, block) for block in blocks]
            widths = [
                width_after(number, self.prunings, block.count, self._final(kind, block.count)) for block in blocks
            ]
            if self.scope == "global":
                masks = global_group_masks(scores, sum(widths))
            else:
                masks = [group_mask(score, width) for score, width in zip(scores, widths, strict=True)]
            for block, consumer, mask in zip(blocks, consumers, masks, strict=True):
                assert consumer.kept_groups is not None
                assert consumer.group_scores is not None
                consumer.kept_groups &= agreed(mask)
                consumer.group_scores.zero_()
                _mask_out(student, block, trainer)

    def _scores(self, student: nn.Module, block: Groups) -> Tensor:
        consumer = _linear(student, block.consumer)
        assert consumer.kept_groups is not None
        if self.criterion == "taylor":
            scores = consumer.group_scores
        else:
            weights = [full_weight(_linear(student, name)) for name in _scored(block)]
            scores = _group_scores(block, [magnitude(weight) for weight in weights])
        assert scores is not None
        return scores.masked_fill(~consumer.kept_groups, -torch.inf)  # what is pruned stays pruned

    def _score_before_training(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Importance from the task's gradients on some batches of training data; no weight changes."""
        student = student_of(pl_module)
        scored = self._scored_layers(student)
        weights: Any = [layer.weight for layer in scored.values()]
        for gradients in sample_gradients(trainer, pl_module, weights, self.score_batches, _batch_size(trainer)):
            self._collect(student, dict(zip(scored, gradients, strict=True)))

    def _scored_layers(self, student: nn.Module) -> dict[str, CompressibleLinear]:
        return {
            name: _linear(student, name)
            for blocks in self._blocks(student).values()
            for block in blocks
            for name in _scored(block)
        }

    def _steps(self, trainer: Trainer) -> list[int]:
        start, end, _ = self.window.steps(trainer)
        if end - start < self.prunings and not (self.prunings == 1 and start == end == 0):
            raise UserError(
                f"{type(self).__name__}.prunings: {self.prunings} do not fit between start, step {start}, and end, "
                f"step {end}; ask for fewer or give a later end"
            )
        return pruning_steps(start, end, self.prunings)

    def _final(self, kind: Kind, width: int) -> int:
        keep = self.keep[kind]
        assert keep is not None
        return min(amount_of(keep, width), width)

    def _blocks(self, student: nn.Module) -> dict[Kind, list[Groups]]:
        """What can be removed from each layer, by kind: where the targets say so."""
        owner = type(self).__name__
        asked: dict[Kind, list[Groups]] = {
            kind: removable_groups(student, kind, f"{owner}.{kind}") for kind in KINDS if self.keep[kind] is not None
        }
        if self.targets is None and not self.ignore:
            return asked
        readers = [block.consumer for blocks in asked.values() for block in blocks]
        chosen = match_modules(student, self.targets or readers, self.ignore, key=f"{owner}.targets")
        found: dict[Kind, list[Groups]] = {
            kind: [block for block in blocks if block.consumer in chosen] for kind, blocks in asked.items()
        }
        for kind, blocks in asked.items():
            if not found[kind]:
                raise UserError(
                    f"{owner}.targets: {self.targets} leaves no layer whose {kind} could be removed; "
                    f"name linears like {blocks[0].consumer!r}"
                )
        return found

    def _match(self, student: nn.Module) -> dict[str, Any]:
        return {
            name: student.get_submodule(name)
            for blocks in self._blocks(student).values()
            for block in blocks
            for name in (block.consumer, *block.producers)
        }


def _scored(groups: Groups) -> tuple[str, ...]:
    """The linears whose weights make up the importance of the groups, the consumer first."""
    return (groups.consumer, *groups.producers) if groups.kind == "neurons" else (groups.consumer,)


def _gradient(layer: CompressibleLinear) -> Tensor:
    gradient = layer.weight.grad
    if gradient is None:  # frozen
        return torch.zeros(layer.weight.shape, device=layer.weight.device)
    return gradient.full_tensor() if isinstance(gradient, DTensor) else gradient


def _group_scores(groups: Groups, weights: list[Tensor]) -> Tensor:
    """Scores ``(count,)`` in fp32 from those of the consumer's weights and, for neurons, of the first matrix's."""
    consumer, *first = (weight.float() for weight in weights)
    if groups.kind == "heads":
        return head_scores(consumer, groups.count)
    # A first matrix that also makes a gate has the gates after the values: both rows belong to the neuron.
    rows = first[0].unflatten(0, (-1, groups.count)).transpose(0, 1).flatten(1)
    return neuron_scores(rows, consumer)


def _mask_out(student: nn.Module, groups: Groups, trainer: Trainer) -> None:
    consumer = _linear(student, groups.consumer)
    assert consumer.kept_groups is not None
    assert consumer.weight_mask is not None
    set_mask(consumer, consumer.weight_mask & column_mask(groups, consumer.kept_groups), trainer)
    for name in groups.producers:
        producer = _linear(student, name)
        assert producer.weight_mask is not None
        rows = row_mask(groups, consumer.kept_groups, producer.out_features)
        set_mask(producer, producer.weight_mask & rows[:, None], trainer)


def _linear(student: nn.Module, name: str) -> CompressibleLinear:
    layer = student.get_submodule(name)
    assert isinstance(layer, CompressibleLinear)
    return layer


def _batch_size(trainer: Trainer) -> int:
    loader: Any = trainer.train_dataloader
    sampler = getattr(loader, "sampler", None)
    return getattr(sampler, "batch_size", None) or getattr(loader, "batch_size", None) or 1
