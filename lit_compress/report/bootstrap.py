"""How far a metric could be off, and a difference of two models on the same units: bootstrap and exact test, paired.

Efron and Tibshirani 1993, chapter 13 (percentile interval). Units are drawn with replacement; each resample is scored
for every model, so that what makes a unit hard for all of them cancels in the difference. scipy has the interval too,
but for one statistic at a time; here one set of draws serves all metrics, classes, slices and models.

Where few answers changed, resampling knows too little: with none that became worse it never draws one. There
McNemar's exact test decides (a sign test of the changed units), and the fraction of correct predictions gets the
interval that is its inversion.
"""

from collections.abc import Iterator, Mapping

import numpy as np
from scipy.stats import binomtest

from lit_compress.report.slices import slices_of
from lit_compress.tasks.outcomes import Outcomes, Scores

__all__ = [
    "CONFIDENCE",
    "FEW_CHANGES",
    "RESAMPLES",
    "SEED",
    "compare_outcomes",
    "exact_interval",
    "interval",
    "resamples",
]

CONFIDENCE = 0.95
FEW_CHANGES = 25  # below which McNemar's test is usually made exact
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


def exact_interval(worse: int, better: int, units: int, confidence: float = CONFIDENCE) -> tuple[float, float]:
    """Between which values the difference of two fractions of correct predictions lies, by the answers that changed.

    The fraction of the changed answers that became better, and the fraction of all that changed, each with its exact
    interval (Clopper and Pearson 1934). It leaves out 0 exactly where McNemar's exact test rejects equal shares.

    Example:
        >>> [round(bound, 3) for bound in exact_interval(worse=0, better=0, units=60)]
        [-0.06, 0.06]
        >>> [round(bound, 3) for bound in exact_interval(worse=9, better=1, units=300)]
        [-0.06, -0.002]

    """
    changed = worse + better
    least, most = _share(changed, units, confidence)
    low, high = (2 * bound - 1 for bound in (_share(better, changed, confidence) if changed else (0.0, 1.0)))
    return low * (most if low < 0 else least), high * (most if high > 0 else least)


def _share(count: int, units: int, confidence: float) -> tuple[float, float]:
    bounds = binomtest(count, units).proportion_ci(confidence)
    return float(bounds.low), float(bounds.high)


def compare_outcomes(outcomes: Mapping[str, Outcomes], count: int = RESAMPLES, seed: int = SEED) -> dict:
    """Every metric of every model with its interval, and the differences to the model named ``dense``.

    Args:
        outcomes: by model, on the same units in the same order.
        count: resamples.
        seed: of the draws.

    Returns:
        ``{"unit", "units", "confidence", "resamples", "seed", "metrics", "classes", "slices"}``. An entry of metrics
        is ``{"models": {model: {"value", "low", "high"}}, "differences": {model: the same}}``; classes and slices have
        ``{"units": how many, "metrics": the same}`` by name. The differences of metrics say how many units became
        ``worse`` and ``better``, with the ``p`` of McNemar's exact test, and whether those are ``few``.

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
            if part == "metrics":
                entry["differences"][model] |= _changes(metric, outcomes["dense"], outcomes[model])
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


def _changes(metric: str, dense: Outcomes, own: Outcomes) -> Estimate:
    """How many units changed, what that says, and where they are few the exact interval of the fraction correct."""
    is_share = dense.share is not None and dense.share[0] == metric
    before, after = (outcome.right if is_share else outcome.goodness for outcome in (dense, own))
    if before is None or after is None:
        return {}
    worse, better = int((after < before).sum()), int((after > before).sum())
    p = float(binomtest(worse, worse + better).pvalue) if worse + better else 1.0
    found: Estimate = {"worse": worse, "better": better, "p": p, "few": worse + better < FEW_CHANGES}
    if is_share and found["few"]:
        assert dense.share is not None
        low, high = exact_interval(worse, better, len(before))
        found |= {"low": low * dense.share[1], "high": high * dense.share[1]}
    return found


def _estimate(value: np.ndarray, resampled: np.ndarray) -> Estimate:
    low, high = interval(resampled)
    return {"value": float(value[0]) if np.isfinite(value[0]) else None, "low": low, "high": high}
