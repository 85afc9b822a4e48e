"""Whether a classifier is right as often as it is sure: reliability curve and expected calibration error."""

from typing import Any

import numpy as np

__all__ = ["calibration"]


def calibration(confidence: np.ndarray, right: np.ndarray, bins: int = 15) -> dict[str, Any]:
    """Expected calibration error (Guo et al. 2017, arXiv 1706.04599, equation 3) over bins of equal width.

    Args:
        confidence: probability of the predicted class, ``(rows,)``, in [0, 1].
        right: whether that class is the label, bool ``(rows,)``.
        bins: of equal width between 0 and 1; a value on an edge belongs to the bin above it.

    Returns:
        ``{"ece": ..., "bins": [{"low", "high", "rows", "confidence", "accuracy"}, ...]}``; ``ece`` is in [0, 1], empty
        bins are left out.

    Example:
        >>> calibration(np.array([0.9, 0.9, 0.6, 0.6]), np.array([True, True, True, False]), bins=2)["ece"]
        0.0
        >>> round(calibration(np.array([0.9, 0.9]), np.array([True, False]))["ece"], 3)
        0.4

    """
    edges = np.linspace(0, 1, bins + 1)
    index = np.clip(np.searchsorted(edges, confidence, side="right") - 1, 0, bins - 1)
    rows = np.bincount(index, minlength=bins)
    sure, hits = (np.bincount(index, values.astype(np.float64), bins) for values in (confidence, right))
    entries = [
        {
            "low": float(edges[number]),
            "high": float(edges[number + 1]),
            "rows": int(rows[number]),
            "confidence": float(sure[number] / rows[number]),
            "accuracy": float(hits[number] / rows[number]),
        }
        for number in np.flatnonzero(rows)
    ]
    return {"ece": float(np.abs(sure - hits).sum() / len(confidence)), "bins": entries}
