"""Figures of a benchmark on the terminal, as JSON and as CSV; nothing here is measured."""

import csv
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console

from lit_compress.console import say
from lit_compress.files import atomic_file, begins, check_file
from lit_compress.report.phrasing import speed
from lit_compress.report.terminal import screen_table

__all__ = ["NOTES", "check_results", "fastest_form", "markdown", "print_results", "save_results", "tables"]

NOTES = (
    "*ms*, *p90*: median and 90th percentile of a call; calls are interleaved, each model has a process of its own. "
    "*speed*: how many times the throughput of the one that is named, the fastest form of the first model.",
    "*memory*: the most that loading and running took, beyond the libraries. *file*: weights as they are stored.",
    "*differs*: largest difference of an output from the first form of the same model, as a fraction of the largest.",
)
_CSV = (
    *("model", "source", "engine", "file_bytes", "memory_bytes", "difference", "batch_size", "length"),
    *(
        "median_ms",
        "p90_ms",
        "texts_per_second",
        "speedup",
        "repetitions",
        "threads",
        "device",
        "versions",
        "command",
    ),
)


def fastest_form(cases: Sequence[Mapping[str, Any]], shape: str) -> Mapping[str, Any]:
    """What speeds are compared with: the first model on the engine that is fastest for a batch of this shape."""
    forms = [case for case in cases if case["model"] == cases[0]["model"]]
    return min(forms, key=lambda case: case["times"][shape]["median_ms"])


def tables(results: dict[str, Any]) -> list[tuple[str, list[tuple[str, ...]]]]:
    """Title and rows, the first a header, of what each case is, and of how fast each is for every shape.

    Args:
        results: of a benchmark; with a ``score``, the metric of that name of each case is a column.

    """
    cases, score = results["cases"], results.get("score")
    scored = (score,) if score else ()
    about: list[tuple[str, ...]] = [("model", "engine", "file", "memory", *scored, "differs")]
    for case in cases:
        memory, difference = case["memory_bytes"], case["difference"]
        figures = (
            f"{case['bytes'] / 1e6:.1f} MB",
            "" if memory is None else f"{memory / 1e6:.0f} MB",
            *((f"{case['metrics'][score]:.4f}",) if score else ()),
            "" if difference is None else f"{difference:.1e}",
        )
        about.append((case["model"], _engine(case), *figures))
    made = [("", about)]
    for shape in cases[0]["times"]:
        first = fastest_form(cases, shape)
        rows: list[tuple[str, ...]] = [("model", "engine", "ms", "p90", "texts/s", "speed")]
        for case in cases:
            times = case["times"][shape]
            figures = (
                f"{times['median_ms']:.2f}",
                f"{times['p90_ms']:.2f}",
                f"{times['texts_per_second']:.1f}",
                speed(first["times"][shape]["median_ms"], times["median_ms"]),
            )
            rows.append((case["model"], _engine(case), *figures))
        made.append((f"{shape.replace('x', ' x ')} tokens; 1.00x is {first['model']}, {_engine(first)}", rows))
    return made


def _engine(case: Mapping[str, Any]) -> str:
    """As short as it can be told: files for OpenVINO are named after it."""
    return case["engine"].replace("openvino openvino_", "openvino ")


def print_results(results: dict[str, Any]) -> None:
    """The tables, the notes and the machine."""
    console = Console()
    # Narrower, figures would be cut; names are written on several lines.
    console = Console(width=max(console.width, _NARROWEST))
    for title, (header, *rows) in tables(results):
        console.print(screen_table(title, header, rows, words=("model", "engine")))
        console.print()
    console.print("\n".join(NOTES), style="dim", markup=False)
    machine = results["machine"]
    versions = ", ".join(f"{name} {value}" for name, value in machine.items() if name not in ("device", "threads"))
    console.print(f"{machine['device']}, {machine['threads']} threads; {versions}", style="dim", markup=False)


_NARROWEST = 60


def markdown(results: dict[str, Any]) -> str:
    """The tables and the machine as Markdown."""
    machine = ", ".join(f"{name} {value}" for name, value in results["machine"].items())
    lines: list[str] = []
    for title, (header, *rows) in tables(results):
        body = (header, ("---",) * len(header), *rows)
        lines += [*([title, ""] if title else []), *(f"| {' | '.join(map(_escaped, row))} |" for row in body), ""]
    return "\n".join([*lines, f"`{results['command']}` on {machine}", ""])


def _escaped(cell: str) -> str:
    return cell.replace("|", "\\|")


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
    machine = results["machine"]
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
            figures = {name: times[name] for name in ("median_ms", "p90_ms", "texts_per_second")}
            first = fastest_form(results["cases"], shape)["times"][shape]
            figures |= {"speedup": first["median_ms"] / times["median_ms"]}
            own = {"file_bytes": case["bytes"], "batch_size": batch_size, "length": length}
            named = {name: case[name] for name in ("model", "source", "engine", "memory_bytes", "difference")}
            lines.append(named | own | figures | shared)
    return lines
