"""Which member of a family is recommended, and how sure that is."""

from collections.abc import Mapping, Sequence
from typing import Any

from lit_compress.report.phrasing import verdict

__all__ = ["choose", "loss_of"]


def choose(members: Sequence[Mapping[str, Any]], max_loss: float) -> dict[str, Any]:
    """The fastest member that loses no more than it may, by the middle of its interval.

    Args:
        members: of a family, each with ``name``, ``speedup``, ``loss`` (None where it is not defined) and ``said``.
        max_loss: in points.

    Returns:
        ``recommended``, a name or None, and ``why``, a sentence.

    Example:
        >>> slow = {"name": "2x", "speedup": 2.1, "loss": 0.1, "said": "undecided"}
        >>> fast = {"name": "8x", "speedup": 7.9, "loss": 3.0, "said": "loses between 2.0 and 4.0 points"}
        >>> choose([slow, fast], 1.0)
        {'recommended': '2x', 'why': 'the fastest that loses at most 1 points: undecided'}

    """
    known = [each for each in members if each["loss"] is not None]
    good = [each for each in known if each["loss"] <= max_loss and each["speedup"] > 1]
    if not good:
        return {"recommended": None, "why": f"no member is faster and loses at most {max_loss:g} points"}
    # Of members that are the same model the first.
    best = max(good, key=lambda each: each["speedup"])
    return {"recommended": best["name"], "why": f"the fastest that loses at most {max_loss:g} points: {best['said']}"}


def loss_of(results: Mapping[str, Any], member: str) -> tuple[float | None, str]:
    """Points that a member loses on the first metric, and what its interval says.

    Where a metric has no points, the loss is in hundredths of the dense model's value. It is None where the metric is
    not defined: a model with one answer to all has no correlation.
    """
    metric = results["score"]
    entry = results["comparison"]["metrics"][metric]
    difference, points = entry["differences"][member], results["points"][metric]
    if difference["value"] is None:
        return None, verdict(difference, points)
    lower = metric in results["lower_is_better"]
    scale = points or 100.0 / max(abs(entry["models"]["dense"]["value"]), 1e-9)
    return (1 if lower else -1) * scale * difference["value"], verdict(difference, points, not lower)
