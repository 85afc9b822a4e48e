"""Learning rates as functions of the optimizer step: one decay, several in a row, or one that is rewound."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from lit_compress.errors import UserError
from lit_compress.functional.schedules import Duration, rewound_linear, sawtooth

__all__ = ["Phase", "Rewind", "learning_rate_factor", "parse_option", "phase_factor", "phase_steps", "to_steps"]


@dataclass(frozen=True, kw_only=True)
class Phase:
    """One stretch of training in which the learning rate falls from the peak; the next begins at the peak again.

    Args:
        until: end of the phase: ``"2 epochs"``, ``"500 steps"`` or ``"80%"``; the last one ends with the training.
        final_learning_rate: where the decay ends; None takes ``optimization.final_learning_rate``.
        cycle: length of the decay, repeated until the phase ends; None means one decay as long as the phase.

    """

    until: str = "100%"
    final_learning_rate: float | None = None
    cycle: str | None = None

    def __post_init__(self) -> None:
        parse_option(self.until, "optimization.phases.until")
        if self.cycle is not None:
            parse_option(self.cycle, "optimization.phases.cycle")


@dataclass(frozen=True, kw_only=True)
class Rewind:
    """Learning-rate rewinding: inside a window the rate is put back every so many steps.

    Args:
        start: of the window in which sparsity grows; the ``start`` of the pruning.
        end: of that window; the ``end`` of the pruning.
        every: distance between two rewinds; the ``every`` of the pruning.

    """

    start: str = "0%"
    end: str = "60%"
    every: str = "2%"

    def __post_init__(self) -> None:
        for key in ("start", "end", "every"):
            parse_option(getattr(self, key), f"optimization.rewind.{key}")

    def factor(self, warmup: int, total_steps: int, steps_per_epoch: float) -> Callable[[int], float]:
        """Fraction of the peak by optimizer step of a run, see :func:`rewound_linear`.

        Raises:
            UserError: the window does not fit the run, or leaves no step to decay in.

        """
        start, end, every = (
            to_steps(getattr(self, key), f"optimization.rewind.{key}", total_steps, steps_per_epoch)
            for key in ("start", "end", "every")
        )
        if not start < end <= total_steps:
            raise UserError(
                f"optimization.rewind.end: step {end} must come after start, step {start}, "
                f"and not after training ends at step {total_steps}"
            )
        if total_steps - (end - start) <= warmup:
            raise UserError(
                f"optimization.rewind: of {total_steps} steps the window takes {end - start} and the warm-up {warmup}; "
                "nothing is left to decay in; give a shorter window or warm-up"
            )
        return lambda step: rewound_linear(step, total_steps, warmup, start, end, max(every, 1))


def learning_rate_factor(step: int, warmup_steps: int, total_steps: int, decay: str, final: float = 0.0) -> float:
    """Fraction of the peak learning rate at a step: linear warm-up, then one decay to ``final``, also a share.

    Example:
        >>> [learning_rate_factor(s, 2, 10, "linear") for s in (0, 1, 2, 6, 10)]
        [0.0, 0.5, 1.0, 0.5, 0.0]

    """
    return phase_factor(step, warmup_steps, [(total_steps, 0, final)], decay)


def phase_factor(step: int, warmup_steps: int, phases: Sequence[tuple[int, int, float]], decay: str) -> float:
    """Fraction of the peak learning rate at a step: linear warm-up, then the phases.

    Args:
        step: optimizer step.
        warmup_steps: where the first phase begins.
        phases: ``(end, cycle, final)`` each: its last step and one, steps of a cycle (0: none), share it ends at.
        decay: shape of each decay: ``linear``, ``cosine`` or ``constant``.

    Example:
        >>> [phase_factor(s, 0, [(4, 0, 0.0), (8, 2, 0.5)], "linear") for s in range(9)]
        [1.0, 0.75, 0.5, 0.25, 1.0, 0.5, 1.0, 0.5, 0.5]

    """
    if step < warmup_steps:
        return step / warmup_steps
    start = warmup_steps
    for end, _, _ in phases[:-1]:
        start = end if step >= end else start
    end, cycle, final = next((phase for phase in phases if step < phase[0]), phases[-1])
    length = max(end - start, 1)
    progress = sawtooth(step - start, length, cycle) if cycle else min((step - start) / length, 1.0)
    share = {"linear": 1 - progress, "cosine": (1 + math.cos(math.pi * progress)) / 2, "constant": 1.0}[decay]
    return final + (1 - final) * share


def phase_steps(
    phases: Sequence[Phase], peak: float, final: float, warmup: int, total_steps: int, steps_per_epoch: float
) -> list[tuple[int, int, float]]:
    """Phases as :func:`phase_factor` takes them, for a run.

    Args:
        phases: in order.
        peak: learning rate that a fraction of 1 means.
        final: learning rate at the end of a phase that names none.
        warmup: optimizer steps before the first phase.
        total_steps: of the run.
        steps_per_epoch: optimizer steps of an epoch.

    Raises:
        UserError: a phase ends before it starts, or the last one not with the training.

    """
    resolved, start = [], warmup
    for index, phase in enumerate(phases):
        key = f"optimization.phases.{index}"
        end = to_steps(phase.until, f"{key}.until", total_steps, steps_per_epoch)
        if end <= start:
            raise UserError(f"{key}.until: step {end} must come after the phase starts, at step {start}; end it later")
        cycle = max(to_steps(phase.cycle, f"{key}.cycle", total_steps, steps_per_epoch), 1) if phase.cycle else 0
        if cycle > end - start:
            raise UserError(f"{key}.cycle: {cycle} steps do not fit into a phase of {end - start}; shorten it")
        final_here = final if phase.final_learning_rate is None else phase.final_learning_rate
        resolved.append((end, cycle, final_here / peak))
        start = end
    if start != total_steps:
        raise UserError(
            f"optimization.phases: the last ends at step {start} and the training at step {total_steps}; "
            "leave out its until, or give trainer.max_epochs to match"
        )
    return resolved


def parse_option(text: str, key: str) -> Duration:
    """A duration with its unit, or a ``UserError`` that names the key."""
    try:
        return Duration.parse(text)
    except ValueError as error:
        raise UserError(f"{key}: {error}") from error


def to_steps(text: str, key: str, total_steps: int, steps_per_epoch: float) -> int:
    """Optimizer steps of a duration, or a ``UserError`` that names the key."""
    try:
        return Duration.parse(text).steps(total_steps, steps_per_epoch)
    except ValueError as error:
        raise UserError(f"{key}: {error}") from error
