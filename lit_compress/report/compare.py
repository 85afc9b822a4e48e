"""Several runs beside each other: what each lost, and what it saved."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from lit_compress.files import atomic_file
from lit_compress.report.run import measure_run, save_report

__all__ = ["compare", "comparison_rows"]

HEADER = ("", "metric", "value", "of dense", "encoder sparsity", "parameters", "values + index", "latency")


def compare(runs: Mapping[str, tuple[Path, str | None]], output: str | Path) -> dict[str, dict[str, Any]]:
    """Report every run that has no report newer than its model, then print and save all of them in one table.

    Args:
        runs: name to run folder and the model it is compared with (None for its teacher).
        output: folder that gets report.md and report.json.

    """
    results = {name: _report(folder, dense) for name, (folder, dense) in runs.items()}
    rows = comparison_rows(results)
    folder = Path(output)
    lines = ["| " + " | ".join(row) + " |" for row in [HEADER, *rows]]
    lines.insert(1, "|---" * len(HEADER) + "|")
    text = f"# Comparison of {folder}\n\n" + "\n".join(lines) + "\n\n" + "\n".join(f"- {note}" for note in NOTES) + "\n"
    for name, content in (("report.md", text), ("report.json", json.dumps(results, indent=1) + "\n")):
        with atomic_file(folder / name) as staging:
            staging.write_text(content)
    _print(rows, folder)
    return results


NOTES = (
    "*value*: of the first metric of the task, on the run's validation rows. *of dense*: that value beside the dense "
    "model's, measured in the same report.",
    "*values + index*: the whole model, non-zeros in their stored type and one bit per position of sparse matrices.",
    "*latency*: of a batch of 1, as a ratio to the dense model in the same process; eager PyTorch, where zeros and "
    "int8 grids save no time, only what is physically smaller does.",
)


def comparison_rows(results: Mapping[str, dict[str, Any]]) -> list[tuple[str, ...]]:
    """One row per run, in the columns of the table."""
    rows = []
    for name, result in results.items():
        models = result["models"]
        own = models.get("compressed") or models["model"]
        dense = models.get("dense")
        metric, value = next(iter(own["accuracy"].items()))
        size, encoder = own["size"]["model"], own["size"]["encoder"]
        batch = next(iter(own["latency_ms"]))
        rows.append(
            (
                name,
                metric,
                f"{value:.4f}",
                f"{value / dense['accuracy'][metric]:.2%}" if dense and dense["accuracy"][metric] else "",
                f"{1 - encoder['nonzeros'] / max(encoder['parameters'], 1):.1%}",
                f"{size['parameters']:,}",
                f"{size['compressed_bytes'] / 1e6:.2f} MB",
                f"{own['latency_ms'][batch] / dense['latency_ms'][batch]:.2f}x" if dense else "",
            )
        )
    return rows


def _report(run: Path, dense: str | None) -> dict[str, Any]:
    saved, model = run / "report" / "report.json", run / "model" / "config.json"
    if not saved.is_file() or saved.stat().st_mtime < model.stat().st_mtime:
        save_report(measure_run(run, dense, batch_sizes=[1, 32], repetitions=10), run / "report")
    return json.loads(saved.read_text())


def _print(rows: list[tuple[str, ...]], folder: Path) -> None:
    table = Table(title=Text(f"Comparison of {folder}"), title_justify="left")
    for index, column in enumerate(HEADER):
        table.add_column(column, justify="left" if index < 2 else "right")
    for row in rows:
        table.add_row(*row)
    console = Console()
    console.print(table)
    console.print("\n".join(NOTES), style="dim", markup=False)
    console.print(f"Saved as {folder / 'report.md'} and report.json", markup=False)
