"""`lit_compress compare`: several runs in one table: what each lost, what it saved, and the Pareto fronts."""

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.text import Text

from lit_compress.errors import UserError
from lit_compress.files import atomic_file, begins, check_file, check_folder, check_shared_folder
from lit_compress.models.labels import LabelMap
from lit_compress.models.manifest_file import unfinished_lines
from lit_compress.report.drawing import svg
from lit_compress.report.html_page import render
from lit_compress.report.markdown import cell, section, table
from lit_compress.report.measure import SCHEMA, has_dense, measure_run
from lit_compress.report.model_card import update_model_card
from lit_compress.report.pareto import Group, groups_of, pareto_figure
from lit_compress.report.phrasing import metric_title, number, points_of, ratio, settings_text, speed, verdict_of
from lit_compress.report.save import save_report
from lit_compress.report.section import Section, Table
from lit_compress.report.size import sparsity_of
from lit_compress.report.summary import own_name, reference, timed_batch
from lit_compress.report.terminal import screen_table
from lit_compress.sources import resolve_package

__all__ = ["check_comparison", "compare", "compare_runs", "comparison_tables", "named_runs"]

# How the files of a comparison begin.
STARTS = {
    "report.md": r"# Comparison of ",
    "report.json": r'\{\n "[^\n]+": \{\n  "(schema|run)": ',
    "report.html": r"<!doctype html>(?s:.*?)<title>Comparison of ",
}
NOTES = (
    "*value*: of the first metric of the task, on the run's validation examples. *of dense*: that value relative to "
    "the dense model's, measured in the same report. *to dense*: the 95 % interval of their difference.",
    "*values + index*: the whole model, non-zeros in their stored type and one bit per position of sparse matrices; in "
    "brackets how many times less than the dense model in fp32 (without one, than the pretrained one).",
    "*speed*: how many times the throughput of the dense model in the same process, for a batch of 1 or the one in "
    "brackets; eager PyTorch, where zeros and simulated int8 save no time, only what is physically smaller does.",
)


def compare_runs(
    runs: list[str],
    output: str,
    dense: str | None = None,
    data: dict[str, Any] = {},  # noqa: B006 (jsonargparse shows and never changes it)
    label_map: dict[str, str | int] | None = None,
) -> None:
    """Compare runs: a table, Pareto fronts, and how each run was made; a run without a report gets one.

    Options: :func:`lit_compress.commands.results.compare`.
    """
    named = named_runs(runs)
    dense = dense and resolve_package(dense, "--dense")
    compare({name: (folder, dense) for name, folder in named.items()}, output, data, label_map)


def named_runs(runs: Sequence[str]) -> dict[str, Path]:
    """Folders by names that tell them apart, as short as they may be.

    Raises:
        UserError: one is given twice.

    """
    if len(set(map(os.path.abspath, runs))) < len(runs):
        raise UserError(f"compare: {' '.join(runs)} names a run twice; give each once")
    names = [Path(run).resolve().name for run in runs]
    if len(set(names)) < len(names):
        names = [os.path.normpath(run) for run in runs]
    return {name: Path(run) for name, run in zip(names, runs, strict=True)}


def compare(
    runs: Mapping[str, tuple[Path, str | None]],
    output: str | Path,
    data: Mapping[str, Any] | None = None,
    label_map: LabelMap | None = None,
) -> dict[str, dict[str, Any]]:
    """Report every run that has no report newer than its model, then print and save all of them side by side.

    Args:
        runs: name to run folder and the model it is compared with (None for its teacher).
        output: folder that gets report.html, report.md and report.json.
        data: options of the runs' data to change for those that are reported now.
        label_map: as in :func:`~lit_compress.report.measure.report`.

    """
    check_comparison(output)
    known = {name: _up_to_date(folder) for name, (folder, _) in runs.items()}
    for name, (folder, dense) in runs.items():
        if known[name] is None:
            check_folder(folder / "report", overwrite=True, kind="report", inputs=(dense,))
    results = {name: known[name] or _report(folder, dense, data, label_map) for name, (folder, dense) in runs.items()}
    groups = groups_of(results)
    for group in groups:
        for name in group.names:
            results[name]["pareto"] = {axis: name in front for axis, front in group.fronts.items()}
    folder = Path(output)
    parts, drawn = _parts(results, groups)
    title = f"Comparison of {folder}"
    tables = comparison_tables(results)
    shown = (line for made in tables for line in ("", *table(made.header, made.rows)))
    lines = [f"# {cell(title)}", *shown, "", *(f"- {note}" for note in NOTES)]
    text = "\n".join([*lines, *(line for part in parts for line in section(part))]) + "\n"
    subtitle = f"{len(results)} runs: {', '.join(results)}"
    html = render(title=title, kicker="comparison", subtitle=subtitle, tiles=[], parts=parts, drawn=drawn)
    contents = {"report.md": text, "report.json": json.dumps(results, indent=1) + "\n", "report.html": html}
    for name, content in contents.items():
        with atomic_file(folder / name) as staging:
            staging.write_text(content)
    _print(tables, folder)
    return results


def check_comparison(output: str | Path) -> None:
    """Refuse a folder in which a comparison would have to replace a file of someone else; for before any work."""
    check_shared_folder(output)
    for name, start in STARTS.items():
        check_file(Path(output) / name, begins(start))


def comparison_tables(results: Mapping[str, dict[str, Any]]) -> tuple[Table, Table]:
    """How good the runs are, and how small and fast; a row for each. Two, so that a window shows all of the verdict."""
    good, small = [], []
    for name, result in results.items():
        models = result["models"]
        own, dense = models[own_name(result)], models.get("dense")
        metric, value = next(iter(own["accuracy"].items()))
        good.append(
            (
                name,
                metric_title(result, metric),
                f"{value:.4f}",
                f"{value / dense['accuracy'][metric]:.2%}" if dense and dense["accuracy"][metric] else "",
                _verdict(result, metric),
            )
        )
        size, encoder = own["size"]["model"], own["size"]["encoder"]
        batch, (_, full) = timed_batch(result), reference(result)
        which = "" if batch == "1" else f" (batch {batch})"
        small.append(
            (
                name,
                f"{sparsity_of(encoder):.1%}",
                f"{size['parameters']:,}",
                f"{size['compressed_bytes'] / 1e6:.2f} MB ({ratio(full['model'], size['compressed_bytes'])})",
                speed(dense["latency_ms"][batch], own["latency_ms"][batch]) + which if dense else "",
            )
        )
    return (
        Table(header=("", "metric", "value", "of dense", "to dense"), rows=good),
        Table(header=("", "encoder sparsity", "parameters", "values + index", "speed, dense 1.00x"), rows=small),
    )


def _parts(
    results: Mapping[str, dict[str, Any]], groups: Sequence[Group]
) -> tuple[list[Section], dict[str, tuple[str, str]]]:
    """What the page and the Markdown show, and the figures of the page."""
    parts, drawn = [], {}
    for index, group in enumerate(groups):
        figures = []
        latency = f"latency as a ratio to dense, batch {group.batch}"
        for axis, label in (("size", "megabytes, values + index"), ("latency", latency)):
            with pareto_figure(group, axis, label) as figure:
                if figure is not None:
                    figures.append(f"{axis}-{index}")
                    caption = f"{group.metric} by {label}; on the line is what no other run beats in both"
                    drawn[figures[-1]] = caption, svg(figure, figures[-1], caption)
        own = {name: results[name] for name in group.names}
        title = f"{group.task.replace('_', ' ').capitalize()}: {group.metric} on {group.rows:,} rows of {group.source}"
        unbeaten = {name for names in group.fronts.values() for name in names}
        front = [name for name in group.names if name in unbeaten]
        lines = (f"Worth having, because no other run is better in both: {', '.join(front)}.",) if front[1:] else ()
        tables = (*comparison_tables(own), _metrics(own))
        parts.append(Section(name=f"group-{index}", title=title, lines=lines, figures=tuple(figures), tables=tables))
    made = tuple(f"{name}: {_how(result)}" for name, result in results.items())
    parts.append(Section(name="made", title="How each run was made", lines=made))
    machines = {", ".join(f"{k} {v}" for k, v in result["machine"].items()) for result in results.values()}
    commands = tuple((name, result["command"]) for name, result in results.items())
    parts.append(Section(name="reproduce", title="How to reproduce it", lines=tuple(sorted(machines)), code=commands))
    return parts, drawn


def _metrics(results: Mapping[str, dict[str, Any]]) -> Table:
    """Every metric of every run, in points where it has some; a dash where a run has not this metric."""
    titles = {
        metric: metric_title(result, metric)
        for result in results.values()
        for metric in result["comparison"]["metrics"]
    }
    rows = []
    for name, result in results.items():
        values = result["models"][own_name(result)]["accuracy"]
        rows.append((name, *(number(values.get(metric), points_of(result, metric)) for metric in titles)))
    return Table(header=("", *titles.values()), rows=rows, summary="All metrics")


def _how(result: Mapping[str, Any]) -> str:
    parts = [*result["settings"]["compression"], *result["settings"]["distillation"]]
    how = [f"{part['name']} ({settings_text(part['settings'])})" for part in parts] or ["task alone"]
    return "; ".join(how + [f"not finished: {line}" for line in unfinished_lines(result)])


def _verdict(result: Mapping[str, Any], metric: str) -> str:
    entry = result.get("comparison", {}).get("metrics", {}).get(metric, {"differences": {}})
    difference = entry["differences"].get(own_name(result))
    return verdict_of(result, metric, difference) if difference else ""


def _up_to_date(run: Path) -> dict[str, Any] | None:
    """The report that a run has, if it is newer than its model and has every figure."""
    saved, model = run / "report" / "report.json", run / "model" / "config.json"
    if saved.is_file() and model.is_file() and saved.stat().st_mtime >= model.stat().st_mtime:
        try:
            results = json.loads(saved.read_text())
        except ValueError:
            results = {}
        # A report of an earlier version lacks figures, and is made again.
        if isinstance(results, dict) and results.get("schema") == SCHEMA:
            return results
    return None


def _report(run: Path, dense: str | None, data: Mapping[str, Any] | None, label_map: LabelMap | None) -> dict[str, Any]:
    results = measure_run(run, dense, batch_sizes=[1, 32], repetitions=10, data_options=data, label_map=label_map)
    if not has_dense(run / "report") or "dense" in results["models"]:  # else it has what cannot be measured any more
        save_report(results, run / "report")
    update_model_card(run / "model" / "README.md", results)
    return results


def _print(tables: Sequence[Table], folder: Path) -> None:
    console = Console()
    console.print(Text(f"Comparison of {folder}"))
    for made in tables:
        console.print(screen_table("", made.header, made.rows, words=("", "metric", "to dense")))
        console.print()
    console.print("\n".join(NOTES), style="dim", markup=False)
    console.print(f"Saved as {folder / 'report.html'}, report.md and report.json", markup=False)
