"""Runs the small recipes on real data, over seeds, and writes the table of docs/results.md from what came out.

    python -m tools.reproduce --data <folder with the data sets> --only poor_mans_bert

Every figure is of a run that happened; a run that is finished already is not repeated. A dense model is fine-tuned once
per data set and seed and is the teacher of all recipes.
"""

import csv
import shlex
import statistics
import subprocess
import sys
from collections import defaultdict
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import yaml
from jsonargparse import auto_cli

from lit_compress.recipe import recipe
from lit_compress.report.compare import compare

ROOT = Path(__file__).parents[1]
PLAN = ROOT / "tools" / "reproduce.yaml"
RESULTS = ROOT / "tools" / "results.csv"
PAGE = ROOT / "docs" / "results.md"
BEGIN, END = "<!-- reproduce: begin -->", "<!-- reproduce: end -->"
TEACHER = "teacher"


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
                _run(name, entry, dataset, plan, data, seed, runs, dry_run)
    if table and not dry_run:
        write_table(RESULTS, PAGE, plan)


def _run(
    name: str, entry: dict[str, Any], dataset: str, plan: dict[str, Any], data: Path, seed: int, runs: Path, dry: bool
) -> None:
    """One recipe on one data set: the shared teacher first, then the other stages."""
    settings = _with_paths(plan["data"][dataset], data)
    content = yaml.safe_load((ROOT / entry["recipe"]).read_text())
    place = runs / dataset / f"seed{seed}"
    place.mkdir(parents=True, exist_ok=True)
    teacher, stages = {}, {}
    for stage, given in content["stages"].items():
        given = dict(given)
        if "config" in given:
            given["config"] = [str(((ROOT / entry["recipe"]).parent / file).resolve()) for file in given["config"]]
        given = _merged(given, (entry.get("stages") or {}).get(stage, {}) | {"seed_everything": seed})
        if given["data"]["class_path"] == "MaskedLanguageModeling":
            given["data"] = _with_paths(given["data"], data)
        else:
            given["data"] = settings["data"]
            given = _merged(given, settings.get("students", {}) if stage != TEACHER else {})
        (teacher if stage == TEACHER else stages)[stage] = given
    if teacher:
        teacher[TEACHER] = _merged(teacher[TEACHER], settings.get(TEACHER, {}))
        shared = _recipe_file(place / "teacher.yaml", place, teacher)
        recipe(str(shared), dry_run=dry)
        stages = _replaced(stages, f"stage:{TEACHER}", str(place / TEACHER / "model"))
    file = _recipe_file(place / f"{name}.yaml", place / name, stages)
    recipe(str(file), dry_run=dry)
    if not dry:
        finished = {stage: (place / name / stage, given.get("dense")) for stage, given in stages.items()}
        _append(name, dataset, seed, compare(finished, place / name), len(stages))


def _with_paths(section: Any, folder: Path) -> Any:
    """The same settings, with the files of the data set below the folder."""
    if isinstance(section, dict):
        return {
            key: str(folder / value) if key.endswith("_file") and not str(value).startswith("package:") else
            _with_paths(value, folder)
            for key, value in section.items()
        }  # fmt: skip
    return section


def _merged(base: dict[str, Any], over: dict[str, Any]) -> dict[str, Any]:
    merged = dict(base)
    for key, value in over.items():
        both = isinstance(value, dict) and isinstance(merged.get(key), dict)
        merged[key] = _merged(merged[key], value) if both else value
    return merged


def _replaced(value: Any, old: str, new: str) -> Any:
    if isinstance(value, dict):
        return {key: _replaced(inner, old, new) for key, inner in value.items()}
    if isinstance(value, list):
        return [_replaced(inner, old, new) for inner in value]
    return new if value == old else value


def _recipe_file(path: Path, run: Path, stages: dict[str, Any]) -> Path:
    path.write_text(yaml.safe_dump({"run": str(run), "stages": stages}, sort_keys=False))
    return path


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
    own, dense = models.get("compressed") or models["model"], models.get("dense")
    metric, value = next(iter(own["accuracy"].items()))
    encoder, whole = own["size"]["encoder"], own["size"]["model"]
    # What a dense model of the original shape would take: physically removed parts count as saved.
    reference = (dense or own)["size"]
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
        "encoder_sparsity": round(1 - encoder["nonzeros"] / max(encoder["parameters"], 1), 4),
        "encoder_compression": round(reference["encoder"]["dense_bytes"] / max(encoder["compressed_bytes"], 1), 2),
        "model_compression": round(reference["model"]["dense_bytes"] / whole["compressed_bytes"], 2),
        "parameters": whole["parameters"],
        **{f"speedup_batch_{batch}": round(ratio, 2) for batch, ratio in latency.items()},
        "machine": f"{machine['device']}, {machine['threads']} threads, torch {machine['torch']}",
        "date": datetime.now(UTC).date().isoformat(),
        "commit": _commit(),
        "command": shlex.join(["python", "-m", "tools.reproduce", *sys.argv[1:]]),
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
            cells = (
                dataset,
                stage,
                lines[0]["metric"],
                _spread([float(line["value"]) for line in lines]),
                f"{dense:.4f}" if lines[0]["dense"] else "",
                f"{value / dense:.1%}" if lines[0]["dense"] and dense else "",
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
