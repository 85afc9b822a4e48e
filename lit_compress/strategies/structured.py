"""Structured pruning: whole attention heads and feed-forward neurons go, and the folded model is smaller and faster."""

from collections.abc import Mapping, Sequence
from typing import Any, Literal

from lit_compress.errors import UserError
from lit_compress.models.heads_and_neurons import Groups, Kind
from lit_compress.strategies.importance import Magnitude, Taylor
from lit_compress.strategies.pruning import Pruning
from lit_compress.strategies.strategy import amount_of, check_amount
from lit_compress.strategies.window import PartsWindow

__all__ = ["StructuredPruning"]

_SCORE_BATCHES = 64


class StructuredPruning(Pruning):
    """Prunes heads and neurons by importance, at once or step by step (ROSITA: Liu et al. 2021, arXiv 2103.11367).

    A head's importance is that of its columns in the attention's output projection, a neuron's that of its row in the
    first and its column in the second feed-forward matrix. Between ``start`` and ``end`` the widths fall in equal
    parts, ``pruning_steps`` times; a pruned head or neuron is masked at once and physically gone in the folded model.

    Args:
        heads: what each layer keeps: a number, or a fraction in (0, 1) of its heads; or a list with one for each layer
            that the student has once ``LayerDropping`` has been at work; None leaves heads alone. With a global scope
            the same on the average.
        neurons: what each layer keeps of the neurons of its feed-forward block: a number, a fraction in (0, 1), or a
            list with one for each layer; None leaves neurons alone.
        scope: every layer keeps what is said of it (``layer``), or what is least important of all layers goes
            (``global``), and of each layer at least one stays.
        pruning_steps: number of prunings, each at the end of its part of ``start`` to ``end``. 1 is one-shot.
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

    importance_option = None

    def __init__(
        self,
        heads: int | float | Sequence[int | float] | None = None,
        neurons: int | float | Sequence[int | float] | None = None,
        scope: Literal["layer", "global"] = "layer",
        pruning_steps: int = 10,
        start: str = "0%",
        end: str = "50%",
        criterion: Literal["taylor", "magnitude"] = "taylor",
        score_batches: int | None = None,
        targets: Sequence[str] | None = None,
        ignore: Sequence[str] = (),
    ) -> None:
        owner = type(self).__name__
        keep: dict[Kind, int | float | Sequence[int | float] | None] = {"heads": heads, "neurons": neurons}
        self.keep: dict[Kind, int | float | list[int | float]] = {
            kind: list(value) if isinstance(value, Sequence) else value
            for kind, value in keep.items()
            if value is not None
        }
        if not self.keep:
            raise UserError(f"{owner}.heads: nothing is removed; give heads or neurons that each layer keeps")
        for key, value in self.keep.items():
            for amount in value if isinstance(value, list) else [value]:
                check_amount(amount, f"{owner}.{key}")
            if isinstance(value, list) and scope == "global":
                raise UserError(
                    f"{owner}.{key}: {value} says what each layer keeps, which scope global decides itself; "
                    "use scope layer, or give a single number"
                )
        if criterion not in ("taylor", "magnitude"):
            raise UserError(f"{owner}.criterion: {criterion!r} must be one of taylor, magnitude")
        if pruning_steps < 1:
            raise UserError(f"{owner}.pruning_steps: {pruning_steps} must be 1 or more")
        batches = _SCORE_BATCHES if score_batches is None else score_batches
        super().__init__(
            importance=Taylor(batches) if criterion == "taylor" else Magnitude(),
            pattern="neurons" if heads is None else "heads",
            schedule="linear",
            scope=scope,
            targets=targets,
            ignore=ignore,
        )
        self.window = PartsWindow(owner, start, end, pruning_steps, "pruning_steps")
        if score_batches and (criterion != "taylor" or self.window.end.value > 0):
            raise UserError(
                f"{owner}.score_batches: {score_batches} has no effect unless criterion taylor prunes before the "
                "first step; give start and end of 0%, or leave it out"
            )

    def kinds(self) -> Mapping[Kind, str]:
        return {kind: kind for kind in self.keep}

    def final(self, kind: Kind, groups: Sequence[Groups]) -> list[int]:
        keep, counts = self.keep[kind], [one.count for one in groups]
        if not isinstance(keep, list):
            return [min(amount_of(keep, count), count) for count in counts]
        key = f"{type(self).__name__}.{kind}"
        if len(keep) != len(counts):
            raise UserError(
                f"{key}: {keep} has {len(keep)} numbers, and layers to prune are {len(counts)}; give one for each that "
                "the student has after LayerDropping, which comes before this strategy"
            )
        for layer, (amount, count) in enumerate(zip(keep, counts, strict=True)):
            if amount > count:
                raise UserError(
                    f"{key}: {amount} is more than the {count} {kind} of layer {layer}; give at most {count}"
                )
        return [amount_of(amount, count) for amount, count in zip(keep, counts, strict=True)]

    def amount_option(self, kind: Kind) -> tuple[str, Any]:
        return kind, self.keep[kind]
