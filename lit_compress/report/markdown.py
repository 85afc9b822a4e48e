"""A report's figures as Markdown and as a table in the terminal; nothing here is measured or made up."""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from lit_compress.report.figures import FIGURES
from lit_compress.report.phrasing import metric_title, ratio
from lit_compress.report.section import Section
from lit_compress.report.sections import sections
from lit_compress.report.summary import basis, cautions, reference, verdict_lines

__all__ = ["cell", "markdown", "print_table", "rows", "section", "table"]


def rows(results: dict[str, Any]) -> list[tuple[str, ...]]:
    """One row per figure: its name, then its value for each model."""
    models = list(results["models"].values())
    found: list[tuple[str, ...]] = []
    for metric in models[0]["accuracy"]:
        found.append((metric, *(f"{model['accuracy'][metric]:.4f}" for model in models)))
        if any("accuracy_quantized_inputs" in model for model in models):
            simulated = (model.get("accuracy_quantized_inputs", {}).get(metric) for model in models)
            name = f"{metric}, inputs quantized too"
            found.append((name, *("" if value is None else f"{value:.4f}" for value in simulated)))
    whose, full = reference(results)
    for part in ("encoder", "model"):
        sizes = [model["size"][part] for model in models]
        who = "encoder linears" if part == "encoder" else "whole model"
        found += [
            (f"{who}: parameters", *(f"{size['parameters']:,}" for size in sizes)),
            (f"{who}: non-zeros", *(f"{size['nonzeros']:,}" for size in sizes)),
            (f"{who}: in fp32", *(_megabytes(size["dense_bytes"]) for size in sizes)),
            (f"{who}: values + index", *(_megabytes(size["compressed_bytes"]) for size in sizes)),
        ]
        if any(size["compressed_bytes"] != full[part] for size in sizes):
            found.append((f"{who}: against {whose}", *(_smaller(full[part], size) for size in sizes)))
        if any(size["dense_bytes"] != full[part] for size in sizes):
            found.append((f"{who}: against own fp32", *(_smaller(size["dense_bytes"], size) for size in sizes)))
    for batch in models[0]["latency_ms"]:
        name = f"latency, batch {batch} x {results['data']['max_length']} tokens"
        found.append((name, *(f"{model['latency_ms'][batch]:.1f} ms" for model in models)))
    return found


def markdown(results: dict[str, Any], pictures: Sequence[str] | None = None) -> str:
    """The report as Markdown.

    Args:
        results: of :func:`lit_compress.report.measure.measure_run`.
        pictures: names of the figures that are next to the file as PNG; the sparsity alone by default.

    """
    if pictures is None:
        pictures = ["sparsity"] if results["sparsity"] else []
    names = list(results["models"])
    machine = results["machine"]
    lines = [
        f"# Report of {cell(results['run'])}",
        "",
        f"Validation examples: {results['data']['validation_rows']}.",
        f"Made by `{results['command']}` from `{results['config']}`",
        f"on {machine['device']}, {machine['threads']} threads; "
        + ", ".join(f"{name} {value}" for name, value in machine.items() if name not in ("device", "threads"))
        + ".",
        "",
        *table(("", *names), rows(results)),
        "",
        *notes(results),
    ]
    parts = sections(results)
    shown = {name for part in parts for name in part.figures}
    for part in parts:
        lines += section(part, pictures)
    lines += [line for name in pictures if name not in shown for line in ("", f"![{FIGURES[name][0]}]({name}.png)")]
    return "\n".join(lines) + "\n"


def section(part: Section, pictures: Sequence[str] = ()) -> list[str]:
    """A part of a report as lines of Markdown."""
    lines = ["", f"## {part.title}", ""]
    lines += [f"- {cell(line)}" for line in part.lines]
    for name in part.figures:
        if name in pictures:
            lines += ["", f"![{FIGURES[name][0]}]({name}.png)"]
    for entry in part.tables:
        body = table(entry.header, entry.rows)
        summary = ["", "<details>", f"<summary>{cell(entry.summary)}</summary>"]
        lines += [*summary, "", *body, "", "</details>"] if entry.summary else ["", *body]
    for name, text in part.code:
        # A fence longer than any in the text, which then cannot end it.
        fence = "`" * max(3, 1 + max(map(len, re.findall("`+", text)), default=0))
        lines += ["", f"{name}:", "", fence, text.rstrip("\n"), fence]
    return lines


def table(header: Sequence[str], body: Sequence[Sequence[str]]) -> list[str]:
    """Lines of a Markdown table."""
    return [
        "|" + "".join(f" {cell(name)} |" if name else " |" for name in header),
        "|---" * len(header) + "|",
        *("| " + " | ".join(map(cell, row)) + " |" for row in body),
    ]


def cell(text: str) -> str:
    r"""A text that is not markup, whatever is in it: names of labels and files come from elsewhere.

    Example:
        >>> cell("a|b <script>")
        'a\\|b &lt;script>'

    """
    return " ".join(text.split()).replace("&", "&amp;").replace("<", "&lt;").replace("|", "\\|")


def notes(results: dict[str, Any]) -> list[str]:
    """What a reader must know to read the figures rightly."""
    lines = [
        "- *values + index*: non-zeros in their stored type, one bit per position where a matrix is stored sparsely, "
        "and scales; no general-purpose compression. The exported folder itself stores fp32 with zeros.",
        "- *against ... fp32*: how many times smaller values + index are, in brackets the values alone.",
        "- *latency*: eager PyTorch, median; zeros and simulated int8 do not make dense kernels faster.",
    ]
    if any("accuracy_quantized_inputs" in model for model in results["models"].values()):
        lines += [
            "- *inputs quantized too*: int8 weights and quantized layer inputs, as an integer runtime computes; "
            "the row above it is the exported folder, whose inputs are fp32.",
        ]
    if (title := metric_title(results, "f1")) != "f1":
        lines.append(f"- *f1*: {cell(title.removeprefix('f1 '))}, the second of the two labels.")
    return lines


def print_table(results: dict[str, Any], folder: Path) -> None:
    """The same in the terminal."""
    shown = Table(title=Text(f"Report of {results['run']}"), title_justify="left")
    shown.add_column("")
    for name in results["models"]:
        shown.add_column(name, justify="right")
    for row in rows(results):
        shown.add_row(*row)
    console = Console()
    console.print(shown)
    said = [*verdict_lines(results), basis(results), *cautions(results)] if "comparison" in results else []
    for line in said:
        console.print(line, markup=False)
    console.print("\n".join(notes(results)), style="dim", markup=False)
    console.print(f"Saved as {folder / 'report.html'}, report.md and report.json", markup=False)


def _megabytes(count: int) -> str:
    return f"{count / 1e6:.2f} MB"


def _smaller(full: int, size: Mapping[str, int]) -> str:
    """How many times smaller than so many bytes, and how many the values alone; empty for as large."""
    if size["compressed_bytes"] == full:
        return ""
    alone = f" (values {ratio(full, size['value_bytes'])})" if size["index_bytes"] else ""
    return f"{ratio(full, size['compressed_bytes'])}{alone}"
