"""How a training went: losses and score over its optimizer steps, from what the logger of the run wrote."""

import csv
import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from lit_compress.functional.schedules import Duration
from lit_compress.report.drawing import ACCENT, DENSE, INK, MUTED, bare, chart
from lit_compress.report.phrasing import metric_title, points_of
from lit_compress.report.section import Section

__all__ = ["curves_figure", "training", "training_curves"]

_POINTS = 500  # of a curve; more cannot be told apart in a figure
_LOSSES = {"train/loss": (ACCENT, "training"), "val/loss": (INK, "validation")}


def training_curves(
    run: Path, metric: str, config: Mapping[str, Any], checkpoint: Mapping[str, Any]
) -> dict[str, Any] | None:
    """``{"values": {tag: [[step, value], ...]}, "windows": [{"name", "start", "end"}]}``; None without anything logged.

    Tags are ``train/loss``, ``val/loss`` and the ``val/`` of the metric. Windows are those in which strategies change
    the model, in optimizer steps; without those that were not reached or whose steps do not follow from the checkpoint.

    Args:
        run: run folder, with TensorBoard's events or a ``metrics.csv`` of Lightning's ``CSVLogger``.
        metric: first one of the task.
        config: of the run.
        checkpoint: last one of the run, which says where the training ended.

    """
    tags = (*_LOSSES, f"val/{metric}")
    found = _from_events(run, tags) or _from_csv(run, tags)
    if not found:
        return None
    planned, ended = _planned(config.get("trainer") or {}, checkpoint), checkpoint["global_step"]
    windows = [_window(entry, *planned, ended) for entry in config.get("compression") or []]
    thinned = {tag: points[:: -(-len(points) // _POINTS)] for tag, points in found.items()}
    return {"values": thinned, "windows": [window for window in windows if window is not None]}


def _from_events(run: Path, tags: Sequence[str]) -> dict[str, list[list[float]]]:
    if not any(run.glob("events.out.tfevents.*")):
        return {}
    events = EventAccumulator(str(run), size_guidance={"scalars": 0, "tensors": 1, "images": 1, "histograms": 1})
    events.Reload()
    there = events.Tags()["scalars"]
    pairs = {tag: [(event.step, event.value) for event in events.Scalars(tag)] for tag in tags if tag in there}
    # The values of its end are written once more for the table of hyper-parameters, without a step.
    return {tag: _joined(points[:1] + [pair for pair in points[1:] if pair[0]]) for tag, points in pairs.items()}


def _from_csv(run: Path, tags: Sequence[str]) -> dict[str, list[list[float]]]:
    pairs: dict[str, list[tuple[int, float]]] = {}
    for path in sorted(run.rglob("metrics.csv"), key=lambda path: path.stat().st_mtime):
        with path.open(newline="") as file:
            for row in csv.DictReader(file):
                for tag in tags:
                    if row.get(tag) and row.get("step"):
                        pairs.setdefault(tag, []).append((int(row["step"]), float(row[tag])))
    return {tag: _joined(points) for tag, points in pairs.items()}


def _joined(points: Sequence[tuple[int, float]]) -> list[list[float]]:
    """By step; of one that a resumed run did again, the later value."""
    return [[step, value] for step, value in sorted(dict(points).items())]


def _planned(trainer: Mapping[str, Any], checkpoint: Mapping[str, Any]) -> tuple[float, float]:
    """Optimizer steps that the run was to have, also when it stopped early, and those of an epoch; else infinite."""
    loop = checkpoint["loops"]["fit_loop"]
    # Those that have begun: at the last batch of one, `epoch` may still be its number. Within one nothing says how long
    # it is.
    epochs, progress = loop["epoch_progress"]["current"]["ready"], loop["epoch_loop.batch_progress"]
    per_epoch = checkpoint["global_step"] / epochs if epochs and progress["is_last_batch"] else math.inf
    limits = ((trainer.get("max_steps") or 0), (trainer.get("max_epochs") or 0) * per_epoch)
    return min((limit for limit in limits if limit > 0), default=math.inf), per_epoch


def _window(entry: Mapping[str, Any], planned: float, per_epoch: float, ended: int) -> dict[str, Any] | None:
    """Where a strategy begins and ends; None for one that acts all the time, or says it in another way."""
    options = entry.get("init_args") or {}
    if not options.get("start") and not options.get("end"):
        return None
    try:
        first, last = (
            Duration.parse(options.get(key) or default).steps(planned, per_epoch)
            for key, default in (("start", "0 steps"), ("end", "100%"))
        )
    except (ValueError, OverflowError):  # no duration, or one of an unknown length
        return None
    if first > ended:
        return None
    return {"name": str(entry.get("class_path", "")).rpartition(".")[2], "start": first, "end": min(last, ended)}


def training(results: Mapping[str, Any]) -> Section | None:
    """The part of a report that shows them."""
    curves = results.get("curves")
    if not curves:
        return None
    lines = tuple(f"{window['name']}: steps {window['start']:,} to {window['end']:,}" for window in curves["windows"])
    return Section(name="training", title="Training", lines=lines, figures=("curves",))


@contextmanager
def curves_figure(results: Mapping[str, Any]) -> Iterator[Figure | None]:
    """Losses, and below them the score with that of the dense model as a line; windows of strategies shaded."""
    curves = results.get("curves")
    if not curves:
        yield None
        return
    values = curves["values"]
    losses = [tag for tag in _LOSSES if tag in values]
    scores = [tag for tag in values if tag not in _LOSSES]
    with chart(height=0.5 + 1.9 * (bool(losses) + bool(scores)), rows=bool(losses) + bool(scores)) as (figure, rows):
        for axes in rows:
            for window in curves["windows"]:
                axes.axvspan(window["start"], window["end"], color=MUTED, alpha=0.12, linewidth=0)
            bare(axes, "y")
        for tag in losses:
            color, label = _LOSSES[tag]
            _draw(rows[0], values[tag], color, label)
        if losses:
            rows[0].set_title("loss")
            rows[0].legend(loc="best")
        for tag in scores:
            metric = tag.partition("/")[2]
            factor = points_of(results, metric) or 1
            _draw(rows[-1], [(step, factor * value) for step, value in values[tag]], ACCENT, "validation")
            rows[-1].set_title(metric_title(results, metric) + (", points" if points_of(results, metric) else ""))
            dense = results["models"].get("dense", {}).get("accuracy", {}).get(metric)
            if dense is not None:
                rows[-1].axhline(factor * dense, color=DENSE, linewidth=1.4, linestyle=(0, (4, 3)), label="dense")
            rows[-1].legend(loc="best")
        rows[-1].set_xlabel("optimizer steps")
        yield figure


def _draw(axes: Any, points: Sequence[Sequence[float]], color: str, label: str) -> None:
    # A single validation would be no line.
    marker = "o" if len(points) < 30 else ""
    axes.plot(*zip(*points, strict=True), color=color, linewidth=1.4, marker=marker, markersize=4, label=label)
