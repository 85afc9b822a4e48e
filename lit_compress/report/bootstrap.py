"""How far a metric could be off, and a difference of two models on the same units: the paired bootstrap.

Efron and Tibshirani 1993, chapter 13 (percentile interval). Units are drawn with replacement; each resample is scored
for every model, so that what makes a unit hard for all of them cancels in the difference. scipy has the interval too,
but for one statistic at a time; here one set of draws serves all metrics, classes, slices and models.
"""

from collections.abc import Iterator, Mapping

import numpy as np

from lit_compress.report.outcomes import Outcomes, Scores
from lit_compress.report.slices import slices_of

__all__ = ["CONFIDENCE", "RESAMPLES", "SEED", "compare_outcomes", "interval", "resamples"]

CONFIDENCE = 0.95
RESAMPLES = 2000
SEED = 0

_AT_ONCE = 4_000_000  # weights held at a time, so that memory does not grow with the data
Estimate = dict[str, float | None]


def resamples(units: int, count: int = RESAMPLES, seed: int = SEED) -> Iterator[np.ndarray]:
    """How often each unit is drawn, float64 ``(some resamples, units)`` at a time; ``count`` rows in all.

    Example:
        >>> [weights.sum(axis=1).tolist() for weights in resamples(units=4, count=2)]
        [[4.0, 4.0]]

    """
    generator = np.random.default_rng(seed)
    step = max(_AT_ONCE // units, 1)
    for start in range(0, count, step):
        rows = min(step, count - start)
        drawn = generator.integers(units, size=(rows, units)) + np.arange(rows)[:, None] * units
        yield np.bincount(drawn.reshape(-1), minlength=rows * units).reshape(rows, units).astype(np.float64)


def interval(values: np.ndarray, confidence: float = CONFIDENCE) -> tuple[float | None, float | None]:
    """Between which values the middle of a distribution lies; None where no resample has a value.

    Example:
        >>> interval(np.arange(101.0), 0.5)
        (25.0, 75.0)

    """
    known = values[np.isfinite(values)]
    if not len(known):
        return None, None
    low, high = np.quantile(known, [(1 - confidence) / 2, (1 + confidence) / 2])
    return float(low), float(high)


def compare_outcomes(outcomes: Mapping[str, Outcomes], count: int = RESAMPLES, seed: int = SEED) -> dict:
    """Every metric of every model with its interval, and the differences to the model named ``dense``.

    Args:
        outcomes: by model, on the same units in the same order.
        count: resamples.
        seed: of the draws.

    Returns:
        ``{"unit", "units", "confidence", "resamples", "seed", "metrics", "classes", "slices"}``. An entry of metrics
        is ``{"models": {model: {"value", "low", "high"}}, "differences": {model: likewise}}``; classes and slices have
        ``{"units": how many, "metrics": likewise}`` by name.

    """
    first = next(iter(outcomes.values()))
    units = len(first.lengths)
    masks = slices_of(first)
    values = _scores(outcomes, masks, np.ones((1, units)))
    drawn = [_scores(outcomes, masks, weights) for weights in resamples(units, count, seed)]
    groups: dict[tuple[str, str], dict[str, dict]] = {}
    for key in values:
        part, name, metric, model = key
        resampled = np.concatenate([scores[key] for scores in drawn])
        entry = groups.setdefault((part, name), {}).setdefault(metric, {"models": {}, "differences": {}})
        entry["models"][model] = _estimate(values[key], resampled)
        dense = (part, name, metric, "dense")
        if model != "dense" and dense in values:
            difference = resampled - np.concatenate([scores[dense] for scores in drawn])
            entry["differences"][model] = _estimate(values[key] - values[dense], difference)
    counts = {"classes": first.class_units, "slices": {name: int(mask.sum()) for name, mask in masks.items()}}
    return {
        "unit": first.unit,
        "units": units,
        "confidence": CONFIDENCE,
        "resamples": count,
        "seed": seed,
        "metrics": groups["metrics", ""],
        **{
            part: {name: {"units": counts[part][name], "metrics": groups[part, name]} for name in counts[part]}
            for part in counts
        },
    }


def _scores(
    outcomes: Mapping[str, Outcomes], masks: Mapping[str, np.ndarray], weights: np.ndarray
) -> dict[tuple[str, str, str, str], np.ndarray]:
    """Values ``(resamples,)`` by part of the report, name in it, metric and model."""
    found: dict[tuple[str, str, str, str], np.ndarray] = {}

    def keep(part: str, name: str, model: str, scores: Scores) -> None:
        found.update({(part, name, metric, model): values for metric, values in scores.items()})

    for model, outcome in outcomes.items():
        keep("metrics", "", model, outcome.score(weights))
        for name, scores in (outcome.score_classes(weights) if outcome.score_classes else {}).items():
            keep("classes", name, model, scores)
        for name, mask in masks.items():
            keep("slices", name, model, outcome.score(weights * mask))
    return found


def _estimate(value: np.ndarray, resampled: np.ndarray) -> Estimate:
    low, high = interval(resampled)
    return {"value": float(value[0]) if np.isfinite(value[0]) else None, "low": low, "high": high}
