"""Runs the small recipes on real data, over seeds, and writes the table of docs/results.md from what came out.

    python -m tools.reproduce --data <folder with the data sets> --only poor_mans_bert

Every figure is of a run that happened; a run that is finished already is not repeated. A dense model is fine-tuned once
per data set and seed and is the teacher of all recipes.
"""

import csv
import statistics
import subprocess
from collections import defaultdict
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import yaml
from jsonargparse import auto_cli

from lit_compress.recipe import recipe
from lit_compress.report.compare import compare
from lit_compress.report.headline import own_name, reference
from lit_compress.report.size import sparsity_of
from lit_compress.tasks import MaskedWordsTask, QuestionAnsweringTask, Task

ROOT = Path(__file__).parents[1]
PLAN = ROOT / "tools" / "reproduce.yaml"
RESULTS = ROOT / "tools" / "results.csv"
PAGE = ROOT / "docs" / "results.md"
BEGIN, END = "<!-- reproduce: begin -->", "<!-- reproduce: end -->"
TEACHER = "teacher"
MASKED_WORDS = "MaskedLanguageModeling"
# Whose scores are no shares of 1.
TASKS: dict[str, type[Task]] = {MASKED_WORDS: MaskedWordsTask, "QuestionAnswering": QuestionAnsweringTask}


def main(
    data: Path,
    seeds: Sequence[int] = (42,),
    only: Sequence[str] = (),
    datasets: Sequence[str] = (),
    runs: Path = Path("runs/reproduce"),
    table: bool = True,
    dry_run: bool = False,
) -> None:
    """Run recipes by data sets by seeds, add a row for each stage to the CSV, and rewrite the table.

    Args:
        data: folder that the paths in reproduce.yaml are relative to.
        seeds: one run for each.
        only: names of recipes; all by default.
        datasets: names of data sets; all of a recipe's by default.
        runs: folder of the runs.
        table: rewrite the table in docs/results.md.
        dry_run: print the plan.

    """
    plan = yaml.safe_load(PLAN.read_text())
    for name, entry in plan["recipes"].items():
        for dataset in entry["data"]:
            if (only and name not in only) or (datasets and dataset not in datasets):
                continue
            for seed in seeds:
                _run(name, plan, dataset, data, seed, runs, dry_run)
    if table and not dry_run:
        write_table(RESULTS, PAGE, plan)


def _run(name: str, plan: dict[str, Any], dataset: str, data: Path, seed: int, runs: Path, dry: bool) -> None:
    """One recipe on one data set: what is shared first, the rest of its stages after it."""
    folders = {"data:": str(data) + "/", "runs:": str(runs) + "/", "{seed}": f"seed{seed}"}
    stages = _replaced(stages_of(plan, name, dataset), folders)
    groups: dict[Path, dict[str, Any]] = defaultdict(dict)
    for stage, settings in stages.items():
        groups[_place(stage, settings, name, plan, dataset)][stage] = settings | {"seed_everything": seed}
    made: dict[str, str] = {}
    for place, group in groups.items():
        folder = runs / place.parts[0] / f"seed{seed}" / Path(*place.parts[1:])
        folder.mkdir(parents=True, exist_ok=True)
        file = folder.parent / f"{place.name}.yaml" if place.parts[1:] else folder / f"{TEACHER}.yaml"
        file.write_text(yaml.safe_dump({"run": str(folder), "stages": _replaced(group, made)}, sort_keys=False))
        recipe(str(file), dry_run=dry)
        made |= {f"stage:{stage}": str(folder / stage / "model") for stage in group}
        if not dry and place.parts[1:]:
            finished = {stage: (folder / stage, given.get("dense")) for stage, given in group.items()}
            _append(name, place.parts[0], seed, compare(finished, folder), len(group))


def _place(stage: str, settings: dict[str, Any], name: str, plan: dict[str, Any], dataset: str) -> Path:
    """Where a stage runs, the seed apart: the dense model with its data set, masked words once for all tasks."""
    if stage == TEACHER:
        return Path(dataset)
    upstream = settings["data"]["class_path"] == MASKED_WORDS
    return Path(plan["recipes"][name].get("upstream", dataset) if upstream else dataset) / name


def stages_of(plan: dict[str, Any], name: str, dataset: str) -> dict[str, dict[str, Any]]:
    """Settings of the stages of one recipe on one data set, as the plan changes them.

    Args:
        plan: content of reproduce.yaml.
        name: recipe.
        dataset: data set.

    Raises:
        KeyError: the plan changes a stage that the recipe does not have.

    """
    entry = plan["recipes"][name]
    path = ROOT / entry["recipe"]
    own, upstream = plan["data"][dataset], plan["data"][entry.get("upstream", dataset)]
    stages: dict[str, dict[str, Any]] = yaml.safe_load(path.read_text())["stages"]
    for stage, given in stages.items():
        if "config" in given:
            # One of the package is meant wherever the file is.
            given["config"] = [
                file if file.startswith("@") else str((path.parent / file).resolve()) for file in given["config"]
            ]
        source = upstream if given["data"]["class_path"] == MASKED_WORDS else own
        stages[stage] = given | {"data": source["data"]}
    for changes in ({TEACHER: own.get(TEACHER) or {}}, entry.get("stages") or {}, entry["data"][dataset] or {}):
        for stage, change in changes.items():
            if change is None:
                del stages[stage]
            elif stage in stages or stage != TEACHER:
                stages[stage] = _merged(stages[stage], change)
    return stages


def _merged(base: dict[str, Any], over: dict[str, Any]) -> dict[str, Any]:
    merged = dict(base)
    for key, value in over.items():
        both = isinstance(value, dict) and isinstance(merged.get(key), dict)
        merged[key] = _merged(merged[key], value) if both else value
    return merged


def _replaced(value: Any, words: dict[str, str]) -> Any:
    """The same settings with words in them replaced: the start of a path, the seed, the model of a stage."""
    if isinstance(value, dict):
        return {key: _replaced(inner, words) for key, inner in value.items()}
    if isinstance(value, list):
        return [_replaced(inner, words) for inner in value]
    if isinstance(value, str):
        if value.startswith("stage:"):
            return words.get(value, value)
        for old, new in words.items():
            value = value.replace(old, new)
    return value


def _append(name: str, dataset: str, seed: int, results: dict[str, dict[str, Any]], count: int) -> None:
    """Rows of one recipe run; rows of an earlier run of the same recipe, data set and seed are replaced."""
    assert len(results) == count
    rows = [row(name, stage, dataset, seed, result) for stage, result in results.items()]
    kept = [
        old for old in read_rows(RESULTS) if (old["recipe"], old["data"], old["seed"]) != (name, dataset, str(seed))
    ]
    everything = sorted([*kept, *rows], key=lambda r: (r["recipe"], r["data"], int(r["seed"])))
    with RESULTS.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(everything)


def row(name: str, stage: str, dataset: str, seed: int, result: dict[str, Any]) -> dict[str, Any]:
    """One line of the CSV from one report."""
    models = result["models"]
    own, dense = models[own_name(result)], models.get("dense")
    metric, value = next(iter(own["accuracy"].items()))
    encoder, whole = own["size"]["encoder"], own["size"]["model"]
    _, full = reference(result)  # of the original shape: physically removed parts count as saved
    latency = {b: dense["latency_ms"][b] / own["latency_ms"][b] if dense else 1.0 for b in own["latency_ms"]}
    machine = result["machine"]
    return {
        "recipe": name,
        "stage": stage,
        "data": dataset,
        "seed": seed,
        "metric": metric,
        "value": round(value, 5),
        "dense": round(dense["accuracy"][metric], 5) if dense else "",
        "encoder_sparsity": round(sparsity_of(encoder), 4),
        "encoder_compression": round(full["encoder"] / max(encoder["compressed_bytes"], 1), 2),
        "model_compression": round(full["model"] / whole["compressed_bytes"], 2),
        "parameters": whole["parameters"],
        **{f"speedup_batch_{batch}": round(ratio, 2) for batch, ratio in latency.items()},
        "machine": f"{machine['device']}, {machine['threads']} threads, torch {machine['torch']}",
        "date": datetime.now(UTC).date().isoformat(),
        "commit": _commit(),
        "command": f"python -m tools.reproduce --data data --only '[{name}]' --seeds '[{seed}]'",
    }


def read_rows(path: Path) -> list[dict[str, str]]:
    """All lines of the CSV; none when there is no file yet."""
    if not path.is_file():
        return []
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def write_table(results: Path, page: Path, plan: dict[str, Any]) -> None:
    """Rewrite the part of a page between the two marks from the CSV, means over seeds."""
    groups: dict[tuple[str, str, str], list[dict[str, str]]] = defaultdict(list)
    for line in read_rows(results):
        groups[line["recipe"], line["data"], line["stage"]].append(line)
    text = page.read_text()
    head, rest = text.split(BEGIN)
    _, tail = rest.split(END)
    page.write_text(f"{head}{BEGIN}\n{_table(groups, plan)}{END}{tail}")


def _table(groups: dict[tuple[str, str, str], list[dict[str, str]]], plan: dict[str, Any]) -> str:
    columns = (
        "data",
        "stage",
        "metric",
        "value",
        "dense",
        "of dense",
        "points lost",
        "parameters",
        "sparsity",
        "encoder",
        "model",
        "speed",
        "seeds",
    )
    out = []
    for name, entry in plan["recipes"].items():
        own = {key: lines for key, lines in groups.items() if key[0] == name}
        out += [f"### {entry['title']}", "", " ".join(entry["claim"].split()), ""]
        if not own:
            out += ["Not measured.", ""]
            continue
        out += ["| " + " | ".join(columns) + " |", "|---" * len(columns) + "|"]
        for (_, dataset, stage), lines in own.items():
            value = statistics.mean(float(line["value"]) for line in lines)
            dense = statistics.mean(float(line["dense"] or line["value"]) for line in lines)
            task = TASKS.get(plan["data"][dataset]["data"]["class_path"], Task)()
            points = task.points(lines[0]["metric"]) if lines[0]["dense"] else None
            cells = (
                dataset,
                stage,
                lines[0]["metric"],
                _spread([float(line["value"]) for line in lines]),
                f"{dense:.4f}" if lines[0]["dense"] else "",
                f"{value / dense:.1%}" if points and dense else "",
                f"{points * (dense - value):.2f}" if points else "",
                f"{int(lines[0]['parameters']) / 1e6:.1f} M",
                f"{float(lines[0]['encoder_sparsity']):.0%}",
                f"{float(lines[0]['encoder_compression']):.1f}x",
                f"{float(lines[0]['model_compression']):.1f}x",
                f"{statistics.median(float(line['speedup_batch_1']) for line in lines):.2f}x",
                ", ".join(line["seed"] for line in lines),
            )
            out.append("| " + " | ".join(cells) + " |")
        first = next(iter(own.values()))[0]
        out += ["", f"`{first['command']}` on {first['machine']}.", ""]
    return "\n".join(out)


def _spread(values: list[float]) -> str:
    mean = f"{statistics.mean(values):.4f}"
    return mean if len(values) == 1 else f"{mean} ± {statistics.stdev(values):.4f}"


def _commit() -> str:
    done = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    return done.stdout.strip()


if __name__ == "__main__":
    auto_cli(main, as_positional=False)
