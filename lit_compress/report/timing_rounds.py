"""Rounds of timed calls, and which of them the machine disturbed."""

import statistics
from collections.abc import Callable, Sequence
from typing import NamedTuple

from lit_compress.console import say
from lit_compress.progress import counted

__all__ = ["Rounds", "undisturbed", "undisturbed_rounds"]

Round = Callable[[int, Callable[[], None]], list[float]]

# A round is disturbed when most models take this many times their fastest call, or longer. On virtual machines whose
# cores share one of the host at times, two threads take 1.4 to 2.2 times as long for seconds; others vary by 1.1.
_DISTURBED = 1.25
_MOST = 4  # times the rounds that are wanted, in all


class Rounds(NamedTuple):
    """Rounds that count: for each the seconds of each model, and what to say of a machine that stayed busy, or ""."""

    seconds: list[list[float]]
    busy: str

    def busy_at(self, rows: int, tokens: int) -> dict[str, str]:
        """The same for the facts about a machine, by the shape that was timed; empty when it was quiet."""
        return {f"busy at {rows}x{tokens}": self.busy} if self.busy else {}


def undisturbed_rounds(what: str, models: int, wanted: int, one_round: Round) -> Rounds:
    """Time rounds until as many as wanted are undisturbed; four times as many are made at most.

    Where the machine stays busy, the least disturbed rounds count, and it is said.

    Args:
        what: is measured, for the progress shown.
        models: that a round calls, each once.
        wanted: rounds.
        one_round: calls the models in the round of that number, and tells after each call; returns their seconds in
            the order of the models.

    """
    rounds: list[list[float]] = []
    with counted(what, models * wanted, "calls") as tell:
        steady: list[int] = []
        while len(steady) < wanted and len(rounds) < _MOST * wanted:
            done = models * len(steady)

            def called() -> None:
                nonlocal done
                tell(done := done + 1)

            rounds.append(one_round(len(rounds), called))
            steady = undisturbed(rounds)
    busy = ""
    if (quiet := len(steady)) < wanted:
        busy = f"{wanted - quiet} of {wanted} timed rounds were disturbed"
        say(
            f"The machine is busy: {len(rounds) - quiet} of {len(rounds)} rounds of calls were disturbed by "
            f"something else; the times are those of the least disturbed {wanted}, measure again when it is quiet"
        )
        slowness = _slowness(rounds)
        steady = sorted(sorted(range(len(rounds)), key=slowness.__getitem__)[:wanted])
    return Rounds([rounds[index] for index in steady[:wanted]], busy)


def undisturbed(rounds: Sequence[Sequence[float]]) -> list[int]:
    """Indices of the rounds in which at most half of the models took 1.25 times their fastest call, or longer.

    Args:
        rounds: for each the seconds of each model.

    Example:
        >>> undisturbed([[1.0, 4.0], [1.1, 4.2], [2.0, 7.9], [1.0, 4.1]])
        [0, 1, 3]

    """
    return [index for index, slowness in enumerate(_slowness(rounds)) if slowness < _DISTURBED]


def _slowness(rounds: Sequence[Sequence[float]]) -> list[float]:
    """For each round the median over the models (the lower of two) of a call's time by the model's fastest."""
    fastest = [min(times) for times in zip(*rounds, strict=True)]
    return [statistics.median_low(time / best for time, best in zip(each, fastest, strict=True)) for each in rounds]
