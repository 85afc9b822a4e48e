"""Which classes a classifier takes for which: counts of rows, of the dense and of the compressed model."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure

from lit_compress.report.drawing import ACCENT, INK, MUTED, bare, chart
from lit_compress.report.summary import own_name
from lit_compress.tasks import ClassificationTask, Outcomes, Task

__all__ = ["confusion", "confusion_figure"]

_MOST = 20  # classes, of which the numbers can still be read
_ON_ACCENT = "#fefefe"  # in dark pages, too


def confusion(outcomes: Mapping[str, Outcomes], task: Task) -> dict[str, list[list[int]]] | None:
    """Model to a row for each true class with how often it was answered with each class; None for other tasks.

    Also None where there are more classes than a figure can show.
    """
    if not isinstance(task, ClassificationTask) or len(task.labels) > _MOST:
        return None
    return {name: _counts(outcome, task.labels) for name, outcome in outcomes.items()}


def _counts(outcome: Outcomes, labels: Sequence[Any]) -> list[list[int]]:
    number = {label: index for index, label in enumerate(labels)}
    counts = np.zeros((len(labels), len(labels)), dtype=int)
    pairs = [(number[true], number[said]) for true, said in zip(outcome.gold, outcome.answers, strict=True)]
    np.add.at(counts, tuple(np.array(pairs).T), 1)
    return counts.tolist()


@contextmanager
def confusion_figure(results: Mapping[str, Any]) -> Iterator[Figure | None]:
    """A matrix of each model, as dark as the fraction of its true class."""
    counts = results.get("confusion") or {}
    counts = {name: np.array(counts[name]) for name in ("dense", own_name(results)) if name in counts}
    if not counts:
        yield None
        return
    labels = [label if len(label) <= 14 else f"{label[:13]}…" for label in results["labels"]]
    side_by_side = len(labels) <= 4  # else one below the other
    upright = len(labels) * max(map(len, labels)) > (16 if side_by_side else 40)
    shape = {"rows": 1, "columns": len(counts)} if side_by_side else {"rows": len(counts), "columns": 1}
    height = (0.5 + 0.34 * len(labels)) * shape["rows"] + (1.2 if upright else 0.6)
    with chart(height=height, **shape) as (figure, rows):
        for axes, (name, matrix) in zip(rows, counts.items(), strict=True):
            shares = matrix / matrix.sum(1, keepdims=True).clip(1)
            image = np.empty((*matrix.shape, 4))
            # The page shows through, so it fits dark and light.
            image[..., :3], image[..., 3] = to_rgb(ACCENT), 0.92 * shares + 0.05
            axes.imshow(image, aspect="auto", interpolation="nearest")
            for (row, column), count in np.ndenumerate(matrix):
                color = _ON_ACCENT if shares[row, column] > 0.6 else INK
                size = 9 if len(labels) <= 10 else 6.5
                axes.text(column, row, f"{count:,}", ha="center", va="center", fontsize=size, color=color)
            first, last = axes is rows[0] or not side_by_side, axes is rows[-1] or side_by_side
            axes.set_xticks(range(len(labels)) if last else [], labels if last else [], rotation=90 if upright else 0)
            axes.set_yticks(range(len(labels)) if first else [], labels if first else [])
            axes.set_title(name)
            bare(axes)
        figure.supxlabel("predicted class", fontsize=10, color=MUTED)
        figure.supylabel("true class", fontsize=10, color=MUTED)
        yield figure
