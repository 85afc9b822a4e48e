"""matplotlib figures as what a page, a picture file and TensorBoard take: one drawing for all three.

In SVG the colors become CSS variables, so that a page shows the same figure in its dark and its light form, and the
letters take the page's font.
"""

import io
import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.image import imsave

__all__ = ["ACCENT", "BAD", "DENSE", "GOOD", "GRID", "INK", "MUTED", "PAPER", "chart", "pixels", "png", "svg"]

# Colors of the light form; the page's style sheet names them again for the dark one.
INK, MUTED, GRID, PAPER = "#1f2430", "#5b6472", "#dfe3e8", "#ffffff"
DENSE, ACCENT, GOOD, BAD = "#98a1af", "#2f6fdb", "#178a4c", "#c8372d"
_VARIABLES = {
    INK: "ink",
    MUTED: "muted",
    GRID: "grid",
    PAPER: "paper",
    DENSE: "dense",
    ACCENT: "accent",
    GOOD: "good",
    BAD: "bad",
}
_STYLE: dict[Any, Any] = {
    "font.size": 10.5,
    "axes.edgecolor": GRID,
    "axes.labelcolor": MUTED,
    "axes.labelsize": 10,
    "axes.titlesize": 10.5,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.titlecolor": INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "grid.color": GRID,
    "grid.linewidth": 0.8,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "xtick.labelsize": 10,
    "ytick.labelsize": 10,
    "text.color": INK,
    "legend.frameon": False,
    "legend.fontsize": 10,
    # A label of the data is not a formula, whatever signs are in it.
    "text.parse_math": False,
    "svg.fonttype": "none",
    "figure.facecolor": PAPER,
    "axes.facecolor": "none",
}


@contextmanager
def chart(width: float = 5.2, height: float = 2.6, rows: int = 1, columns: int = 1) -> Iterator[tuple[Figure, list]]:
    """A figure in the report's style and its axes, row by row; drawn and given out inside the block.

    Args:
        width: in inches; 5.2 is what a phone shows at its real size.
        height: in inches.
        rows: of axes.
        columns: of axes.

    """
    with matplotlib.rc_context(_STYLE):
        figure = Figure(figsize=(width, height), layout="constrained")
        axes = figure.subplots(rows, columns, squeeze=False)
        yield figure, [axis for row in axes for axis in row]


def bare(axes: Axes, grid: str = "") -> None:
    """Leave out lines and ticks that say nothing; ``grid`` is ``x`` or ``y`` where values are read."""
    for spine in axes.spines.values():
        spine.set_visible(False)
    axes.tick_params(length=0)
    if grid:
        axes.grid(axis=grid)  # type: ignore[arg-type]


def svg(figure: Figure, name: str, described: str) -> str:
    """A figure as an ``<svg>`` element of a page; everything in it that came from data is escaped.

    Args:
        figure: from :func:`chart`.
        name: makes the ids in it different from those of other figures on the page.
        described: for readers who cannot see it; must be plain text.

    """
    file = io.StringIO()
    with matplotlib.rc_context(_STYLE), matplotlib.rc_context({"svg.hashsalt": name}), _quiet():
        figure.savefig(file, format="svg", facecolor="none", metadata={"Date": None, "Creator": None})
    text = file.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    # Ids that nothing refers to would be there once for each figure of a page.
    used = set(re.findall(r'(?:href="#|url\(#)([^")]+)', text))
    text = re.sub(r' id="([^"]*)"', lambda found: found[0] if found[1] in used else "", text)
    text = re.sub(r"font: (?:(\w+) )?([\d.]+)px [^;\"]*", _font, text)
    for color, variable in _VARIABLES.items():
        text = text.replace(color, f"var(--{variable})")
    size = re.search(r'viewBox="0 0 ([\d.]+) ([\d.]+)"', text)
    assert size is not None
    label = re.sub(r"[<>&\"]", "", described)
    shape = f'viewBox="0 0 {size[1]} {size[2]}" style="max-width:{1.3 * float(size[1]):.0f}px"'
    head = f'<svg role="img" aria-label="{label}" {shape} '
    return re.sub(r"<svg [^>]*?(?=xmlns:xlink)", head, text, count=1)


def pixels(figure: Figure, dpi: int = 144) -> np.ndarray:
    """A figure as uint8 ``(height, width, 3)``."""
    with matplotlib.rc_context(_STYLE), _quiet():
        figure.set_dpi(dpi)
        canvas = FigureCanvasAgg(figure)
        canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3].copy()


def png(image: np.ndarray) -> bytes:
    """Pixels as the content of a PNG file."""
    file = io.BytesIO()
    imsave(file, image, format="png")
    return file.getvalue()


def _font(found: re.Match) -> str:
    weight = f"font-weight: {found[1]}; " if found[1] else ""
    return f"{weight}font-size: {found[2]}px"


@contextmanager
def _quiet() -> Iterator[None]:
    """Without matplotlib's warning about letters that its own font lacks; the page's font has them."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing from font")
        yield
