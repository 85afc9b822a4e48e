"""Pruning: an importance says what a unit is worth, a pattern what a unit is, a schedule when how many go."""

from collections.abc import Callable, Mapping, Sequence
from copy import copy
from typing import Any, Literal

import torch
from lightning.pytorch import LightningModule, Trainer
from torch import Tensor, nn
from torch.optim import Optimizer

from lit_compress.errors import UserError
from lit_compress.functional.patterns import BalancedBlocks, Pattern, Scope, parse_pattern, wrong_option
from lit_compress.functional.permutation import neuron_order
from lit_compress.functional.schedules import Constant, Cosine, Cubic, Linear
from lit_compress.models.heads_and_neurons import KINDS, Groups, Kind, permute_groups, removable_groups
from lit_compress.models.layout import encoder_layers, layout_of
from lit_compress.nn.compressible import CompressibleLinear
from lit_compress.strategies.distributed_weights import full_tensor, full_weight, write_weight
from lit_compress.strategies.importance import Function, Importance, Magnitude, Sample
from lit_compress.strategies.scheduled import Scheduled
from lit_compress.strategies.strategy import amount_of, percent, student_of, tell_if_little, zeros
from lit_compress.strategies.units import GroupUnits, Regrowth, Units, WeightUnits, find_groups, prunes_more
from lit_compress.strategies.window import Window

__all__ = ["Pruning"]

_SCHEDULES: dict[str, Any] = {"linear": Linear, "cubic": Cubic, "cosine": Cosine}
_SPARSITY = 0.8
# Patterns that other strategies have, whose order is not a score of a weight.
_ELSEWHERE = {"layers": "GradualLayerDropping or LayerDropping", "ranks": "LowRankEmbedding"}


class Pruning(Scheduled):
    """Prunes what is least important, in a pattern, more and more of it on a schedule.

    Updates happen after the optimizer step: at ``start``, every ``every`` after it, and at ``end``, where the final
    sparsity is exact. A pruned weight is 0 and stays 0, unless it may come back: with ``regrowth``, or with an
    importance that learns; then it keeps its value behind the mask until the last update.

    Args:
        importance: what a weight is worth: ``Magnitude`` (the default), ``Taylor``, ``Fisher``, ``Movement``,
            ``Activations``, a subclass of ``Importance``, or the import path of a function from a weight to scores.
        pattern: what is pruned together: ``unstructured`` single weights; ``"N:M"`` keeps N of M consecutive inputs
            (``"2:4"``: quote it in YAML); ``"RxC"`` prunes blocks of R outputs by C inputs (``"1x4"``); ``"RxC/N"``
            keeps equally many in every row of blocks, the multiple of N nearest to the sparsity; ``tall_blocks`` is
            ``"128x32/4"``, which kernels skip; ``heads`` and ``neurons`` are whole ones, cut out of the folded model.
        sparsity: final fraction of what is pruned (weights, blocks, heads, neurons), in [0, 1); 0.8 when not given.
        initial_sparsity: fraction at ``start``.
        schedule: how sparsity grows from initial to final; ``constant`` prunes all of it at ``start``.
        start: first update: ``"10%"`` of training, ``"1 epochs"`` or ``"500 steps"``.
        end: when the final sparsity is reached; later steps recover at constant sparsity.
        every: distance between updates.
        regrowth: a pruned weight may become active again at a later update, when the weights that were kept have become
            smaller.
        last_update: with ``regrowth``, or an importance that learns: masks are chosen again at the final sparsity until
            then; None means ``end``.
        scope: what reaches the sparsity: every layer by itself (``layer``), all layers together, with one threshold
            (``global``), or every output of a layer (``output``, as Wanda has it).
        permute_neurons: with ``"RxC/N"``, before training, put feed-forward neurons next to each other that read and
            write alike, so that whole blocks have low scores; the model computes the same as before.
        targets: globs or ``re:`` patterns; None takes every linear of the transformer layers. For heads and neurons
            those that read them: attention outputs and second feed-forward matrices.
        ignore: patterns to leave alone.

    """

    # Names of options in errors, where a subclass has others; None: those of the importance are its own.
    importance_option: str | None = "importance"
    last_update_option = "last_update"

    def __init__(
        self,
        importance: Importance | Callable[..., Any] | None = None,
        pattern: str = "unstructured",
        sparsity: float | None = None,
        initial_sparsity: float = 0.0,
        schedule: Literal["constant", "linear", "cubic", "cosine"] = "cubic",
        start: str = "0%",
        end: str = "60%",
        every: str = "2%",
        regrowth: bool = False,
        last_update: str | None = None,
        scope: Scope = "layer",
        permute_neurons: bool = False,
        targets: Sequence[str] | None = None,
        ignore: Sequence[str] = (),
    ) -> None:
        super().__init__(targets, ignore)
        owner = type(self).__name__
        if not isinstance(importance, Importance):
            importance = Magnitude() if importance is None else Function(importance)
        self.importance = copy(importance)  # two strategies may be given the same one
        self.importance.key = f"{owner}.{self.importance_option}" if self.importance_option else owner
        given = {"sparsity": sparsity is not None, "initial_sparsity": initial_sparsity, "scope": scope != "layer"}
        if self.importance.finds_sparsity and any(given.values()):
            key = next(key for key, there in given.items() if there)
            raise UserError(f"{owner}.{key}: has no effect on method soft; leave it out")
        self.sparsity = _SPARSITY if sparsity is None else sparsity
        self.pattern = self._parse(pattern)
        self.scope: Scope = scope
        self._check_amounts(initial_sparsity, schedule)
        self.permute_neurons = permute_neurons
        self.regrowth: Regrowth = "all" if self.importance.learned else "values" if regrowth else "none"
        if last_update is not None and self.regrowth == "none":
            raise UserError(
                f"{owner}.last_update: {last_update!r} has no effect without regrowth: "
                "a mask chosen again at the same sparsity is the same mask; leave it out"
            )
        if regrowth and (reason := self.importance.why_no_regrowth()):
            raise UserError(f"{owner}.regrowth: {reason}; leave it out")
        self._check_pattern()
        self.importance.check(self.pattern)
        # Of heads and neurons, and of what finds its sparsity itself, the schedule says a fraction of the final amount.
        shares = self.importance.finds_sparsity or not isinstance(self.pattern, Pattern)
        final, initial = (1.0, initial_sparsity / (self.sparsity or 1)) if shares else (self.sparsity, initial_sparsity)
        self.schedule = (
            Constant(final=final) if schedule == "constant" else _SCHEDULES[schedule](initial=initial, final=final)
        )
        self.window = Window(
            owner, start, end, every, last_update, self.last_update_option, count_past_end=self.importance.learned
        )
        self._matched: Units | None = None

    def prepare(self, layers: dict[str, CompressibleLinear]) -> None:
        for name, layer in layers.items():
            if isinstance(self.pattern, Pattern) and (
                reason := self.pattern.why_not(layer.out_features, layer.in_features)
            ):
                raise UserError(
                    f"{type(self).__name__}.pattern: {self.pattern.text!r} {reason} of {name!r}; choose another "
                    "pattern or add the layer to ignore"
                )
            layer.add_mask()

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        super().setup(trainer, pl_module, stage)
        units = self._units(pl_module)
        if isinstance(units, GroupUnits):
            units.add_groups()
            self._check_tied(units)
            self._check_widths(units, stage)
        self.importance.prepare(units)
        if stage != "fit":
            return
        self.importance.check_size(units)
        penalties = getattr(pl_module, "penalties", {}).values()
        if self.importance.finds_sparsity and not any(getattr(penalty, "of_scores", False) for penalty in penalties):
            raise UserError(
                f"{self.importance.key}.method: soft prunes nothing unless a penalty pulls scores down; "
                "use LitPrunedStudent with model.penalties: {scores: ScorePenalty}, or method hard"
            )
        if self.permute_neurons:
            # Before the optimizer exists. Weights that a resumed run loads over these were permuted already.
            self._permute(student_of(pl_module))

    def end(self, trainer: Trainer) -> int:
        # What prunes everything at the start has nothing left to do but to choose again.
        updates = self.updates(trainer)
        at_once = self.regrowth == "none" and self.schedule(0.0) == self.schedule.final
        return updates.start if at_once else updates.last

    def amounts(self, pl_module: LightningModule) -> tuple[str, str]:
        units = self._units(pl_module)
        if isinstance(units, GroupUnits):
            asked = ", ".join(f"{sum(final):,} {kind}" for kind, final in units.final.items())
            reached = ", ".join(f"{units.count_kept(kind):,} {kind}" for kind in units.groups)
        else:
            asked = self.importance.amount() or percent(self.sparsity)
            reached = zeros(units.layers.values())
        fixed, not_fixed = ("", "") if self.regrowth == "none" else (", fixed", ", not fixed")
        return asked + fixed, reached + not_fixed

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        layers = self.layers(pl_module) if not isinstance(self.pattern, Pattern) else {}
        learned = [name for name, layer in layers.items() if layer.mask_scores is not None]
        if learned and not self.importance.learned:
            raise UserError(
                f"{type(self).__name__}.targets: {learned[0]!r} learns its mask, which brings weights back; "
                "give movement pruning and this strategy different layers"
            )
        # Once per fit: matching names takes longer than a step's scores, and the structure does not change any more.
        self._matched = self._units(pl_module)
        super().on_train_start(trainer, pl_module)

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer) -> None:
        if not self.importance.collects:
            return
        updates = self.updates(trainer)
        if updates.start <= trainer.global_step < updates.last:
            # Under DDP and FSDP2 gradients are those of all ranks by now, so every rank adds up the same.
            units = self._matched
            assert units is not None
            self.importance.collect(units, {name: _gradient(layer) for name, layer in units.layers.items()})

    @torch.no_grad()
    def update(self, trainer: Trainer, pl_module: LightningModule, progress: float) -> None:
        amount, units, reached = self.schedule(progress), self._matched, 0.0
        assert units is not None
        if self.regrowth == "none":
            if self.importance.needs_passes:
                reached = units.reached()
            if amount <= reached or (self.importance.needs_passes and not prunes_more(units, amount)):
                return  # nothing to prune; passes over the data saved
        updates = self.updates(trainer)
        keep_values = self.regrowth != "none" and trainer.global_step < updates.last
        for part in range(self.importance.recomputations):
            share = (part + 1) / self.importance.recomputations
            sample = Sample(trainer, pl_module, part, first=trainer.global_step == updates.start)
            kept, values = self.importance.choose(units, (1 - share) * reached + share * amount, sample)
            for name, value in values.items():
                write_weight(units.layers[name], value)
            units.write(kept, trainer, keep_values)
        self.importance.forget(units)

    def masks(self, scores: dict[str, Tensor], sparsity: float) -> dict[str, Tensor]:
        """Masks of the layers at a sparsity; pure, and what a subclass overrides for another pattern of weights."""
        assert isinstance(self.pattern, Pattern)
        return dict(zip(scores, self.pattern.masks(list(scores.values()), sparsity, self.scope), strict=True))

    def final(self, kind: Kind, groups: Sequence[Groups]) -> list[int]:
        """How many of the heads or neurons of each layer stay in the end."""
        return [amount_of(1 - self.sparsity, one.count) if self.sparsity else one.count for one in groups]

    def score_factors(self, trainer: Trainer, pl_module: LightningModule) -> dict[str, float]:
        """By layer, how much a penalty on its scores counts at this step: from 0 to 1, growing with the threshold."""
        if not self.importance.finds_sparsity:
            return {}
        share = self.schedule(self.updates(trainer).progress(trainer.global_step))
        return dict.fromkeys(self.layers(pl_module), share)

    def kinds(self) -> Mapping[Kind, str]:
        """Heads or neurons, if they are pruned, and the option that says so."""
        return {kind: "pattern" for kind in KINDS if kind == self.pattern}

    def _units(self, pl_module: LightningModule) -> Units:
        if isinstance(self.pattern, Pattern):
            return WeightUnits(self.layers(pl_module), self.masks, self.pattern, self.scope, self.regrowth)
        student = student_of(pl_module)
        groups = find_groups(student, self.kinds(), self.targets, self.ignore, type(self).__name__)
        final: dict[Kind, list[int]] = {kind: self.final(kind, layers) for kind, layers in groups.items()}
        return GroupUnits(student, groups, final, self.scope, self.regrowth)

    def _match(self, student: nn.Module) -> dict[str, Any]:
        if isinstance(self.pattern, Pattern):
            return super()._match(student)
        found = find_groups(student, self.kinds(), self.targets, self.ignore, type(self).__name__)
        return {
            name: student.get_submodule(name)
            for groups in found.values()
            for one in groups
            for name in (one.consumer, *one.producers)
        }

    @torch.no_grad()
    def _permute(self, student: nn.Module) -> None:
        targets, key = self._match(student), f"{type(self).__name__}.permute_neurons"
        assert isinstance(self.pattern, BalancedBlocks)
        for groups in removable_groups(student, "neurons", key):
            up, down = (targets.get(name) for name in (groups.producers[0], groups.consumer))
            order = neuron_order(
                None if up is None else self.importance.of_weight(full_weight(up)),
                None if down is None else self.importance.of_weight(full_weight(down)),
                neurons=groups.count,
                sparsity=self.sparsity,
                block=(self.pattern.rows, self.pattern.columns),
                multiple=self.pattern.multiple,
            )
            if order is not None:
                permute_groups(student, groups, order)

    def _parse(self, text: str) -> Pattern | Kind:
        for kind in KINDS:
            if text == kind:
                return kind
        if text in _ELSEWHERE:
            raise UserError(
                f"{type(self).__name__}.pattern: {text!r} have an order of their own, no importance of weights; use "
                f"{_ELSEWHERE[text]}"
            )
        try:
            return parse_pattern(text)
        except ValueError as error:
            raise UserError(f"{type(self).__name__}.pattern: {error}") from error

    def _check_amounts(self, initial: float, schedule: str) -> None:
        owner = type(self).__name__
        pattern = self.pattern if isinstance(self.pattern, Pattern) else Pattern()
        if wrong := wrong_option(pattern, self.sparsity, self.scope):
            raise UserError(f"{owner}.{': '.join(wrong)}")
        if not 0 <= initial < 1:
            raise UserError(f"{owner}.initial_sparsity: {initial} must be in [0, 1)")
        if initial > self.sparsity:
            raise UserError(
                f"{owner}.initial_sparsity: {initial} is above sparsity {self.sparsity}; give at most as much"
            )
        if schedule not in (allowed := ("constant", *_SCHEDULES)):
            raise UserError(f"{owner}.schedule: {schedule!r} must be one of {', '.join(allowed)}")
        if schedule == "constant" and initial:
            raise UserError(f"{owner}.initial_sparsity: {initial} has no effect on a constant schedule; leave it out")

    def _check_pattern(self) -> None:
        owner, pattern = type(self).__name__, self.pattern
        text = pattern.text if isinstance(pattern, Pattern) else pattern
        if text in KINDS and self.scope == "output":
            raise UserError(f"{owner}.scope: output has no meaning for {text!r}; use layer or global")
        if self.permute_neurons and not isinstance(pattern, BalancedBlocks):
            raise UserError(
                f"{owner}.permute_neurons: has no effect on pattern {text!r}; choose one such as tall_blocks, "
                "or leave it out"
            )
        if self.permute_neurons and not self.importance.from_weights:
            raise UserError(
                f"{owner}.permute_neurons: the order is found before training, from weights alone, which "
                f"{type(self.importance).__name__} does not score; leave it out, or use Magnitude"
            )

    def _check_tied(self, units: GroupUnits) -> None:
        """Refuse what says that layers with the same heads are to lose others."""
        owner = type(self).__name__
        for kind, groups in units.groups.items():
            if groups[0].table is None:
                continue
            key, value = self.amount_option(kind)
            wrong = None
            if len(set(units.final[kind])) > 1:
                wrong = f"{key}: {value} says different numbers"
            elif len(groups) < len(encoder_layers(units.student)):
                wrong = f"targets: {self.targets or self.ignore} leave out layers"
            elif self.scope == "global" and len(units.groups) == 1:
                wrong = f"scope: global has no effect on {kind}"
            if wrong is not None:
                layout_of(units.student).require("uneven_heads", f"{owner}.{wrong}")

    def _check_widths(self, units: GroupUnits, stage: str) -> None:
        owner = type(self).__name__
        for kind, groups in units.groups.items():
            widths = [(final, one.count) for final, one in zip(units.final[kind], groups, strict=True)]
            key, value = self.amount_option(kind)
            if all(left == whole for left, whole in widths):
                most = max(whole for _, whole in widths)
                raise UserError(f"{owner}.{key}: {value} removes nothing, no layer has more than {most}; remove more")
            if stage == "fit":
                if isinstance(value, list):  # one layer may well keep little
                    left, whole, of = sum(left for left, _ in widths), sum(whole for _, whole in widths), "all layers"
                else:
                    (left, whole), of = min(widths, key=lambda width: width[0] / width[1]), "a layer"
                tell_if_little(f"{owner}.{key}", left, whole, f"{kind} of {of}")

    def amount_option(self, kind: Kind) -> tuple[str, Any]:
        """The option that says how many heads or neurons stay, and its value."""
        return "sparsity", self.sparsity


def _gradient(layer: CompressibleLinear) -> Tensor:
    gradient = layer.weight.grad
    if gradient is None:  # frozen
        return torch.zeros(layer.weight.shape, device=layer.weight.device)
    return full_tensor(gradient)
