"""`lit_compress compare` of families: what each task's members reached, side by side."""

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure
from rich.console import Console

from lit_compress.auto.family_report import lead, speed_axis, table
from lit_compress.auto.request import is_family
from lit_compress.console import say
from lit_compress.errors import UserError
from lit_compress.files import atomic_file
from lit_compress.report.compare import check_comparison, named_runs
from lit_compress.report.drawing import bare, chart, svg
from lit_compress.report.html_page import render
from lit_compress.report.markdown import cell, section
from lit_compress.report.section import Section, Table
from lit_compress.report.terminal import screen_table

__all__ = ["compare_families"]

Results = Mapping[str, Any]
_CAPTION = "What each member gains or loses to its dense model, by how many times as fast it is; a line for each family"
_NOTES = (
    "gain: points better than the dense model, negative: worse; x dense: times the speed of the dense model in fp32 in "
    "the same runtime; x eager: of the dense model in Hugging Face eager, all measured together.",
    "* is the recommended member of its family.",
)


def compare_families(runs: Sequence[str], output: str) -> dict[str, Results]:
    """Print and save the members of several families, of one task or of several, in one table.

    Args:
        runs: folders of `lit_compress compress` that are finished.
        output: folder that gets report.html, report.md and report.json.

    Returns:
        What each family's report.json holds, by its name.

    Raises:
        UserError: a folder that is not a finished family, or is given twice, or files of someone else in the output.

    """
    if others := [run for run in runs if not is_family(run)]:
        raise UserError(
            f"compare: {others[0]!r} is not a family of `lit_compress compress`, and others are; compare families with "
            "families, and their members, which are runs, with runs"
        )
    named = named_runs(runs)
    check_comparison(output)
    results = {name: _results(folder) for name, folder in named.items()}
    _save(results, Path(output))
    return results


def _results(folder: Path) -> Results:
    file = folder / "report.json"
    try:
        found = json.loads(file.read_text())
        table(found)
    except FileNotFoundError as error:
        raise UserError(
            f"compare: {str(folder)!r} has no report.json yet; run its `lit_compress compress` command again"
        ) from error
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"compare: {str(file)!r} is damaged or of another version; run its `lit_compress compress` command again"
        ) from error
    return found


def _table(results: Mapping[str, Results]) -> Table:
    rows = []
    for name, family in results.items():
        made = table(family)
        for row in made.rows:
            model = f"{row[0]} *" if row[0] == family["recommended"] else row[0]
            score = f"{made.header[1]} {row[1]}" if row[1] else ""
            rows.append((name, model, score, *row[2:5], row[7]))
    return Table(header=("family", "model", "score", "gain", "x dense", "x eager", "file"), rows=rows)


def _save(results: Mapping[str, Results], folder: Path) -> None:
    title = f"Comparison of {folder}"
    made = _table(results)
    parts = [
        Section(name="families", title="Families", lines=_NOTES, figures=("families",), tables=(made,)),
        Section(
            name="recommended",
            title="Recommendation",
            lines=tuple(f"{name}: {lead(family)}" for name, family in results.items()),
        ),
        Section(
            name="reproduce",
            title="How to reproduce it",
            lines=tuple(f"{name}: {_machine(family)}" for name, family in results.items()),
            code=tuple((name, family["command"]) for name, family in results.items()),
        ),
    ]
    with _losses(results) as figure:
        drawn = {"families": (_CAPTION, svg(figure, "families", _CAPTION))}
    subtitle = f"{len(results)} families: {', '.join(results)}"
    html = render(title=title, kicker="comparison", subtitle=subtitle, tiles=[], parts=parts, drawn=drawn)
    text = "\n".join([f"# {cell(title)}", *(line for part in parts for line in section(part))]) + "\n"
    contents = {"report.md": text, "report.json": json.dumps(results, indent=1) + "\n", "report.html": html}
    for name, content in contents.items():
        with atomic_file(folder / name) as staging:
            staging.write_text(content)
    Console(highlight=False).print(screen_table("", made.header, made.rows, words=made.header[:2]))
    for line in (*_NOTES[1:], *parts[1].lines):
        say(line)
    say(f"Saved as {folder / 'report.html'}, report.md and report.json")


def _machine(family: Results) -> str:
    return ", ".join(f"{key} {value}" for key, value in family["machine"].items())


@contextmanager
def _losses(results: Mapping[str, Results]) -> Iterator[Figure]:
    """Points lost over speed."""
    with chart(height=3.4) as (figure, (axes,)):
        fastest = 1.0
        for name, family in results.items():
            own = [each for each in family["members"] if each["same_as"] is None and each["loss"] is not None]
            at = sorted([(1.0, 0.0), *((each["speedup"], -each["loss"]) for each in own)])
            fastest = max(fastest, at[-1][0])
            axes.plot(*zip(*at, strict=True), "o-", linewidth=1.4, markersize=5, label=name)
        speed_axis(axes, fastest)
        axes.set_ylabel("points more than the dense model")
        axes.legend(frameon=False, fontsize=8)
        bare(axes, "both")
        yield figure
