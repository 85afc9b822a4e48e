"""Pictures of what ``tools.bench.kernels`` has measured."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

__all__ = ["Curve", "Point", "break_even", "roofline"]


@dataclass(frozen=True, kw_only=True)
class Curve:
    """Times of one shape.

    Args:
        title: of the panel.
        rows: number of tokens.
        formats: format to ``(sparsity, microseconds)``.
        baselines: name to microseconds.

    """

    title: str
    rows: int
    formats: dict[str, list[tuple[float, float]]]
    baselines: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Point:
    """A product on the roofline: format, operations per byte, operations per second."""

    format: str
    intensity: float
    rate: float


def break_even(curves: list[Curve], path: Path) -> None:
    """Time over sparsity, a panel for each shape; where a curve crosses a horizontal line, sparsity starts to pay."""
    pyplot = _pyplot()
    across = min(4, len(curves))
    down = -(-len(curves) // across)
    figure, panels = pyplot.subplots(down, across, figsize=(4 * across, 3 * down), squeeze=False)
    for panel, curve in zip(panels.flat, curves, strict=False):
        for name, measured in curve.formats.items():
            sparsity, micro = zip(*sorted(measured), strict=True)
            panel.plot([100 * share for share in sparsity], micro, "o-", markersize=3, label=name)
        for number, (name, micro) in enumerate(curve.baselines.items()):
            panel.axhline(micro, linestyle="--", linewidth=1, color=f"C{number + len(curve.formats)}", label=name)
        panel.set(title=curve.title, xlabel="zeros, %", ylabel="us", ylim=(0, None), xlim=(-2, 100))
    panels.flat[0].legend(fontsize=6)
    for panel in list(panels.flat)[len(curves) :]:
        panel.set_axis_off()
    figure.tight_layout()
    figure.savefig(path, dpi=150)
    pyplot.close(figure)


def roofline(points: list[Point], bytes_per_s: float, operations_per_s: float, path: Path) -> None:
    """Operations per second over operations per byte, under the two roofs that were measured."""
    pyplot = _pyplot()
    figure, panel = pyplot.subplots(figsize=(6, 4))
    most = max([point.intensity for point in points] + [2 * operations_per_s / bytes_per_s])
    least = min([point.intensity for point in points] + [1.0])
    ridge = operations_per_s / bytes_per_s
    panel.plot([least, ridge, most], [least * bytes_per_s, operations_per_s, operations_per_s], "k-", linewidth=1)
    for name in dict.fromkeys(point.format for point in points):
        chosen = [point for point in points if point.format == name]
        panel.plot([p.intensity for p in chosen], [p.rate for p in chosen], "o", markersize=3, label=name)
    panel.set(
        xscale="log", yscale="log", xlabel="operations per byte of memory traffic", ylabel="operations per second"
    )
    panel.legend(fontsize=7)
    figure.tight_layout()
    figure.savefig(path, dpi=150)
    pyplot.close(figure)


def _pyplot() -> Any:
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot

    return pyplot
