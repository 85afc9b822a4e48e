"""The figures of a report, each from its results; one that has nothing to show is left out."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure

from lit_compress.report.confusion import confusion_figure
from lit_compress.report.curves import curves_figure
from lit_compress.report.drawing import ACCENT, BAD, DENSE, GOOD, INK, MUTED, PAPER, bare, chart
from lit_compress.report.phrasing import bytes_text, direction, metric_title, points_of, ratio
from lit_compress.report.summary import own_name, reference, title_of

__all__ = ["FIGURES", "figures"]

Results = Mapping[str, Any]
_CLASSES_SHOWN = 12
_ON_ACCENT = "#fefefe"  # in dark pages, too


def figures(results: Results) -> Iterator[tuple[str, str, Figure]]:
    """Name, description and figure; each is gone when the next one is asked for."""
    for name, (described, draw) in FIGURES.items():
        with draw(results) as figure:
            if figure is not None:
                yield name, described, figure


@contextmanager
def metrics(results: Results) -> Iterator[Figure | None]:
    """Difference of each metric to the dense model, in points, with its interval."""
    rows = [
        (metric, entry["differences"][name] | {"points": points_of(results, metric)}, name)
        for metric, entry in results["comparison"]["metrics"].items()
        for name in entry["differences"]
        if points_of(results, metric) is not None
    ]
    with _differences(
        [(f"{_short(metric_title(results, metric))}{_suffix(name)}", entry) for metric, entry, name in rows]
    ) as figure:
        yield figure


@contextmanager
def parts(results: Results) -> Iterator[Figure | None]:
    """Differences of classes and slices, those that lose most first."""
    metric, own = next(iter(results["comparison"]["metrics"])), own_name(results)
    rows = []
    for part, wanted in (("classes", results["class_metric"]), ("slices", metric)):
        points = points_of(results, wanted)
        entries = [
            (_short(name), differences[own] | {"points": points})
            for name, entry in results["comparison"][part].items()
            if own in (differences := entry["metrics"].get(wanted, {}).get("differences", {})) and points is not None
        ]
        entries = [entry for entry in entries if entry[1]["value"] is not None and entry[1]["low"] is not None]
        rows += sorted(entries, key=lambda row: row[1]["value"])[:_CLASSES_SHOWN] if part == "classes" else entries
    with _differences(rows) as figure:
        yield figure


@contextmanager
def _differences(rows: list[tuple[str, dict[str, Any]]]) -> Iterator[Figure | None]:
    rows = [row for row in rows if row[1]["low"] is not None and row[1]["value"] is not None]
    if not rows:
        yield None
        return
    with chart(height=0.8 + 0.32 * len(rows)) as (figure, (axes,)):
        for y, (_, entry) in enumerate(rows):
            low, value, high = (entry["points"] * entry[key] for key in ("low", "value", "high"))
            color = (MUTED, GOOD, BAD)[direction(entry)]
            axes.plot([low, high], [y, y], color=color, linewidth=4, alpha=0.35, solid_capstyle="round")
            axes.plot([value], [y], "o", color=color, markersize=5.5)
        axes.axvline(0, color=INK, linewidth=1)
        axes.set_yticks(range(len(rows)), [name for name, _ in rows])
        axes.set_ylim(len(rows) - 0.4, -0.6)
        axes.set_xlabel("points above or below dense")
        axes.margins(x=0.06)
        bare(axes, "x")
        yield figure


@contextmanager
def calibration(results: Results) -> Iterator[Figure | None]:
    """Reliability curves: accuracy over predicted probability."""
    models = results.get("calibration")
    if not models:
        yield None
        return
    with chart(height=3.4) as (figure, (axes,)):
        low = min(entry["low"] for model in models.values() for entry in model["bins"])
        axes.plot([low, 1], [low, 1], color=MUTED, linewidth=1, linestyle=(0, (3, 3)))
        for name, model in models.items():
            x, y, rows = (np.array([entry[key] for entry in model["bins"]]) for key in _CURVE)
            color, line = (DENSE, "-") if name == "dense" else (ACCENT, "-" if name == own_name(results) else ":")
            label = f"{title_of(name)}: off by {100 * model['ece']:.1f} points"
            axes.plot(x, y, color=color, linestyle=line, linewidth=1.8, label=label)
            axes.scatter(x, y, s=12 + 90 * rows / rows.sum(), color=color, edgecolor=PAPER, linewidth=0.8, zorder=3)
        axes.set_xlabel("predicted probability")
        axes.set_ylabel("accuracy")
        axes.set_xlim(low - 0.02, 1.03)
        axes.set_ylim(-0.04, 1.06)
        axes.legend(loc="best")
        bare(axes, "both")
        yield figure


_CURVE = ("confidence", "accuracy", "rows")


@contextmanager
def size(results: Results) -> Iterator[Figure | None]:
    """Bytes of the encoder and of the whole model: fp32, and values with their index; both on one scale."""
    models, name = results["models"], own_name(results)
    own = models[name]["size"]
    whose, full = reference(results)
    most = max(full["model"], own["model"]["compressed_bytes"])
    with chart(height=2.9, rows=2) as (figure, rows):
        for axes, (part, title) in zip(rows, (("encoder", "encoder"), ("model", "whole model")), strict=True):
            before, kept = full[part], own[part]
            axes.barh(0, before, 0.72, color=DENSE)
            axes.barh(1, kept["value_bytes"], 0.72, color=ACCENT)
            axes.barh(1, kept["index_bytes"], 0.72, left=kept["value_bytes"], color=ACCENT, alpha=0.45)
            _note(axes, before, 0, bytes_text(before), most)
            after = kept["compressed_bytes"]
            _note(axes, after, 1, f"{bytes_text(after)}, {ratio(before, after)} smaller", most)
            _bars(axes, title, [whose, name], 1.5 * most)
        yield figure


@contextmanager
def latency(results: Results) -> Iterator[Figure | None]:
    """Median milliseconds of each model, by batch; each batch has its own scale."""
    models = results["models"]
    batches = list(next(iter(models.values()))["latency_ms"])
    with chart(height=0.2 + (0.62 + 0.36 * len(models)) * len(batches), rows=len(batches)) as (figure, rows):
        for axes, batch in zip(rows, batches, strict=True):
            values = {name: model["latency_ms"][batch] for name, model in models.items()}
            spreads = [model["latency_spread_ms"][batch] for model in models.values()]
            most = max(high for _, high in spreads)
            for y, ((name, value), (low, high)) in enumerate(zip(values.items(), spreads, strict=True)):
                axes.barh(y, value, 0.72, color=DENSE if name == "dense" else ACCENT)
                axes.plot([low, high], [y, y], color=INK, linewidth=1.4, alpha=0.6)
                _note(axes, max(value, high), y, f"{value:.1f} ms", most)
            _bars(axes, f"batch {batch} × {results['data']['max_length']} tokens", list(models), 1.3 * most)
        yield figure


def _bars(axes: Any, title: str, names: list[str], most: float) -> None:
    axes.set_yticks(range(len(names)), names)
    axes.set_title(title)
    axes.set_xticks([])
    axes.set_xlim(0, most)
    axes.set_ylim(len(names) - 0.5, -0.5)
    bare(axes)


@contextmanager
def sparsity(results: Results) -> Iterator[Figure | None]:
    """Layers by matrices, the fraction of zeros of each in its cell."""
    with _grid(results, [1], lambda matrix: [[matrix["sparsity"]]]) as (figure, axes, cells):
        for (row, column), matrix in cells.items():
            color = _ON_ACCENT if matrix["sparsity"] > 0.6 else INK
            axes.text(column, row, f"{matrix['sparsity']:.0%}", ha="center", va="center", fontsize=9.5, color=color)
        yield figure


@contextmanager
def blocks(results: Results) -> Iterator[Figure | None]:
    """The same, but each cell shows where in the matrix the zeros are, block by block."""
    inside = {name: np.array(values) for name, values in (results.get("blocks") or {}).items()}
    low = min((values.min() for values in inside.values()), default=0.0)
    high = max((values.max() for values in inside.values()), default=1.0)
    # Over the range that occurs, or most models would be of one color.
    shade = {name: (values - low) / (high - low or 1) for name, values in inside.items()}
    with _grid(results, list(inside), lambda matrix: shade.get(matrix["name"])) as (figure, axes, _):
        if figure is not None:
            axes.set_xlabel(f"lightest {low:.0%} zeros, darkest {high:.0%}")
        yield figure


@contextmanager
def _grid(results: Results, wanted: list, of: Callable) -> Iterator[tuple[Figure | None, Any, dict]]:
    """A cell for each matrix of each layer, filled with what ``of`` gives for it."""
    matrices = [matrix for matrix in results.get("matrices", []) if matrix["layer"] is not None]
    matrices = [matrix for matrix in matrices if matrix["name"] in results["sparsity"]]
    if not wanted or not matrices:
        yield None, None, {}
        return
    rows = list(dict.fromkeys(matrix["layer"] for matrix in matrices))
    columns = list(dict.fromkeys(matrix["matrix"] for matrix in matrices))
    cells = {(rows.index(matrix["layer"]), columns.index(matrix["matrix"])): matrix for matrix in matrices}
    with chart(height=0.9 + len(rows) * (0.32 if wanted == [1] else 0.54)) as (figure, (axes,)):
        for (row, column), matrix in cells.items():
            values = of(matrix)
            if values is None:
                continue
            image = np.empty((*np.shape(values), 4))
            # The page shows through where nothing is pruned, so it fits dark and light.
            image[..., :3], image[..., 3] = to_rgb(ACCENT), np.array(values) * 0.92 + 0.08
            box = (column - 0.47, column + 0.47, row + 0.45, row - 0.45)
            axes.imshow(image, extent=box, aspect="auto", interpolation="nearest")
        axes.set_xticks(range(len(columns)), [name.replace(".", "\n") for name in columns], fontsize=8.5)
        axes.set_yticks(range(len(rows)), [str(number) for number in rows])
        axes.set_xlim(-0.5, len(columns) - 0.5)
        axes.set_ylim(len(rows) - 0.5, -0.5)
        axes.set_ylabel("layer")
        axes.xaxis.tick_top()
        bare(axes)
        yield figure, axes, cells


def _note(axes: Any, x: float, y: float, text: str, most: float) -> None:
    axes.text(x + 0.015 * most, y, text, va="center", fontsize=10, color=INK)


def _suffix(model: str) -> str:
    return "" if model == "compressed" else ", inputs int8" if model == "compressed_quantized_inputs" else f", {model}"


def _short(name: str, most: int = 26) -> str:
    return name if len(name) <= most else name[: most - 1] + "…"


# Name: in pages, file names and TensorBoard (`report/<name>`).
FIGURES: dict[str, tuple[str, Callable]] = {
    # Not "accuracy": TensorBoard keeps one kind of value under a name, and that is a metric's.
    "metrics": ("Difference of each metric to the dense model with its 95 % interval", metrics),
    "parts": ("Difference of each class and slice to the dense model with its 95 % interval", parts),
    "curves": ("Loss and score over the training, in grey the windows of strategies", curves_figure),
    "confusion": ("How often each class is predicted as each, as a fraction of the class", confusion_figure),
    "calibration": ("Reliability: accuracy of each model over its predicted probability", calibration),
    "size": ("Bytes of the encoder and of the whole model, dense and compressed", size),
    "latency": ("Median time of a forward pass of each model", latency),
    "sparsity": ("Fraction of zeros in each matrix of each layer", sparsity),
    "blocks": ("Fraction of zeros in each block of each matrix", blocks),
}
