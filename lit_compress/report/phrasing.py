"""Figures as words: how a difference reads, and in which unit."""

from collections.abc import Mapping
from typing import Any

__all__ = [
    "amount",
    "bytes_text",
    "direction",
    "metric_title",
    "number",
    "points_of",
    "ratio",
    "settings_text",
    "speed",
    "verdict",
    "verdict_of",
]


def points_of(results: Mapping[str, Any], metric: str) -> float | None:
    """What a metric of a report is multiplied by to be in points of a hundred; None where that has no meaning.

    Example:
        >>> points_of({"points": {"f1": 1.0}}, "f1"), points_of({"points": {"f1": 1.0}}, "recall")
        (1.0, 100.0)

    """
    return results["points"].get(metric, 100.0)  # else of a class, all of which are shares


def metric_title(results: Mapping[str, Any], metric: str) -> str:
    """A metric of a report, with two classes also of which of them its F1 is.

    Example:
        >>> metric_title({"task": "classification", "labels": ["bad", "good"]}, "f1")
        "f1 of 'good'"

    """
    labels = results.get("labels") or []
    one = metric == "f1" and results.get("task") == "classification" and len(labels) == 2
    return f"f1 of {labels[1]!r}" if one else metric


def direction(difference: Mapping[str, Any], confidence: float = 0.95) -> int:
    """1 where a metric is surely above the dense model's, -1 where it is surely below, 0 where that is not decided.

    Decided is what the interval leaves 0 out of and, where few answers changed, an exact test agrees with.

    Example:
        >>> direction({"low": 0.0, "high": 0.1}), direction({"low": -0.2, "high": -0.1})
        (0, -1)
        >>> direction({"low": 0.01, "high": 0.1, "few": True, "p": 0.125})
        0

    """
    low, high = difference["low"], difference["high"]
    if low is None or high is None or (difference.get("few") and difference["p"] >= 1 - confidence):
        return 0
    return int(low > 0) - int(high < 0)


def verdict(difference: Mapping[str, Any], points: float | None = 100.0, higher_is_better: bool = True) -> str:
    """What the interval of a difference to the dense model says; a side only when it leaves 0 out.

    Args:
        difference: an entry of ``differences`` in a report.
        points: of the metric, see :func:`points_of`.
        higher_is_better: whether more of the metric is a better model.

    Example:
        >>> verdict({"value": -0.02, "low": -0.031, "high": -0.008})
        'loses between 0.8 and 3.1 points'
        >>> verdict({"value": -0.02, "low": -0.031, "high": 0.004})
        'undecided, between a loss of 3.1 points and a gain of 0.4'
        >>> changes = {"few": True, "worse": 0, "better": 4, "p": 0.125}
        >>> verdict({"value": 0.07, "low": -0.031, "high": 0.12} | changes)
        'undecided, between a loss of 3.1 points and a gain of 12.0: only 4 predictions changed, 0 for the worse'

    """
    low, high = difference["low"], difference["high"]
    if low is None or high is None:
        return "not defined on this data"
    sign = 1 if higher_is_better else -1
    unit = "" if points is None else " points"
    worst, best = sorted((sign * low, sign * high))
    loss, gain = ((points or 1) * change for change in (0 - worst, best))
    side = sign * direction(difference)
    if side > 0:
        return f"gains between {amount(-loss)} and {amount(gain)}{unit}"
    if side < 0:
        return f"loses between {amount(-gain)} and {amount(loss)}{unit}"
    why = _few_changes(difference) if difference.get("few") else ""
    if loss < 0 or gain < 0:  # the interval alone would decide
        return f"undecided: {why}"
    return f"undecided, between a loss of {amount(loss)}{unit} and a gain of {amount(gain)}{why and f': {why}'}"


def verdict_of(results: Mapping[str, Any], metric: str, difference: Mapping[str, Any]) -> str:
    """:func:`verdict` on a metric of a report."""
    return verdict(difference, points_of(results, metric), metric not in results["lower_is_better"])


def _few_changes(difference: Mapping[str, Any]) -> str:
    changed = difference["worse"] + difference["better"]
    if not changed:
        return "no prediction changed"
    return f"only {changed} prediction{'s' * (changed > 1)} changed, {difference['worse']} for the worse"


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


def speed(baseline: float, time: float) -> str:
    """How many times the throughput of a baseline something has, from the time that each takes for the same batch.

    This is what "x" of a speed means in every table: 1 is as fast as what the table names, more is faster.

    Example:
        >>> speed(12.0, 8.0), speed(8.0, 12.0)
        ('1.50x', '0.67x')

    """
    return f"{baseline / time:.2f}x"


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
        >>> settings_text({"importance": {"class_path": "lit_compress.Fisher", "init_args": {"block_size": 48}}})
        'importance Fisher (block_size 48)'

    """
    said = {name: value for name, value in settings.items() if value not in (None, [], {}, "")}
    return ", ".join(f"{name} {_last_name(value)}" for name, value in said.items())


def _last_name(value: Any) -> Any:
    if isinstance(value, Mapping) and "class_path" in value:
        options = settings_text(value.get("init_args") or {})
        return f"{_last_name(value['class_path'])} ({options})" if options else _last_name(value["class_path"])
    if isinstance(value, str) and value.startswith("lit_compress.") and value.replace(".", "").isidentifier():
        return value.rpartition(".")[2]
    return value
