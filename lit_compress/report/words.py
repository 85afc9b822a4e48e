"""Figures as words: how a difference reads, and in which unit."""

from collections.abc import Mapping
from typing import Any

__all__ = ["amount", "bytes_text", "higher_is_better", "number", "points_of", "ratio", "settings_text", "verdict"]


def points_of(task: str, metric: str) -> float | None:
    """What a metric is multiplied by to be in points of a hundred; None where that has no meaning.

    Example:
        >>> points_of("classification", "f1"), points_of("question_answering", "f1")
        (100.0, 1.0)

    """
    if metric == "perplexity":
        return None
    return 1.0 if task == "question_answering" else 100.0


def higher_is_better(metric: str) -> bool:
    """Whether more of a metric is a better model."""
    return metric != "perplexity"


def verdict(difference: Mapping[str, float | None], task: str, metric: str) -> str:
    """What the interval of a difference to the dense model says; "no loss" only when it excludes a loss.

    Example:
        >>> verdict({"value": -0.02, "low": -0.031, "high": -0.008}, "classification", "accuracy")
        'loses between 0.8 and 3.1 points'
        >>> verdict({"value": -0.02, "low": -0.031, "high": 0.004}, "classification", "accuracy")
        'undecided, between a loss of 3.1 points and a gain of 0.4'

    """
    low, high = difference["low"], difference["high"]
    if low is None or high is None:
        return "not defined on this data"
    points = points_of(task, metric)
    worst, best = (-low, -high) if higher_is_better(metric) else (high, low)  # as losses
    worst, best = ((points or 1) * loss for loss in (worst, best))
    unit = "" if points is None else " points"
    if worst <= 0:
        return "no loss" if best == 0 else f"no loss: gains between {amount(-worst)} and {amount(-best)}{unit}"
    if best > 0:
        return f"loses between {amount(best)} and {amount(worst)}{unit}"
    gain = "no change" if best == 0 else f"a gain of {amount(-best)}"
    return f"undecided, between a loss of {amount(worst)}{unit} and {gain}"


def amount(value: float) -> str:
    """A number of points or of perplexity, with as many digits as tell it from 0.

    Example:
        >>> amount(3.14159), amount(0.04), amount(0.0)
        ('3.1', '0.04', '0.0')

    """
    return f"{value:.1f}" if value >= 0.95 or value == 0 else f"{value:.2g}"


def number(value: float | None, points: float | None = None) -> str:
    """A metric as it is stored, or in points; a dash for what is not defined.

    Example:
        >>> number(0.91239), number(0.91239, 100.0), number(None)
        ('0.9124', '91.2', '–')

    """
    if value is None or value != value:
        return "–"
    if points is not None:
        return f"{value * points:.1f}"
    return f"{value:.4f}" if abs(value) < 100 else f"{value:,.1f}"


def ratio(above: float, below: float) -> str:
    """How many times one is the other.

    Example:
        >>> ratio(438.0, 46.0), ratio(1.0, 0.0)
        ('9.5x', '–')

    """
    return f"{above / below:.1f}x" if below else "–"


def bytes_text(count: float) -> str:
    """A size in units of a thousand.

    Example:
        >>> bytes_text(4_938_268), bytes_text(1_500)
        ('4.94 MB', '1.50 kB')

    """
    return f"{count / 1e6:.2f} MB" if count >= 1e6 else f"{count / 1e3:.2f} kB"


def settings_text(settings: Mapping[str, Any]) -> str:
    """Settings in one line, without those that say nothing, functions and classes by their last name.

    Example:
        >>> settings_text({"sparsity": 0.9, "ignore": [], "criterion": "lit_compress.functional.magnitude"})
        'sparsity 0.9, criterion magnitude'

    """
    said = {name: value for name, value in settings.items() if value not in (None, [], {}, "")}
    return ", ".join(f"{name} {_last_name(value)}" for name, value in said.items())


def _last_name(value: Any) -> Any:
    dotted = isinstance(value, str) and value.startswith("lit_compress.") and value.replace(".", "").isidentifier()
    return value.rpartition(".")[2] if dotted else value
