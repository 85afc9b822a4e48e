"""Rows of results.csv, and the tables of docs/results.md that are made of them."""

import csv
import statistics
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from lit_compress.files import atomic_file
from lit_compress.tasks import MaskedWordsTask, QuestionAnsweringTask, Task
from tools.reproduce_plan import MASKED_WORDS, MINILM

__all__ = ["FIELDS", "KEY", "add_rows", "read_rows", "write_table"]

# Whose scores are no shares of 1.
TASKS: dict[str, type[Task]] = {MASKED_WORDS: MaskedWordsTask, "QuestionAnswering": QuestionAnsweringTask}
# From the fastest for 8-bit integers to the slowest.
_INSTRUCTIONS = ("amx_int8", "avx512_vnni", "avx_vnni", "avx512f", "avx2")
_PROCESSOR = ("device", "instructions")
# What tells one row from another.
KEY = ("model", "recipe", "data", "stage", "seed", "limit", "max_steps")
FIELDS = (
    *("recipe", "stage", "data", "seed", "metric", "value", "dense", "encoder_sparsity", "encoder_compression"),
    *("model_compression", "parameters", "speedup_batch_1", "speedup_batch_32", "machine", "date", "commit", "command"),
    *("model", "device", "runtime", "majority", "limit", "max_steps", "minutes"),
    *("int8_value", "int8_speedup", "int8_bytes", "difference_low", "difference_high", "instructions"),
)


def add_rows(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Write rows into the CSV at once; an earlier row of the same run is replaced."""
    if not rows:
        return
    made = [{field: str(line.get(field, "")) for field in FIELDS} for line in rows]
    keys = {tuple(line[key] for key in KEY) for line in made}
    kept = [old for old in read_rows(path) if tuple(old[key] for key in KEY) not in keys]
    # Stages keep the order in which they were measured.
    everything = sorted([*kept, *made], key=lambda r: (r["model"], r["recipe"], r["data"], int(r["seed"])))
    with atomic_file(path) as staging, staging.open("w", newline="") as file:
        writer = csv.DictWriter(file, FIELDS)
        writer.writeheader()
        writer.writerows(everything)


def read_rows(path: Path) -> list[dict[str, str]]:
    """All lines of the CSV, columns that it does not have yet empty; none when there is no file yet."""
    if not path.is_file():
        return []
    with path.open(newline="") as file:
        return [dict.fromkeys(FIELDS, "") | line for line in csv.DictReader(file)]


def write_table(results: Path, page: Path, plan: dict[str, Any], model: str = MINILM) -> None:
    """Rewrite the part of a page between the two marks of a model from the CSV, means over seeds."""
    groups: dict[tuple[str, ...], list[dict[str, str]]] = defaultdict(list)
    for line in read_rows(results):
        if line["model"] == model:
            given = {"rows": line["limit"], "steps": line["max_steps"]}
            cuts = ", ".join(f"{int(count):,} {what}" for what, count in given.items() if count)
            stage = f"{line['stage']} ({cuts})" if cuts else line["stage"]
            groups[line["recipe"], line["data"], stage].append(line)
    name = "reproduce" if model == MINILM else f"reproduce {model}"
    begin, end = f"<!-- {name}: begin -->", f"<!-- {name}: end -->"
    text = page.read_text()
    head, rest = text.split(begin)
    _, tail = rest.split(end)
    page.write_text(f"{head}{begin}\n{_table(groups, plan)}{end}{tail}")


def _value(lines: Sequence[Mapping[str, str]]) -> str:
    """The mean and the spread over the seeds; said when one answer to everything would do as well."""
    values, majority = [float(line["value"]) for line in lines], lines[0].get("majority")
    if majority and not statistics.mean(values) > float(majority):  # NaN is not above it either
        return f"{_spread(values)}, **no better than one answer to all, {float(majority):.4f}**"
    return _spread(values)


def _table(groups: Mapping[tuple[str, ...], list[dict[str, str]]], plan: dict[str, Any]) -> str:
    columns = (
        "data",
        "stage",
        "metric",
        "value",
        "dense",
        "of dense",
        "points lost (95 %, or ± SD)",
        "parameters",
        "sparsity",
        "encoder",
        "model",
        "speed, eager",
        "int8",
        "int8 of dense",
        "int8 speed",
        "int8 file",
        "instructions",
        "seed",
        "date",
    )
    out, left = [], []
    for name, entry in plan["recipes"].items():
        own = {key: lines for key, lines in groups.items() if key[0] == name}
        if not own:
            left.append(entry["title"])
            continue
        out += [f"### {entry['title']}", "", " ".join(entry["claim"].split()), ""]
        out += ["| " + " | ".join(columns) + " |", "|---" * len(columns) + "|"]
        for (_, dataset, stage), lines in own.items():
            value = statistics.mean(float(line["value"]) for line in lines)
            dense = statistics.mean(float(line["dense"] or line["value"]) for line in lines)
            task = TASKS.get(plan["data"][dataset]["data"]["class_path"], Task)()
            points = task.points(lines[0]["metric"]) if lines[0]["dense"] else None
            int8 = _mean(lines, "int8_value")
            # Speeds are those of one processor: others have other instructions for integers.
            alike = [line for line in lines if all(line.get(key) == lines[0].get(key) for key in _PROCESSOR)]
            cells = (
                dataset,
                stage,
                lines[0]["metric"],
                _value(lines),
                f"{dense:.4f}" if lines[0]["dense"] else "",
                f"{value / dense:.1%}" if points and dense else "",
                f"{points * (dense - value):.2f}{_interval(lines, points)}" if points else "",
                _number(lines[0]["parameters"], lambda count: f"{count / 1e6:.1f} M"),
                _number(lines[0]["encoder_sparsity"], "{:.0%}".format),
                _number(lines[0]["encoder_compression"], "{:.1f}x".format),
                # Of a family it would be that of the exported file, which has a column of its own.
                "" if "family" in entry else _number(lines[0]["model_compression"], "{:.1f}x".format),
                _number(_mean(alike, "speedup_batch_1"), "{:.2f}x".format),
                _number(int8, "{:.4f}".format),
                f"{float(int8) / dense:.1%}" if int8 and points and dense else "",
                _number(_mean(alike, "int8_speedup"), "{:.2f}x".format),
                _number(lines[0].get("int8_bytes", ""), lambda count: f"{count / 1e6:.1f} MB"),
                _widest(lines[0].get("instructions", "")),
                ", ".join(line["seed"] for line in lines),
                max(line.get("date", "") for line in lines),
            )
            out.append("| " + " | ".join(cells) + " |")
        made: dict[str, list[str]] = {}  # by command and machine
        for (_, dataset, _), lines in own.items():
            seeds = ", ".join(line["seed"] for line in lines)
            command = lines[0]["command"].replace(f"--seeds '[{lines[0]['seed']}]'", f"--seeds '[{seeds}]'")
            made.setdefault(f"`{command}` on {lines[0]['machine']}", []).append(dataset)
        out += ["", *(f"{how}: {', '.join(dict.fromkeys(datasets))}.\n" for how, datasets in made.items())]
    if left:
        out += [f"Not measured yet: {'; '.join(left)}.", ""]
    return "\n".join(out)


def _interval(lines: Sequence[Mapping[str, str]], points: float) -> str:
    """The paired interval of one seed's loss, or the spread of the losses of several."""
    if len(lines) > 1:
        return f" ± {statistics.stdev(points * (float(line['dense']) - float(line['value'])) for line in lines):.2f}"
    if not lines[0].get("difference_low"):
        return ""
    low, high = (-points * float(lines[0][f"difference_{end}"]) for end in ("high", "low"))
    return f" ({low:.2f} to {high:.2f})"


def _mean(lines: Sequence[Mapping[str, str]], column: str) -> str:
    """The mean over the seeds that have it; empty where none has."""
    found = [float(line[column]) for line in lines if line.get(column)]
    return str(statistics.mean(found)) if found else ""


def _widest(instructions: str) -> str:
    """The set that says most about the speed of integers; empty where the row says nothing."""
    return next((name for name in _INSTRUCTIONS if name in instructions.split()), "")


def _number(text: str, write: Callable[[float], str]) -> str:
    return write(float(text)) if text else ""


def _spread(values: list[float]) -> str:
    mean = f"{statistics.mean(values):.4f}"
    return mean if len(values) == 1 else f"{mean} ± {statistics.stdev(values):.4f}"
