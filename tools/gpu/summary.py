"""What was found on a GPU, in Markdown."""

import csv
import json
from collections.abc import Iterable
from functools import partial
from pathlib import Path
from typing import Any

from tools.bench.targets import ENCODERS, GELU, HALF_FULL, MANY_ROWS, PRODUCTS, TALL_BLOCKS

__all__ = ["summary"]

SHAPES = ("1x128", "32x128", "256x128", "64x384")
WHICH = ("median", "min", "max")
NOT_MEASURED = "not measured"


def summary(output: Path, ended: list[dict[str, Any]]) -> str:
    """Machine, targets, every row, and how the steps ended.

    Args:
        output: folder of the results.
        ended: of each step, in order.

    """
    found = rows(output)
    return "\n\n".join(
        [
            _machine(output),
            "## Targets\n\nTimes as fast as the fastest fair bf16 model, BERT-base:\n\n" + encoders(found),
            f"Time of products at {MANY_ROWS:,} rows, divided by that of the other:\n\n" + products(found),
            "## Everything measured\n\n" + _everything(found),
            "## Steps\n\n" + _steps(ended),
        ]
    )


def rows(output: Path) -> list[dict[str, str]]:
    """The results, the last of each figure, with its ``dtype`` where it has one."""
    path = output / "results.csv"
    if not path.exists():
        return []
    with path.open(newline="") as file:
        found = [row | {"dtype": json.loads(row["settings"]).get("dtype", "")} for row in csv.DictReader(file)]
    return list({(row["benchmark"], row["case"], row["baseline"], row["dtype"]): row for row in found}.values())


def encoders(found: list[dict[str, str]]) -> str:
    """The table of targets for whole encoders; a second line where batches are half full is against padded bf16."""
    lines = [["", *SHAPES]]
    lines += [
        [name, *(_fast(found, f"{name}, {shape}, fill 1", "bf16", goals.get(shape)) for shape in SHAPES)]
        for name, goals in ENCODERS.items()
    ]
    for kind in ("unpadded bf16", "padded bf16"):
        goals = HALF_FULL if kind == "unpadded bf16" else {}
        cases = [_fast(found, f"8 bit, {shape}, fill 0.5", kind, goals.get(shape)) for shape in SHAPES]
        lines.append([f"half full, against {kind}", *cases])
    return _table(lines)


def products(found: list[dict[str, str]]) -> str:
    """The table of targets for products."""
    lines = [["", "up", "down"]]
    for dtype, bounds in PRODUCTS.items():
        for case, bound in bounds.items():
            cells = [_slow(found, f"{name} {MANY_ROWS} {case}", "_scaled_mm", dtype, bound) for name in ("up", "down")]
            lines.append([f"{dtype} {'with GELU and rounding' if case == GELU else case} / _scaled_mm", *cells])
        cells = [
            _slow(found, f"{name} {MANY_ROWS} tall_blocks 50%", "dense 0%", dtype, TALL_BLOCKS)
            for name in ("up", "down")
        ]
        lines.append([f"{dtype} tall blocks 50 % / dense", *cells])
    return _table(lines)


def _fast(found: list[dict[str, str]], case: str, kind: str, goal: float | None) -> str:
    """``1.62 / 1.5 ok``: how many times as fast, the goal, and whether it was reached."""
    fitting = [row for row in found if row["case"] == case and row["baseline"].startswith(kind)]
    if not fitting:
        return f"{NOT_MEASURED}{f' / {goal:g}' if goal else ''}"
    speed = 1 / float(fitting[-1]["ratio_median"])
    return f"{speed:.2f}" + ("" if goal is None else f" / {goal:g} {'ok' if speed >= goal else 'missed'}")


def _slow(found: list[dict[str, str]], case: str, baseline: str, dtype: str, bound: float) -> str:
    """``1.03 / 1.05 ok``: time divided by the fastest that the name begins with, the bound, and whether it holds."""
    ratios = [
        float(row["ratio_median"])
        for row in found
        if row["case"] == case and row["baseline"].startswith(baseline) and row["dtype"] == dtype
    ]
    if not ratios:
        return f"{NOT_MEASURED} / {bound:g}"
    return f"{max(ratios):.2f} / {bound:g} {'ok' if max(ratios) <= bound else 'missed'}"


def _machine(output: Path) -> str:
    path = output / "machine.json"
    if not path.exists():
        return "# Results\n\nThe machine was not looked at."
    here = json.loads(path.read_text())
    versions = ", ".join(f"{name} {version}" for name, version in here["versions"].items())
    missing = f" Missing: {', '.join(here['missing'])}." if here["missing"] else ""
    return f"# {here['device']}\n\nCUDA {here['cuda']}, Python {here['python']}, {versions}.{missing}"


def _everything(found: list[dict[str, str]]) -> str:
    lines = [["benchmark", "case", "type", "divided by", "time, median", *WHICH[1:]]]
    lines += [
        [*(row[key] for key in ("benchmark", "case", "dtype", "baseline")), *map(partial(_number, row), WHICH)]
        for row in found
    ]
    throughput = [line for row in found if row["benchmark"] == "hf_trainer" for line in _throughput(row)]
    return "\n\n".join([_table(lines), *throughput])


def _throughput(row: dict[str, str]) -> Iterable[str]:
    for name, milliseconds in json.loads(row["settings"])["ms"].items():
        yield f"Training with {name}: {1000 / milliseconds:.1f} steps a second."


def _number(row: dict[str, str], which: str) -> str:
    return f"{float(row[f'ratio_{which}']):.3f}"


def _steps(ended: list[dict[str, Any]]) -> str:
    lines = [["step", "status", "seconds", ""]]
    lines += [
        [step["step"], step["status"], str(step.get("seconds", "")), step["error"].replace("|", "/")] for step in ended
    ]
    return _table(lines)


def _table(lines: list[list[str]]) -> str:
    head, *body = (f"| {' | '.join(line)} |" for line in lines)
    return "\n".join([head, "|---" * len(lines[0]) + "|", *body])
