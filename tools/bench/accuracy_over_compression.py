"""Each paper's own points and ours in one picture: how much of the dense model's score is kept, over how much smaller.

    python -m tools.bench.accuracy_over_compression --output docs/pictures/compared-with-the-papers.png

The papers' points are in tools/papers.csv, each with its source and whether it was verified there. Ours are rows of
tools/results.csv, of other models and less training: the picture shows where they differ, and is no ranking. Bytes of
unstructured zeros are counted with an index of one bit for each weight, the papers' too.
"""

import csv
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from jsonargparse import auto_cli

from lit_compress.errors import UserError
from tools.bench.accuracy_over_speed import grouped
from tools.reproduce_table import read_rows

__all__ = ["PANELS", "Mark", "accuracy_over_compression", "ours", "papers"]

TOOLS = Path(__file__).parents[1]
_FLOOR = 65.0  # of the scores drawn, in percent; what kept less is at it, with its number
# Recipes of each paper, and which of the two sizes it names.
PANELS = {
    "Poor Man's BERT": (("poor_mans_bert",), "encoder"),
    "ROSITA": (("rosita", "rosita_s1", "rosita_s2", "rosita_s3", "rosita_s4"), "model"),
    "Prune Once for All, Sparse*BERT": (
        ("prune_ofa", "prune_ofa_vectors", "sparse_bert", "sparse_bio_bert"),
        "encoder",
    ),
    "oBERTa": (("oberta",), "encoder"),
    "Movement and magnitude pruning": (("movement", "magnitude"), "encoder"),
}


@dataclass(frozen=True, kw_only=True)
class Mark:
    """A point.

    Args:
        label: of the legend.
        compression: times smaller.
        kept: share of the dense model's score.
        low: lower end of the interval; equal to ``kept`` without one.
        high: its upper end.
        trivial: whether one answer to everything does as well.

    """

    label: str
    compression: float
    kept: float
    low: float
    high: float
    trivial: bool = False


def accuracy_over_compression(output: Path, results: Path = TOOLS / "results.csv") -> dict[str, list[Mark]]:
    """Draw a panel for each paper.

    Args:
        output: picture to write, .png or .svg.
        results: the table of our rows.

    Returns:
        Our marks of each panel.

    Raises:
        UserError: there is no row to draw.

    """
    lines = read_rows(results)
    found = {title: ours(lines, recipes, size) for title, (recipes, size) in PANELS.items()}
    if not any(found.values()):
        raise UserError(f"{str(results)!r} has no row to draw; run python -m tools.reproduce")
    draw(found, output)
    return found


def ours(lines: Sequence[Mapping[str, str]], recipes: Sequence[str], size: str) -> list[Mark]:
    """A mark for each stage of some recipes on each data set.

    The interval is the spread over the seeds, of one seed the paired interval of its difference to the dense model.

    Args:
        lines: of results.csv.
        recipes: their names.
        size: ``encoder`` or ``model``.

    """
    marks = []
    for (_, _, data, *_), group in grouped(line for line in lines if line["recipe"] in recipes).items():
        if not group[0][f"{size}_compression"]:
            continue
        dense = statistics.mean(float(line["dense"]) for line in group)
        kept = [float(line["value"]) / dense for line in group]
        mean, first = statistics.mean(kept), group[0]
        low = high = mean
        if len(kept) > 1:
            low, high = mean - statistics.stdev(kept), mean + statistics.stdev(kept)
        elif first["difference_low"]:
            low, high = (1 + float(first[f"difference_{end}"]) / dense for end in ("low", "high"))
        compression = statistics.mean(float(line[f"{size}_compression"]) for line in group)
        label = f"{first['model']}, {data}"
        value = statistics.mean(float(line["value"]) for line in group)
        trivial = bool(first["majority"]) and not value > float(first["majority"])
        marks.append(Mark(label=label, compression=compression, kept=mean, low=low, high=high, trivial=trivial))
    return marks


def papers(recipes: Sequence[str], path: Path = TOOLS / "papers.csv") -> list[tuple[Mark, bool]]:
    """The published points of some recipes, and whether each was verified in a source."""
    with path.open(newline="") as file:
        rows = [row for row in csv.DictReader(file) if row["recipe"] in recipes]
    found = []
    for row in rows:
        kept = float(row["value"]) / float(row["dense"])
        mark = Mark(label=row["name"], compression=float(row["compression"]), kept=kept, low=kept, high=kept)
        found.append((mark, row["mark"] == "verified"))
    return found


def draw(found: Mapping[str, Sequence[Mark]], output: Path) -> None:
    """Published points are black, filled where they were verified; ours have a color for each model and data set."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(2, 3, figsize=(12, 7), layout="constrained", sharex=True, sharey=True)
    top = 2 + max([100.0, *(100 * mark.high for marks in found.values() for mark in marks)])
    labels = list(dict.fromkeys(mark.label for marks in found.values() for mark in marks))
    for panel, (title, marks) in zip(axes.flat, found.items(), strict=False):
        recipes, size = PANELS[title]
        for mark, verified in papers(recipes):
            panel.scatter(
                mark.compression, 100 * mark.kept, marker="*", s=120, color="black" if verified else "white",
                edgecolors="black", zorder=3,
            )  # fmt: skip
        for mark in marks:
            if 100 * mark.kept < _FLOOR:
                panel.plot(mark.compression, _FLOOR + 0.5, "v", color=f"C{labels.index(mark.label) % 10}")
                panel.annotate(
                    f"{mark.kept:.0%}", (mark.compression, _FLOOR + 0.5), xytext=(7, 0), textcoords="offset points",
                    fontsize="small", color="0.3",
                )  # fmt: skip
                continue
            spread = [[100 * (mark.kept - mark.low)], [100 * (mark.high - mark.kept)]]
            color = f"C{labels.index(mark.label) % 10}"
            fill = "none" if mark.trivial else "full"
            panel.errorbar(
                mark.compression, 100 * mark.kept, yerr=spread, fmt="o", color=color, capsize=2, fillstyle=fill
            )
        panel.axhline(100, color="0.8", zorder=0)
        panel.set_ylim(_FLOOR - 1, top)
        panel.set_xscale("log", base=2)
        panel.set_xticks([1, 2, 4, 8, 16], ["1x", "2x", "4x", "8x", "16x"])
        panel.set_title(title)
        panel.set_xlabel(f"{size}, times smaller")
        panel.tick_params(labelbottom=True)
    for panel in axes[:, 0]:
        panel.set_ylabel("score kept, %")
    legend = axes.flat[-1]
    legend.axis("off")
    for label in labels:
        legend.plot([], [], "o", color=f"C{labels.index(label) % 10}", label=label)
    legend.plot([], [], "v", color="black", label=f"kept less than {_FLOOR:.0f} %")
    legend.plot([], [], "o", color="black", fillstyle="none", label="no better than one answer to all")
    legend.scatter([], [], marker="*", s=120, color="black", label="paper, verified")
    legend.scatter([], [], marker="*", s=120, color="white", edgecolors="black", label="paper, partly from memory")
    legend.legend(loc="center", fontsize="small", ncols=2)
    output.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(output, dpi=120)
    pyplot.close(figure)


if __name__ == "__main__":
    try:
        auto_cli(accuracy_over_compression, as_positional=False)
    except UserError as error:
        raise SystemExit(f"error: {error}") from None
