"""When and how much: durations with their unit, sparsity as a function of progress, learning rates that go up again."""

import math
import re
from dataclasses import dataclass

__all__ = [
    "Constant",
    "Cosine",
    "Cubic",
    "Duration",
    "EqualParts",
    "Linear",
    "Updates",
    "due",
    "rewound_linear",
    "sawtooth",
    "width_at",
]

_DURATION = re.compile(r"^\s*(?P<value>\d+(?:\.\d*)?|\.\d+)\s*(?P<unit>%|epochs?|steps?)\s*$")


@dataclass(frozen=True)
class Duration:
    """A point in training, or a distance between two, that says its unit.

    Args:
        value: how many; not negative.
        unit: ``"epochs"``, ``"steps"`` (optimizer steps) or ``"%"`` (of all optimizer steps of the run).

    Example:
        >>> Duration.parse("1.5 epochs").steps(total_steps=400, steps_per_epoch=100)
        150
        >>> Duration.parse("25%").steps(total_steps=400, steps_per_epoch=100)
        100

    """

    value: float
    unit: str

    @classmethod
    def parse(cls, text: str) -> "Duration":
        """Read ``"2 epochs"``, ``"500 steps"`` or ``"10%"``; anything else is a ``ValueError``."""
        match = _DURATION.match(str(text))
        if match is None:
            raise ValueError(f"{text!r} is not a duration with its unit; write '2 epochs', '500 steps' or '10%'")
        unit = match["unit"]
        return cls(float(match["value"]), unit if unit == "%" else unit.rstrip("s") + "s")

    def steps(self, total_steps: float, steps_per_epoch: float) -> int:
        """Optimizer steps, rounded to the nearest; a ``ValueError`` for epochs of a stream, which never end."""
        if self.unit == "epochs" and math.isinf(steps_per_epoch):
            raise ValueError(f"{self.value:g} epochs have no length on a stream of data; write steps or %")
        per_unit = {"%": total_steps / 100, "epochs": steps_per_epoch, "steps": 1}[self.unit]
        return round(self.value * per_unit)


def due(step: int, start: int, end: int, every: int) -> bool:
    """Whether an update belongs to this step: at ``start``, every ``every`` steps after it, and once at ``end``.

    Example:
        >>> [step for step in range(12) if due(step, start=2, end=9, every=3)]
        [2, 5, 8, 9]

    """
    return step == end or (start <= step < end and (step - start) % every == 0)


@dataclass(frozen=True)
class Updates:
    """The optimizer steps of updates, as a container: at ``start``, every ``every`` steps, at ``end``, until ``last``.

    Args:
        start: first update.
        end: where the progress is 1.
        every: distance between updates.
        last: last update.
        count_past_end: count the distance from ``start`` until ``last``; ``end`` is then an update only if the count
            meets it. Otherwise it is always one, and the count begins again there.

    Example:
        >>> updates = Updates(start=2, end=9, every=3, last=13)
        >>> [step for step in range(20) if step in updates]
        [2, 5, 8, 9, 12, 13]
        >>> updates.progress(2), updates.progress(11)
        (0.0, 1.0)

    """

    start: int
    end: int
    every: int
    last: int
    count_past_end: bool = False

    def __contains__(self, step: int) -> bool:
        if self.count_past_end:
            return due(step, self.start, self.last, self.every)
        return due(step, self.start, self.end, self.every) or due(step, self.end, self.last, self.every)

    def progress(self, step: int) -> float:
        """0 at ``start``, 1 from ``end`` on; below 0 before the start."""
        # An `end` that is the `start` is one update; what is before it is counted in steps.
        return 1.0 if step >= self.end else (step - self.start) / max(self.end - self.start, 1)


@dataclass(frozen=True)
class EqualParts:
    """The same for updates at the end of each of some equally long parts of ``start`` to ``end``.

    Example:
        >>> updates = EqualParts(start=0, end=100, parts=4)
        >>> [step for step in range(200) if step in updates], updates.progress(50)
        ([25, 50, 75, 100], 0.5)

    """

    start: int
    end: int
    parts: int

    @property
    def steps(self) -> list[int]:
        """All of them; several are the same where there are more parts than steps."""
        return [self.start + (self.end - self.start) * number // self.parts for number in range(1, self.parts + 1)]

    @property
    def last(self) -> int:
        """The last update."""
        return self.end

    def __contains__(self, step: int) -> bool:
        return step in self.steps

    def progress(self, step: int) -> float:
        """Fraction of the parts that are over."""
        return sum(step >= at for at in self.steps) / self.parts


def sawtooth(step: int, length: int, cycle: int) -> float:
    """Progress through the current cycle: 0 at its first step, 1 at its last; a last, incomplete one is complete too.

    SparseML's ``cyclic_linear`` learning rate, as the recipes of oBERT (Kurtic et al. 2022, arXiv 2203.07259) use it.

    Args:
        step: from the start of the first cycle; from ``length`` on the progress stays 1.
        length: steps of all cycles together.
        cycle: steps of one; at least 1.

    Example:
        >>> [round(sawtooth(step, length=8, cycle=3), 2) for step in range(9)]
        [0.0, 0.5, 1.0, 0.0, 0.5, 1.0, 0.0, 1.0, 1.0]

    """
    if step >= length:
        return 1.0
    begin = step - step % cycle
    return (step - begin) / max(min(cycle, length - begin) - 1, 1)


def rewound_linear(step: int, total: int, warmup: int, start: int, end: int, every: int) -> float:
    """Linear decay with learning-rate rewinding, as the released code of Prune Once for All has it (arXiv 2111.05754).

    The rate falls as if the window ``[start, end)`` did not exist; inside the window it is put back every ``every``
    steps to where the window began. The highest factor is ``(M - start) / (M - warmup)`` with
    ``M = total - (end - start)``: a little above 1 when the window starts before the warm-up ends.

    Args:
        step: optimizer step.
        total: steps of the run.
        warmup: steps of linear warm-up; fewer than ``M``.
        start: first step of the window in which pruning continues.
        end: first step after it.
        every: steps between two rewinds, which is the distance of mask updates.

    Example:
        >>> at = (1000, 1999, 2000, 75_000)
        >>> [round(rewound_linear(step, 100_000, 1000, 0, 50_000, 1000), 4) for step in at]
        [1.0204, 1.0, 1.0204, 0.5102]

    """
    if step < warmup:
        return step / warmup
    rest = total - (end - start)
    if step >= end:
        return max(total - step, 0) / (rest - warmup)
    reached = start + (step - start) % every if step >= start else step
    return max(rest - reached, 0) / (rest - warmup)


def width_at(progress: float, width: int, final: int) -> int:
    """What is left of a width on the way to the final one: it falls in proportion to the progress, from 0 to 1.

    ROSITA's schedule (Liu et al. 2021, arXiv 2103.11367) for heads, neurons and the rank of the embedding, whose
    progress is the number of the update divided by how many there are.

    Example:
        >>> [width_at(number / 10, 12, 2) for number in (1, 2, 10)], width_at(1 / 10, 3072, 512)
        ([11, 10, 2], 2816)

    """
    # A float next to the middle of two whole numbers counts as the middle.
    return width - round(round((width - final) * progress, 6))


@dataclass(frozen=True, kw_only=True)
class Constant:
    """The final value from the start on (one-shot pruning)."""

    final: float

    def __call__(self, progress: float) -> float:
        return self.final


@dataclass(frozen=True, kw_only=True)
class Linear:
    """A straight line from ``initial`` to ``final``."""

    final: float
    initial: float = 0.0

    def __call__(self, progress: float) -> float:
        return self.final + (self.initial - self.final) * (1 - _clip(progress))


@dataclass(frozen=True, kw_only=True)
class Cubic:
    """Fast first, slow last: ``s_f + (s_i - s_f)(1 - p)^3`` (Zhu & Gupta 2017, arXiv 1710.01878, equation 1).

    Example:
        >>> Cubic(initial=0.0, final=0.9)(0.5)
        0.7875

    """

    final: float
    initial: float = 0.0

    def __call__(self, progress: float) -> float:
        return self.final + (self.initial - self.final) * (1 - _clip(progress)) ** 3


@dataclass(frozen=True, kw_only=True)
class Cosine:
    """Half a cosine from ``initial`` to ``final``: slow at both ends."""

    final: float
    initial: float = 0.0

    def __call__(self, progress: float) -> float:
        return self.final + (self.initial - self.final) * (1 + math.cos(math.pi * _clip(progress))) / 2


def _clip(progress: float) -> float:
    return min(max(progress, 0.0), 1.0)
