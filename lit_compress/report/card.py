"""A report's figures as Markdown and as a table in the terminal; nothing here is measured or made up."""

from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

__all__ = ["markdown", "print_table", "rows"]


def rows(results: dict[str, Any]) -> list[tuple[str, ...]]:
    """One row per figure: its name, then its value for each model."""
    models = list(results["models"].values())
    table: list[tuple[str, ...]] = []
    for metric in models[0]["accuracy"]:
        table.append((metric, *(f"{model['accuracy'][metric]:.4f}" for model in models)))
        if any("accuracy_quantized_inputs" in model for model in models):
            simulated = (model.get("accuracy_quantized_inputs", {}).get(metric) for model in models)
            name = f"{metric}, inputs quantized too"
            table.append((name, *("" if value is None else f"{value:.4f}" for value in simulated)))
    for part in ("encoder", "model"):
        sizes = [model["size"][part] for model in models]
        who = "encoder linears" if part == "encoder" else "whole model"
        table += [
            (f"{who}: parameters", *(f"{size['parameters']:,}" for size in sizes)),
            (f"{who}: non-zeros", *(f"{size['nonzeros']:,}" for size in sizes)),
            (f"{who}: fp32 dense", *(_megabytes(size["dense_bytes"]) for size in sizes)),
            (f"{who}: values + index", *(_compressed(size) for size in sizes)),
        ]
    for batch in models[0]["latency_ms"]:
        name = f"latency, batch {batch} x {results['data']['max_length']} tokens"
        table.append((name, *(f"{model['latency_ms'][batch]:.1f} ms" for model in models)))
    return table


def markdown(results: dict[str, Any]) -> str:
    """The report as Markdown."""
    names = list(results["models"])
    machine = results["machine"]
    lines = [
        f"# Report of {results['run']}",
        "",
        f"Validation rows: {results['data']['validation_rows']}.",
        f"Made by `{results['command']}` from `{results['config']}`",
        f"on {machine['device']}, {machine['threads']} threads; "
        + ", ".join(f"{name} {value}" for name, value in machine.items() if name not in ("device", "threads"))
        + ".",
        "",
        "| | " + " | ".join(names) + " |",
        "|---" * (len(names) + 1) + "|",
        *("| " + " | ".join(row) + " |" for row in rows(results)),
        "",
        *notes(results),
    ]
    if results["sparsity"]:
        lines += ["", "![Sparsity of each matrix](sparsity.png)"]
    return "\n".join(lines) + "\n"


def notes(results: dict[str, Any]) -> list[str]:
    """What a reader must know to read the figures rightly."""
    lines = [
        "- *values + index*: non-zeros in their stored type, one bit per position where a matrix is stored sparsely, "
        "and scales; no general-purpose compression. The exported folder itself stores fp32 with zeros.",
        "- *latency*: eager PyTorch, median; zeros and int8 grids do not make dense kernels faster.",
    ]
    if any("accuracy_quantized_inputs" in model for model in results["models"].values()):
        lines += [
            "- *inputs quantized too*: int8 weights and quantized layer inputs, as an integer runtime computes; "
            "the row above it is the exported folder, whose inputs are fp32.",
        ]
    return lines


def print_table(results: dict[str, Any], folder: Path) -> None:
    """The same in the terminal."""
    table = Table(title=Text(f"Report of {results['run']}"), title_justify="left")
    table.add_column("")
    for name in results["models"]:
        table.add_column(name, justify="right")
    for row in rows(results):
        table.add_row(*row)
    console = Console()
    console.print(table)
    console.print("\n".join(notes(results)), style="dim", markup=False)
    console.print(f"Saved as {folder / 'report.md'} and report.json", markup=False)


def _megabytes(count: int) -> str:
    return f"{count / 1e6:.2f} MB"


def _compressed(size: dict[str, int]) -> str:
    ratio = size["dense_bytes"] / max(size["compressed_bytes"], 1)
    alone = size["dense_bytes"] / max(size["value_bytes"], 1)
    if size["compressed_bytes"] == size["dense_bytes"]:
        return _megabytes(size["compressed_bytes"])
    return f"{_megabytes(size['compressed_bytes'])} ({ratio:.1f}x; {alone:.1f}x without index)"
