"""One picture of tools/results.csv: how much of the dense model's score is kept, over the speed that was measured.

    python -m tools.bench.accuracy_over_speed --output docs/pictures/accuracy-over-speed.png

A point is a stage of a recipe on one data set as it is deployed, in 8 bits on its runtime, the mean over its seeds,
with the name that the plan's `labels` give it; speeds are compared with the dense model in fp32 on the same runtime. A
hollow point is no better than one answer to every example. Rows without a deployed speed or score are left out, and
those that were measured on a processor with other instructions than most.
"""

import math
import statistics
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
from jsonargparse import auto_cli

from lit_compress.errors import UserError
from tools.reproduce_plan import plan_of
from tools.reproduce_table import read_rows

__all__ = ["Point", "accuracy_over_speed", "grouped", "points_of"]

RESULTS = Path(__file__).parents[1] / "results.csv"
_NAMED = 20  # points, above which their names would hide each other
_FLOOR = 50.0  # percent
_TICKS = (50, 60, 70, 80, 90, 95, 98, 100, 102, 105)
_FARTHEST = 60  # points of the page that a label may be above or below its own
_ASIDE = 7  # likewise, to the right or left of it
_MARKER = 5  # pixels around the middle of a point that no label may cover
_MARKERS = "os^vD<>PXph*8d"


@dataclass(frozen=True, kw_only=True)
class Point:
    """A stage on a data set.

    Args:
        method: recipe.
        stage: of the recipe.
        data: data set.
        speedup: times the speed of the dense model.
        kept: share of the dense model's score.
        constant: whether one answer to everything is as good.

    """

    method: str
    stage: str
    data: str
    speedup: float
    kept: float
    constant: bool


def accuracy_over_speed(
    output: Path,
    model: str = "minilm",
    datasets: Sequence[str] = (),
    results: Path = RESULTS,
) -> list[Point]:
    """Draw every method of one model.

    Args:
        output: picture to write, .png or .svg.
        model: as in the column of that name.
        datasets: those that count; all by default.
        results: the table.

    Raises:
        UserError: there is no row to draw.

    """
    # Ablations are variants of one method, and have a table.
    lines = [
        line
        for line in read_rows(results)
        if line["model"] == model and line["recipe"] != "ablations" and (not datasets or line["data"] in datasets)
    ]
    points = points_of(_of_one_processor(lines))
    if not points:
        among = f" of {', '.join(datasets)}" if datasets else ""
        raise UserError(
            f"{str(results)!r} has no row of {model!r}{among} with a dense model and a deployed speed; "
            f"run python -m tools.reproduce --model {model}"
        )
    names = sorted({key[2] for key in grouped(line for line in lines if line["int8_speedup"])})
    plan = plan_of(model)
    titles = [plan["data"].get(name, {}).get("title", name) for name in names]
    among = ", ".join(titles) if len(titles) < 6 else f"{len(titles)} data sets"
    titles_of = dict(zip(names, titles, strict=True))
    draw(points, f"{plan['title']} on {among}", output, plan["recipes"], titles_of if len(names) > 1 else {})
    return points


def grouped(lines: Iterable[Mapping[str, str]]) -> dict[tuple[str, ...], list[Mapping[str, str]]]:
    """Rows with a dense model and a score of which more is better, the seeds of one stage together.

    Dense models are compared with themselves.

    Returns:
        By model, recipe, data set, stage and cuts.

    """
    groups: dict[tuple[str, ...], list[Mapping[str, str]]] = defaultdict(list)
    for line in lines:
        dense = line["value"] if line["recipe"] == "dense" else line["dense"]
        if dense and float(dense) and line["metric"] != "perplexity":
            key = ("model", "recipe", "data", "stage", "limit", "max_steps")
            groups[tuple(line[name] for name in key)].append({**line, "dense": dense})
    return groups


def _of_one_processor(lines: Sequence[Mapping[str, str]]) -> list[Mapping[str, str]]:
    """Rows whose speed was measured with the instructions that most were, as speeds of others cannot be compared."""
    deployed = [line for line in lines if line["int8_speedup"]]
    counts = Counter(line["instructions"] for line in deployed)
    return [line for line in deployed if line["instructions"] == counts.most_common(1)[0][0]]


def points_of(lines: Iterable[Mapping[str, str]]) -> list[Point]:
    """A point for each stage, data set and cut that was deployed; means over seeds."""
    found = []
    for (_, recipe, data, stage, *_), group in grouped(line for line in lines if line["int8_speedup"]).items():
        value, dense, speed = (
            statistics.mean(float(line[name]) for line in group) for name in ("int8_value", "dense", "int8_speedup")
        )
        if not math.isfinite(value):  # a correlation of answers that are all the same
            continue
        majority = group[0]["majority"]
        constant = bool(majority) and value <= float(majority)
        kept = value / dense
        found.append(Point(method=recipe, stage=stage, data=data, speedup=speed, kept=kept, constant=constant))
    return found


def draw(
    points: Sequence[Point],
    title: str,
    output: Path,
    recipes: Mapping[str, Any],
    datasets: Mapping[str, str] | None = None,
) -> None:
    """A marker and a color for each method.

    Args:
        points: to draw.
        title: of the picture.
        output: file to write.
        recipes: of the plan; a recipe's ``title`` and the ``labels`` of its stages are written.
        datasets: titles that labels end with, where there are several.

    """
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(9, 5.5), layout="constrained")
    for number, method in enumerate(dict.fromkeys(point.method for point in points)):
        own = [point for point in points if point.method == method]
        color = f"C{number % 10}"
        axes.scatter(
            [point.speedup for point in own],
            [_height(point) for point in own],
            marker=_MARKERS[number % len(_MARKERS)],
            facecolors=["none" if point.constant else color for point in own],
            edgecolors=color,
            label=recipes.get(method, {}).get("title", method),
        )
    axes.axhline(100, color="0.8", zorder=0)
    axes.axvline(1, color="0.8", zorder=0)
    axes.set_xscale("log", base=2)
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:g}x")
    axes.set_xlabel("measured speed in 8 bits; dense fp32 on ONNX Runtime is 1x")
    axes.set_ylabel("score kept, %")
    # What is near 100 is what people choose among: a step there is larger.
    top = max(101.0, *(_height(point) for point in points)) + 1
    axes.set_yscale(
        "function", functions=(lambda kept: -np.log(top + 2 - kept), lambda place: top + 2 - np.exp(-place))
    )
    axes.set_yticks([tick for tick in _TICKS if tick <= top])
    axes.set_ylim(min(95.0, *(_height(point) for point in points)) - 2, top)
    axes.set_title(title)
    axes.margins(x=0.16)  # for the labels
    axes.legend(fontsize="small", loc="lower left")
    if len(points) <= _NAMED:
        _label(axes, points, recipes, datasets or {})
    output.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(output, dpi=150)
    pyplot.close(figure)


def _height(point: Point) -> float:
    """Where a point is drawn: what kept next to nothing is at the floor, and its label says how much."""
    return max(100 * point.kept, _FLOOR)


def _label(axes: Any, points: Sequence[Point], recipes: Mapping[str, Any], datasets: Mapping[str, str]) -> None:
    """Write each stage's label at its point, where no other label, point or legend is."""
    from matplotlib.transforms import Bbox

    axes.figure.draw_without_rendering()
    places = axes.transData.transform([(point.speedup, _height(point)) for point in points])
    taken: list[Any] = [Bbox.from_extents(x - _MARKER, y - _MARKER, x + _MARKER, y + _MARKER) for x, y in places]
    taken.append(axes.get_legend().get_window_extent())
    whole = axes.get_window_extent()
    for point in sorted(points, key=lambda one: -one.kept):
        label = recipes.get(point.method, {}).get("labels", {}).get(point.stage, point.stage)
        if point.data in datasets:
            label += f", {datasets[point.data]}"
        place = (point.speedup, _height(point))
        if place[1] == _FLOOR:
            label += f", {point.kept:.0%}"
        text = axes.annotate(
            label,
            place,
            xytext=(0, 0),
            textcoords="offset points",
            va="center",
            fontsize="small",
            color="0.3",
            zorder=1,  # behind the frame
            bbox={"facecolor": "white", "edgecolor": "none", "pad": 0},  # the line of 100 % would go through it
        )
        # The nearest free place: on the right, on the left, then farther above or below.
        for offset, side in product(sorted(range(-_FARTHEST, _FARTHEST, 2), key=abs), ("left", "right")):
            text.set_horizontalalignment(side)
            text.set_position((_ASIDE if side == "left" else -_ASIDE, offset))
            box = text.get_window_extent()
            if whole.x0 < box.x0 and box.x1 < whole.x1 and not any(box.overlaps(other) for other in taken):
                break
        taken.append(text.get_window_extent())


if __name__ == "__main__":
    try:
        auto_cli(accuracy_over_speed, as_positional=False)
    except UserError as error:
        raise SystemExit(f"error: {error}") from None
