"""Runs on the same data as points: what each costs and how good it is, and the front of those that none beats."""

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullFormatter, ScalarFormatter

from lit_compress.report.drawing import ACCENT, DENSE, INK, MUTED, PAPER, bare, chart
from lit_compress.report.phrasing import points_of
from lit_compress.report.summary import own_name, timed_batch

__all__ = ["Group", "groups_of", "pareto_figure", "pareto_front"]

_LETTER = 0.0175  # width of a letter as a fraction of the chart


@dataclass(frozen=True, kw_only=True)
class Group:
    """Runs whose values may be compared: same task, metric, validation examples and batch that is timed.

    Attributes:
        task: name of the task.
        metric: its first one.
        factor: what brings the metric into points; None where that has no meaning.
        source: where the validation examples come from.
        rows: how many.
        batch: of the latencies.
        names: of the runs.
        points: axis (``size``: megabytes, ``latency``: ratio to dense) to name to ``(cost, value)``; a dense model that
            is not itself a run is there as ``dense``, ``dense 2``, ...
        fronts: axis to the names of the runs that are not beaten.

    """

    task: str
    metric: str
    factor: float | None
    source: str
    rows: int
    batch: str
    names: list[str]
    points: dict[str, dict[str, tuple[float, float]]]
    fronts: dict[str, list[str]]


def groups_of(results: Mapping[str, Mapping[str, Any]]) -> list[Group]:
    """The runs by what they were measured on, in order."""
    by_key: dict[tuple, list[str]] = {}
    for name, result in results.items():
        metric = next(iter(result["models"][own_name(result)]["accuracy"]))
        data = result["data"]
        batch = timed_batch(result)
        key = (result["task"], metric, data["source"], data["validation_rows"], batch, data["max_length"])
        by_key.setdefault(key, []).append(name)
    return [_group(key, {name: results[name] for name in names}) for key, names in by_key.items()]


def _group(key: tuple, results: Mapping[str, Mapping[str, Any]]) -> Group:
    task, metric, source, rows, batch, _ = key
    points: dict[str, dict[str, tuple[float, float]]] = {"size": {}, "latency": {}}
    denses: list[str | None] = []
    for name, result in results.items():
        own, dense = result["models"][own_name(result)], result["models"].get("dense")
        points["size"][name] = _megabytes(own), own["accuracy"][metric]
        if dense is None:
            continue
        points["latency"][name] = own["latency_ms"][batch] / dense["latency_ms"][batch], own["accuracy"][metric]
        if result["dense"] not in denses:
            denses.append(result["dense"])
            label = "dense" if len(denses) == 1 else f"dense {len(denses)}"
            points["size"].setdefault(label, (_megabytes(dense), dense["accuracy"][metric]))
            points["latency"].setdefault(label, (1.0, dense["accuracy"][metric]))
    first = next(iter(results.values()))
    sign = -1 if metric in first["lower_is_better"] else 1
    fronts = {}
    for axis, found in points.items():
        names, pairs = list(found), list(found.values())
        front = pareto_front([cost for cost, _ in pairs], [sign * value for _, value in pairs])
        fronts[axis] = [names[number] for number in front]
    about = {"task": task, "metric": metric, "factor": points_of(first, metric), "source": source, "rows": rows}
    return Group(**about, batch=batch, names=list(results), points=points, fronts=fronts)


def pareto_front(costs: Sequence[float], values: Sequence[float]) -> list[int]:
    """Numbers of the points that no other one beats, by rising cost.

    A point is beaten by one that costs no more and is worth no less, when one of the two is strictly so. Equal points
    do not beat each other. A NaN is on no front.

    Args:
        costs: less is better.
        values: more is better, as many.

    Example:
        >>> pareto_front([10.0, 5.0, 7.0, 5.0], [0.92, 0.90, 0.89, 0.88])
        [1, 0]

    """
    points = [(cost, value, number) for number, (cost, value) in enumerate(zip(costs, values, strict=True))]
    points = [point for point in points if point[0] == point[0] and point[1] == point[1]]
    front: list[tuple[float, float, int]] = []
    for cost, value, number in sorted(points, key=lambda point: (point[0], -point[1])):
        if not front or value > front[-1][1] or (cost, value) == front[-1][:2]:
            front.append((cost, value, number))
    return [number for *_, number in front]


@contextmanager
def pareto_figure(group: Group, axis: str, label: str) -> Iterator[Figure | None]:
    """Points and front of a group; None when there are fewer than two points."""
    points, front = group.points[axis], group.fronts[axis]
    points = {name: pair for name, pair in points.items() if all(map(math.isfinite, pair))}
    if len(points) < 2:
        yield None
        return
    factor = group.factor or 1
    with chart(height=3.6) as (figure, (axes,)):
        pairs = [(points[name][0], factor * points[name][1]) for name in front]
        axes.plot(*zip(*pairs, strict=True), color=ACCENT, linewidth=1.4, alpha=0.5, drawstyle="steps-post")
        for name, (cost, value) in points.items():
            dense, on = name not in group.names, name in front
            color = DENSE if dense else ACCENT
            axes.plot(cost, factor * value, "s" if dense else "o", color=color if on else PAPER, markersize=6.5,
                      markeredgecolor=color, markeredgewidth=1.4)  # fmt: skip
        costs = [cost for cost, _ in points.values()]
        if max(costs) > 6 * min(costs) > 0:
            axes.set_xscale("log")
            axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
            axes.xaxis.set_major_formatter(ScalarFormatter())
            axes.xaxis.set_minor_formatter(NullFormatter())
        axes.margins(x=0.2, y=0.16)
        _write_names(axes, {name: (cost, factor * value) for name, (cost, value) in points.items()}, front)
        axes.set_xlabel(label)
        axes.set_ylabel(group.metric + (", points" if group.factor else ""))
        bare(axes, "both")
        yield figure


def _write_names(axes: Axes, points: Mapping[str, tuple[float, float]], front: Sequence[str]) -> None:
    """Write each name next to its point, where it hides no point and no other name; else it is left to the table.

    Above and left are tried first, where the line of the front is not; names on the front choose first.
    """
    axes.autoscale_view()
    to_share = axes.transData + axes.transAxes.inverted()
    at = {name: to_share.transform(pair) for name, pair in points.items()}
    taken = [(x - 0.015, y - 0.025, x + 0.015, y + 0.025) for x, y in at.values()]
    for name in sorted(points, key=lambda name: name not in front):
        text = name if len(name) < 25 else f"{name[:24]}…"
        x, y = at[name]
        wide, high = _LETTER * len(text), 0.055
        for left, bottom in (
            (x - wide / 2, y + 0.03),
            (x - 0.022 - wide, y - high / 2),
            (x + 0.022, y - high / 2),
            (x - wide / 2, y - 0.03 - high),
        ):
            box = (left, bottom, left + wide, bottom + high)
            if box[0] > 0 and box[2] < 1 and not any(_overlap(box, other) for other in taken):
                color = INK if name in front else MUTED
                middle = (left, bottom + high / 2)
                axes.annotate(text, middle, xycoords="axes fraction", va="center", fontsize=9, color=color)
                taken.append(box)
                break


def _overlap(first: tuple[float, ...], second: tuple[float, ...]) -> bool:
    """Whether two boxes (left, bottom, right, top) have anything in common."""
    return first[0] < second[2] and second[0] < first[2] and first[1] < second[3] and second[1] < first[3]


def _megabytes(model: Mapping[str, Any]) -> float:
    return model["size"]["model"]["compressed_bytes"] / 1e6
