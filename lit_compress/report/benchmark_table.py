"""Figures of a benchmark on the terminal, as JSON and as CSV; nothing here is measured."""

import csv
import json
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from lit_compress.console import say
from lit_compress.files import atomic_file, begins, check_file

__all__ = ["NOTES", "check_results", "markdown", "print_results", "rows", "save_results"]

NOTES = (
    "*ms*, *p90*: median and 90th percentile of a call; calls are interleaved, each model has a process of its own. "
    "*x*: how many times as fast as the first model on its engine.",
    "*memory*: the most that loading and running took, beyond the libraries. *file*: weights as they are stored.",
    "*differs*: largest difference of an output from the first form of the same model, as a share of the largest.",
)
_CSV = (
    *("model", "source", "engine", "file_bytes", "memory_bytes", "difference", "batch_size", "length"),
    *("median_ms", "p90_ms", "rows_per_second", "speedup", "repetitions", "threads", "device", "versions", "command"),
)


def rows(results: dict[str, Any]) -> list[tuple[str, ...]]:
    """A header, then a row for each case and shape; what does not depend on the shape is said once.

    Args:
        results: of a benchmark; with a ``score``, the metric of that name of each case is a column.

    """
    first = results["cases"][0]["times"]
    score = results.get("score")
    scored = (score,) if score else ()
    table: list[tuple[str, ...]] = [
        ("model", "engine", "file", "memory", *scored, "differs", "size", "ms", "p90", "rows/s", "x")
    ]
    for case in results["cases"]:
        memory, difference = case["memory_bytes"], case["difference"]
        said: tuple[str, ...] = (
            case["model"],
            case["engine"],
            f"{case['bytes'] / 1e6:.1f} MB",
            "" if memory is None else f"{memory / 1e6:.0f} MB",
            *((f"{case['metrics'][score]:.4f}",) if score else ()),
            "" if difference is None else f"{difference:.1e}",
        )
        for shape, times in case["times"].items():
            figures = (
                shape.replace("x", " x "),
                f"{times['median_ms']:.2f}",
                f"{times['p90_ms']:.2f}",
                f"{times['rows_per_second']:.1f}",
                f"{first[shape]['median_ms'] / times['median_ms']:.2f}",
            )
            table.append((*said, *figures))
            said = ("",) * len(said)
    return table


def print_results(results: dict[str, Any]) -> None:
    """The table, the notes and the machine."""
    header, *lines = rows(results)
    table = Table()
    for index, column in enumerate(header):
        table.add_column(column, justify="left" if index < 2 else "right", no_wrap=True)
    for line in lines:
        if line[0] and table.row_count:
            table.add_section()
        table.add_row(*line)
    console = Console()
    # Cut to a narrow window, the columns that say what was measured would be the first to go.
    Console(width=max(console.width, console.measure(table, options=console.options.update(width=1000)).maximum)).print(
        table
    )
    console.print("\n".join(NOTES), style="dim", markup=False)
    machine = results["machine"]
    versions = ", ".join(f"{name} {value}" for name, value in machine.items() if name not in ("device", "threads"))
    console.print(f"{machine['device']}, {machine['threads']} threads; {versions}", style="dim", markup=False)


def markdown(results: dict[str, Any]) -> str:
    """The table and the machine as Markdown."""
    header, *lines = rows(results)
    machine = ", ".join(f"{name} {value}" for name, value in results["machine"].items())
    table = [header, ("---",) * len(header), *lines]
    return "\n".join(
        [*("| " + " | ".join(line) + " |" for line in table), "", f"`{results['command']}` on {machine}", ""]
    )


def check_results(path: Path) -> None:
    """Refuse a file that :func:`save_results` could not write, or that is not an earlier one of its."""
    start = r'\{\n "command": ".*",\n "machine": ' if path.suffix == ".json" else ",".join(_CSV) + "\n"
    check_file(path, begins(start))


def save_results(results: dict[str, Any], path: Path) -> None:
    """Write everything as JSON, or a line for each case and shape as CSV."""
    with atomic_file(path) as staging:
        if path.suffix == ".json":
            staging.write_text(json.dumps(results, indent=1) + "\n")
        else:
            with staging.open("w", newline="") as file:
                writer = csv.DictWriter(file, _CSV, lineterminator="\n")
                writer.writeheader()
                writer.writerows(_lines(results))
    say(f"Saved as {path}")


def _lines(results: dict[str, Any]) -> list[dict[str, Any]]:
    machine, first = results["machine"], results["cases"][0]["times"]
    shared = {
        "repetitions": results["settings"]["repetitions"],
        "threads": machine["threads"],
        "device": machine["device"],
        "versions": " ".join(f"{name}={value}" for name, value in machine.items() if name not in ("device", "threads")),
        "command": results["command"],
    }
    lines = []
    for case in results["cases"]:
        for shape, times in case["times"].items():
            batch_size, length = shape.split("x")
            figures = {name: times[name] for name in ("median_ms", "p90_ms", "rows_per_second")}
            figures |= {"speedup": first[shape]["median_ms"] / times["median_ms"]}
            own = {"file_bytes": case["bytes"], "batch_size": batch_size, "length": length}
            named = {name: case[name] for name in ("model", "source", "engine", "memory_bytes", "difference")}
            lines.append(named | own | figures | shared)
    return lines
