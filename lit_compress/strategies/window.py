"""The stretch of training in which a strategy acts: durations with units, turned into steps once they are known."""

from lightning.pytorch import Trainer

from lit_compress.errors import UserError
from lit_compress.functional.schedules import Duration, EqualParts, Updates
from lit_compress.training_steps import training_steps

__all__ = ["PartsWindow", "Window", "parse_duration", "to_steps"]


class Window:
    """Updates at ``start``, every ``every`` after it, at ``end``, and from there until ``last``.

    Args:
        owner: class name for errors.
        start: first update.
        end: where the progress is 1.
        every: distance between updates.
        last: last update; None is ``end``.
        last_key: option that says so, for errors.
        count_past_end: count the distance from ``start`` on until ``last``, whether or not that meets ``end``.

    """

    def __init__(
        self,
        owner: str,
        start: str,
        end: str,
        every: str = "1 steps",
        last: str | None = None,
        last_key: str = "last_update",
        count_past_end: bool = False,
    ) -> None:
        self.owner, self.last_key, self.count_past_end = owner, last_key, count_past_end
        self.start, self.end, self.every = (
            parse_duration(text, f"{owner}.{key}") for key, text in (("start", start), ("end", end), ("every", every))
        )
        self.last = None if last is None else parse_duration(last, f"{owner}.{last_key}")
        if self.start.unit == self.end.unit and self.end.value < self.start.value:
            raise UserError(f"{owner}.end: {end!r} comes before start {start!r}; give a later end")

    def updates(self, trainer: Trainer) -> Updates | EqualParts:
        """The optimizer steps of this run after which something is to be done.

        Raises:
            UserError: the window ends before it starts or after training does.

        """
        start, end, every = (to_steps(d, trainer, self.owner) for d in (self.start, self.end, self.every))
        total, _ = training_steps(trainer)
        if end < start:
            raise UserError(f"{self.owner}.end: step {end} comes before start, step {start}; give a later end")
        if end > total:
            raise UserError(
                f"{self.owner}.end: step {end} comes after training ends at step {total}; give an earlier end"
            )
        last = end if self.last is None else to_steps(self.last, trainer, self.owner)
        if not end <= last <= total:
            raise UserError(
                f"{self.owner}.{self.last_key}: step {last} must not come before end, step {end}, "
                f"nor after training ends at step {total}"
            )
        return Updates(start, end, max(every, 1), last, self.count_past_end)


class PartsWindow(Window):
    """Updates at the end of each of some equal parts of ``start`` to ``end``.

    Args:
        owner: class name for errors.
        start: where the first part begins.
        end: where the last one ends.
        parts: their number.
        key: option that says it, for errors.

    """

    def __init__(self, owner: str, start: str, end: str, parts: int, key: str) -> None:
        super().__init__(owner, start, end)
        self.parts, self.key = parts, key

    def updates(self, trainer: Trainer) -> EqualParts:
        """As in :meth:`Window.updates`; a ``UserError`` also says that parts are shorter than a step."""
        found = super().updates(trainer)
        start, end = found.start, found.end
        if end - start < self.parts and not (self.parts == 1 and start == end == 0):
            raise UserError(
                f"{self.owner}.{self.key}: {self.parts} do not fit between start, step {start}, and end, step {end}; "
                "ask for fewer or give a later end"
            )
        return EqualParts(start, end, self.parts)


def parse_duration(text: str, key: str) -> Duration:
    """A duration with its unit, or a ``UserError`` that names the key."""
    try:
        return Duration.parse(text)
    except ValueError as error:
        raise UserError(f"{key}: {error}") from error


def to_steps(duration: Duration, trainer: Trainer, owner: str = "duration") -> int:
    """Optimizer steps of this run."""
    try:
        return duration.steps(*training_steps(trainer))
    except UserError:
        raise
    except ValueError as error:
        raise UserError(f"{owner}: {error}") from error
