"""Figures of a benchmark on the terminal, as JSON and as CSV; nothing here is measured."""

import csv
import json
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from lit_compress.files import atomic_file

__all__ = ["NOTES", "print_results", "rows", "save_results"]

NOTES = (
    "*ms*: median of a call, and in brackets the 90th percentile; models took turns, each in a process of its own. "
    "*x*: how much faster than the first line.",
    "*memory*: the most that loading and running took, beyond the libraries. *file*: weights as they are stored.",
    "*differs*: largest difference of an output from the first form of the same model, as a share of the largest.",
)
_CSV = (
    *("model", "source", "engine", "file_bytes", "memory_bytes", "difference", "batch_size", "length"),
    *("median_ms", "p90_ms", "rows_per_second", "speedup", "repetitions", "threads", "device", "versions", "command"),
)


def rows(results: dict[str, Any]) -> list[tuple[str, ...]]:
    """A header, then one row for each case."""
    shapes = list(results["cases"][0]["times"])
    first = results["cases"][0]["times"]
    header: tuple[str, ...] = (
        "model",
        "engine",
        "file",
        "memory",
        "differs",
        *(f"batch {shape.replace('x', ' x ')}" for shape in shapes),
    )
    table = [header]
    for case in results["cases"]:
        memory, difference = case["memory_bytes"], case["difference"]
        table.append(
            (
                case["model"],
                case["engine"],
                f"{case['bytes'] / 1e6:.1f} MB",
                "" if memory is None else f"{memory / 1e6:.0f} MB",
                "" if difference is None else f"{difference:.1e}",
                *(_cell(case["times"][shape], first[shape]) for shape in shapes),
            )
        )
    return table


def print_results(results: dict[str, Any]) -> None:
    """The table, the notes and the machine."""
    header, *lines = rows(results)
    table = Table()
    for index, column in enumerate(header):
        table.add_column(column, justify="left" if index < 2 else "right")
    for line in lines:
        table.add_row(*line)
    console = Console()
    console.print(table)
    console.print("\n".join(NOTES), style="dim", markup=False)
    machine = results["machine"]
    versions = ", ".join(f"{name} {value}" for name, value in machine.items() if name not in ("device", "threads"))
    console.print(f"{machine['device']}, {machine['threads']} threads; {versions}", style="dim", markup=False)


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
    Console(soft_wrap=True).print(f"Saved as {path}", markup=False)


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


def _cell(times: dict[str, Any], first: dict[str, Any]) -> str:
    ratio = "" if times is first else f"  {first['median_ms'] / times['median_ms']:.2f}x"
    return f"{times['median_ms']:.1f} ms ({times['p90_ms']:.1f}){ratio}"
