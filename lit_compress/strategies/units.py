"""What pruning removes as a whole: weights in a pattern, or heads and neurons, which several matrices make up."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from lightning.pytorch import Trainer
from torch import Tensor, nn

from lit_compress.errors import UserError
from lit_compress.functional import masks
from lit_compress.functional.importance import head_scores, neuron_scores
from lit_compress.functional.patterns import Pattern, Scope
from lit_compress.functional.schedules import width_at
from lit_compress.models.heads_and_neurons import Groups, Kind, column_mask, removable_groups, row_mask
from lit_compress.nn.compressible import CompressibleLinear
from lit_compress.nn.replace_layers import match_modules
from lit_compress.strategies.distributed_weights import agreed, full_weight, set_mask

__all__ = [
    "GroupUnits",
    "Regrowth",
    "Units",
    "WeightUnits",
    "find_groups",
    "group_scores",
    "prunes_more",
    "scored_linears",
]

# Whether what is pruned may come back at a later update: not at all, with the value it had, or always.
Regrowth = Literal["none", "values", "all"]


@dataclass(frozen=True)
class WeightUnits:
    """Weights of some layers, each a unit; a pattern says which go together.

    Args:
        layers: by name.
        masks: from scores of the layers' weights and a sparsity to masks.
        pattern: the pattern of these masks.
        scope: whether the sparsity is that of each layer or of all together.
        regrowth: what may come back.

    """

    layers: Mapping[str, CompressibleLinear]
    masks: Callable[[dict[str, Tensor], float], dict[str, Tensor]]
    pattern: Pattern
    scope: Scope
    regrowth: Regrowth = "none"

    @property
    def together(self) -> int:
        """How many consecutive inputs go together."""
        return self.pattern.columns

    @property
    def compensated(self) -> Mapping[str, CompressibleLinear]:
        """Layers whose other weights can make up for what goes."""
        return self.layers

    def add_totals(self) -> None:
        """Install a buffer for the scores that are collected during training, one for each unit."""
        for layer in self.layers.values():
            layer.add_weight_scores()

    @property
    def totals(self) -> dict[str, Tensor]:
        """These buffers, by the name of a unit's layer."""
        return {name: _present(layer.weight_scores) for name, layer in self.layers.items()}

    def reduce(self, scores: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Scores of units from those of the weights of all ``layers``."""
        return dict(scores)

    def select(self, scores: dict[str, Tensor], sparsity: float) -> dict[str, Tensor]:
        """Which units to keep, bool, from their scores: the masks of the layers."""
        if self.regrowth == "all":
            return self.masks(scores, sparsity)
        # What is pruned stays pruned, whatever the scores say about a zero.
        available = {name: self._available(layer) for name, layer in self.layers.items()}
        limited = {name: score.masked_fill(~available[name], -torch.inf) for name, score in scores.items()}
        return {name: mask & available[name] for name, mask in self.masks(limited, sparsity).items()}

    def pruned_now(self, name: str, kept: Mapping[str, Tensor]) -> Tensor:
        """The weights of a layer that go with this selection, bool ``(out_features, in_features)``."""
        return _present(self.layers[name].weight_mask) & ~kept[name]

    def write(self, kept: Mapping[str, Tensor], trainer: Trainer, keep_values: bool) -> None:
        """Make a selection the masks of the layers; with ``keep_values`` what they prune may come back."""
        for name, mask in kept.items():
            set_mask(self.layers[name], mask, trainer, keep_values)

    @property
    def existing(self) -> dict[str, Tensor]:
        """Which units there are now, as :meth:`select` says it."""
        return {name: _present(layer.weight_mask) for name, layer in self.layers.items()}

    def reached(self) -> float:
        """The sparsity that there is, of the layer that has least of it where each has its own."""
        existing = [mask.flatten() for mask in self.existing.values()]
        return min(masks.sparsity(pool) for pool in ([torch.cat(existing)] if self.scope == "global" else existing))

    def _available(self, layer: CompressibleLinear) -> Tensor:
        mask = _present(layer.weight_mask)
        return mask | (full_weight(layer) != 0) if self.regrowth == "values" else mask


@dataclass(frozen=True)
class GroupUnits:
    """Heads and neurons of a model, named after the linear that reads them; sparsity is the fraction of what is to go.

    Args:
        student: the model.
        groups: of each kind that is pruned, those of each layer.
        final: of each kind, how many of those of each layer stay in the end.
        scope: whether every layer keeps its number, or all layers together their sum; layers with the same heads keep
            theirs either way.
        regrowth: what may come back.

    """

    student: nn.Module
    groups: Mapping[Kind, Sequence[Groups]]
    final: Mapping[Kind, Sequence[int]]
    scope: Scope
    regrowth: Regrowth = "none"

    @property
    def together(self) -> int:
        """How many consecutive inputs an importance of weights looks at together: what it says is added up anyway."""
        return 1

    @property
    def layers(self) -> dict[str, CompressibleLinear]:
        """The linears whose weights make up the importance."""
        return {name: self._linear(name) for one in self._all() for name in scored_linears(one)}

    @property
    def compensated(self) -> dict[str, CompressibleLinear]:
        """The linears that read the groups: their other weights can make up for what goes."""
        return {one.consumer: self._linear(one.consumer) for one in self._all()}

    def add_groups(self) -> None:
        """Install the buffers that say which heads and neurons are kept."""
        for one in self._all():
            self._linear(one.consumer).add_groups(one.count)

    def add_totals(self) -> None:
        """The buffers for collected scores come with the groups."""

    @property
    def totals(self) -> dict[str, Tensor]:
        """Buffers for collected scores, ``(count,)``, by the name of the linear that reads the groups."""
        return {one.consumer: _present(self._linear(one.consumer).group_scores) for one in self._all()}

    def reduce(self, scores: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Scores ``(count,)`` of groups in fp32 from those of the weights of all ``layers``."""
        return {one.consumer: group_scores(one, [scores[name] for name in scored_linears(one)]) for one in self._all()}

    def select(self, scores: dict[str, Tensor], share: float) -> dict[str, Tensor]:
        """Which groups to keep, bool ``(count,)``, once a fraction of those that are to go is gone."""
        selected: dict[str, Tensor] = {}
        for kind, groups in self.groups.items():
            kept = [self._kept(one) | (self.regrowth != "none") for one in groups]
            limited = [scores[g.consumer].masked_fill(~k, -torch.inf) for g, k in zip(groups, kept, strict=True)]
            widths = [width_at(share, g.count, final) for g, final in zip(groups, self.final[kind], strict=True)]
            if groups[0].table is not None:  # what is least important to all layers together goes from all
                chosen = [masks.group_mask(torch.stack(limited).sum(0), widths[0])] * len(groups)
            elif self.scope == "global":
                chosen = masks.global_group_masks(limited, sum(widths))
            else:
                chosen = [masks.group_mask(score, width) for score, width in zip(limited, widths, strict=True)]
            selected |= {one.consumer: mask & k for one, mask, k in zip(groups, chosen, kept, strict=True)}
        return selected

    def pruned_now(self, name: str, kept: Mapping[str, Tensor]) -> Tensor:
        """The weights that go of a linear that reads groups, bool ``(out_features, in_features)``."""
        (one,) = (one for one in self._all() if one.consumer == name)
        return _present(self._linear(name).weight_mask) & ~column_mask(one, kept[name])

    def write(self, kept: Mapping[str, Tensor], trainer: Trainer, keep_values: bool) -> None:
        """Mask what is not kept on both sides; with ``keep_values`` only where it is read, so that it may come back."""
        for one in self._all():
            consumer, mask = self._linear(one.consumer), agreed(kept[one.consumer])
            _present(consumer.kept_groups).copy_(mask)
            columns = column_mask(one, mask).expand_as(consumer.weight)
            before = columns if self.regrowth != "none" else _present(consumer.weight_mask)
            set_mask(consumer, before & columns, trainer, keep_values)
            for producer in () if keep_values else map(self._linear, one.producers):
                rows = row_mask(one, mask, producer.out_features)
                set_mask(producer, _present(producer.weight_mask) & rows[:, None], trainer)

    @property
    def existing(self) -> dict[str, Tensor]:
        """Which groups there are now, as :meth:`select` says it."""
        return {one.consumer: self._kept(one) for one in self._all()}

    def reached(self) -> float:
        """The share that is gone, of the layer that has least of it where each has its own."""
        shares: list[float] = []
        for kind, groups in self.groups.items():
            layers = [
                (one.count - int(self._kept(one).sum()), one.count - final)
                for one, final in zip(groups, self.final[kind], strict=True)
            ]
            pools = [layers] if self.scope == "global" else [[layer] for layer in layers]
            shares += [sum(gone for gone, _ in pool) / due for pool in pools if (due := sum(due for _, due in pool))]
        return min(shares, default=1.0)

    def count_kept(self, kind: Kind) -> int:
        """How many heads or neurons there are now."""
        return sum(int(self._kept(one).sum()) for one in self.groups[kind])

    def _all(self) -> Iterable[Groups]:
        return (one for groups in self.groups.values() for one in groups)

    def _kept(self, one: Groups) -> Tensor:
        return _present(self._linear(one.consumer).kept_groups)

    def _linear(self, name: str) -> CompressibleLinear:
        layer = self.student.get_submodule(name)
        assert isinstance(layer, CompressibleLinear)
        return layer


Units = WeightUnits | GroupUnits


def prunes_more(units: Units, sparsity: float) -> bool:
    """Whether something goes that there still is: whole numbers of units do not change with every sparsity.

    How many go follows from a sparsity alone, so that any scores tell.
    """
    existing = units.existing
    kept = units.select({name: mask.float() for name, mask in existing.items()}, sparsity)
    return any(not torch.equal(kept[name], mask) for name, mask in existing.items())


def find_groups(
    student: nn.Module, kinds: Mapping[Kind, str], targets: Sequence[str] | None, ignore: Sequence[str], owner: str
) -> dict[Kind, list[Groups]]:
    """Heads and neurons of each layer, where targets say so.

    Args:
        student: plain or in its training form.
        kinds: what is to be pruned, and the option that says so.
        targets: patterns of the linears that read what is removed; None takes those of every layer.
        ignore: patterns to leave alone.
        owner: class name for errors.

    """
    asked: dict[Kind, list[Groups]] = {
        kind: removable_groups(student, kind, f"{owner}.{key}") for kind, key in kinds.items()
    }
    if targets is None and not ignore:
        return asked
    readers = [one.consumer for groups in asked.values() for one in groups]
    chosen = match_modules(student, targets or readers, ignore, key=f"{owner}.targets")
    found: dict[Kind, list[Groups]] = {
        kind: [one for one in groups if one.consumer in chosen] for kind, groups in asked.items()
    }
    for kind, groups in asked.items():
        if not found[kind]:
            raise UserError(
                f"{owner}.targets: {targets} leaves no layer whose {kind} could be removed; "
                f"name linears like {groups[0].consumer!r}"
            )
    return found


def scored_linears(groups: Groups) -> tuple[str, ...]:
    """The linears whose weights make up the importance of the groups, the consumer first."""
    return (groups.consumer, *groups.producers) if groups.kind == "neurons" else (groups.consumer,)


def group_scores(groups: Groups, weights: list[Tensor]) -> Tensor:
    """Scores ``(count,)`` in fp32 from those of the consumer's weights and, for neurons, of the first matrix's."""
    consumer, *first = (weight.float() for weight in weights)
    if groups.kind == "heads":
        return head_scores(consumer, groups.count)
    # A first matrix that also makes a gate has the gates after the values: both rows belong to the neuron.
    rows = first[0].unflatten(0, (-1, groups.count)).transpose(0, 1).flatten(1)
    return neuron_scores(rows, consumer)


def _present(tensor: Tensor | None) -> Tensor:
    assert tensor is not None
    return tensor
