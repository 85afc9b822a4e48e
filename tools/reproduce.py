"""Runs recipes on real data, over seeds, and writes the tables of docs/results.md from what came out.

    python -m tools.reproduce --data <folder with the data sets> --only poor_mans_bert
    python -m tools.reproduce --data <folder> --model mpnet --plan true
    python -m tools.reproduce --data <folder> --model mpnet --minutes 120

Every figure is of a run that happened. A row is written the moment it is measured, one that is there is not measured
again, and a training that was stopped goes on. A dense model is fine-tuned once per data set and seed and is the
teacher of all recipes. MiniLM's recipes are in reproduce.yaml, those of another model in reproduce_<model>.yaml.
"""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from tempfile import TemporaryDirectory
from threading import Timer
from typing import Any

from jsonargparse import auto_cli

from lit_compress.errors import UserError
from lit_compress.export.run_folder import run_config
from lit_compress.recipe import load_recipe, recipe, run_stage
from lit_compress.report.measure import dense_of, report
from lit_compress.report.size import sparsity_of
from lit_compress.report.summary import own_name, reference
from tools.commit import commit
from tools.family import family_command, family_rows
from tools.pubmedqa import write_pubmedqa
from tools.reproduce_jobs import Job, Settings, data_of, filled, has_row, left_of, once
from tools.reproduce_plan import MINILM, TEACHER, UPSTREAM, plan_of
from tools.reproduce_table import add_rows, read_rows, write_table
from tools.reproduce_time import estimates, kind_of, plan_lines
from tools.served import served

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "tools" / "results.csv"
PAGE = ROOT / "docs" / "results.md"


def main(
    data: Path,
    seeds: Sequence[int] = (42,),
    only: Sequence[str] = (),
    datasets: Sequence[str] = (),
    runs: Path = Path("runs/reproduce"),
    model: str = MINILM,
    assets: Path = Path("runs/assets"),
    limit: int | None = None,
    max_steps: int | None = None,
    minutes: float | None = None,
    stages: Sequence[str] = (),
    gpu: bool = False,
    bf16: bool = False,
    measure: bool = True,
    table: bool = True,
    plan: bool = False,
    dry_run: bool = False,
) -> None:
    """Run recipes by data sets by seeds, add a row for each stage to the CSV, and rewrite the table.

    Args:
        data: folder that the paths in reproduce.yaml are relative to.
        seeds: one run for each.
        only: names of recipes; all by default.
        datasets: names of data sets; all of a recipe's by default.
        runs: folder of the runs.
        model: whose recipes: minilm, or mpnet, which `python -m tools.assets mpnet` makes first.
        assets: folder of the models that tools/assets.py made, each under its name.
        limit: train on so many rows at most, which is said in the row.
        max_steps: train for so many optimizer steps at most, likewise.
        minutes: stop after so long; what takes longer by its earlier rows is not begun, and the next call goes on.
        stages: names of a recipe's stages; all by default. Those that they begin with are done, too.
        gpu: train on a GPU, in bf16 where nothing is quantized.
        bf16: the same on a processor, which is faster where it has instructions for bf16.
        measure: false trains and measures nothing, on a machine that is busy; the same call without it measures later.
        table: rewrite the table in docs/results.md.
        plan: print what is left, and how long it takes by rows of this device; `about`, by the tokens that it reads.
        dry_run: print the stages as they are run.

    """
    settings = Settings(
        plan=plan_of(model),
        model=model,
        data=data,
        assets=assets,
        runs=runs,
        limit=limit,
        max_steps=max_steps,
        stages=tuple(stages),
        gpu=gpu,
        bf16=bf16,
        measure=measure,
    )
    chosen = [
        (name, dataset, seed)
        for seed in seeds
        for name, entry in settings.plan["recipes"].items()
        for dataset in entry["data"]
        if (not only or name in only) and (not datasets or dataset in datasets)
    ]
    rows = read_rows(RESULTS)
    _check_names("only", only, settings.plan["recipes"])
    _check_names("datasets", datasets, {name for each in settings.plan["recipes"].values() for name in each["data"]})
    if plan or dry_run:
        with TemporaryDirectory() as folder:  # nothing is run, so nothing is written
            settings = replace(settings, files=Path(folder))
            jobs = once([job for each in chosen for job in left_of(settings, *each, rows)])
            if plan:
                print("\n".join(plan_lines(jobs, settings, rows)))
            for job in jobs if dry_run else ():
                if job.file is not None:
                    recipe(str(job.file), only=job.stage, dry_run=True)
        return
    jobs = once([job for each in chosen for job in left_of(settings, *each, rows)])
    _check_model(settings)
    failed = _run_all(jobs, settings, minutes)
    if table and measure:
        write_table(RESULTS, PAGE, settings.plan, model)
    if failed:
        raise SystemExit(f"{failed} of {len(jobs)} failed, see above; the same call tries them again")


def _check_model(settings: Settings) -> None:
    source = filled(settings.plan.get("pretrained", ""), settings, 0)
    if source and not Path(source).is_dir():
        raise SystemExit(f"--assets: no {source!r}; make it: python -m tools.assets {settings.model} --output {source}")


def _check_names(option: str, given: Sequence[str], allowed: Iterable[str]) -> None:
    """Raise a ``SystemExit`` when a name is none of those in the plan."""
    if wrong := sorted({*given} - {*allowed}):
        raise SystemExit(f"--{option}: {wrong[0]!r} is none of {', '.join(sorted(allowed))}")


def _run_all(jobs: Sequence[Job], settings: Settings, minutes: float | None) -> int:
    """One after the other, until the time is over; how many failed."""
    begun, failed = time.monotonic(), 0
    known = estimates(read_rows(RESULTS)) if jobs else {}
    for number, job in enumerate(jobs, 1):
        left = None if minutes is None else minutes - (time.monotonic() - begun) / 60
        expected, done = known.get(kind_of(job, settings)), _minutes_before(job, settings)
        # What was begun goes on, and what no call has time enough for is begun by one that does nothing else.
        begins = done > 0 or (number == 1 and minutes is not None and (expected or 0) > minutes)
        if left is not None and (left <= 0 or ((expected or 0) - done > left and not begins)):
            what = "unknown" if expected is None else f"{expected:.0f} minutes"
            print(f"not begun, {max(left, 0):.0f} minutes are left: {job} ({what})")
            continue
        print(f"{number} of {len(jobs)}: {job}", flush=True)
        began = time.monotonic()
        try:
            with _deadline(left):
                _run(job, settings)
        except UserError as error:  # the others may still do
            failed += 1
            print(f"failed: {job}: {error}", file=sys.stderr)
        except (SystemExit, KeyboardInterrupt):
            if left is None or time.monotonic() - began < 60 * left - 1:
                raise
            print(f"stopped after {minutes:g} minutes; the same call goes on with it: {job}")
    return failed


@contextmanager
def _deadline(minutes: float | None) -> Iterator[None]:
    """Interrupt what runs inside, as Ctrl-C does, when the time is over: a training saves and can go on."""
    if minutes is None:
        yield
        return
    timer = Timer(60 * minutes, os.kill, (os.getpid(), signal.SIGINT))
    timer.daemon = True
    # A shell lets what it starts in the background ignore Ctrl-C.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    timer.start()
    try:
        yield
    finally:
        timer.cancel()
        signal.signal(signal.SIGINT, before)


def _run(job: Job, settings: Settings) -> None:
    """Train, measure and write the rows of a job; what was begun before counts into its minutes."""
    if job.data == "pubmedqa":
        write_pubmedqa(settings.data, settings.runs / "made")
    folder = _folder(job, settings)
    clock, begun = folder.with_name(f"{folder.name}.minutes"), time.monotonic()
    before = _minutes_before(job, settings)
    try:
        rows = _family(job, settings) if job.file is None else _stage(job, settings)
    finally:
        taken = before + (time.monotonic() - begun) / 60
        clock.parent.mkdir(parents=True, exist_ok=True)
        clock.write_text(f"{taken:.3f}\n")
    add_rows(RESULTS, [line | {"minutes": f"{taken:.1f}"} for line in rows])


def _minutes_before(job: Job, settings: Settings) -> float:
    """What an unfinished job has taken so far."""
    folder = _folder(job, settings)
    clock = folder.with_name(f"{folder.name}.minutes")
    return float(clock.read_text()) if clock.is_file() else 0.0


def _folder(job: Job, settings: Settings) -> Path:
    if job.file is not None:
        return load_recipe(job.file)[job.stage].folder
    return settings.base / job.dataset / f"seed{job.seed}" / job.recipe


def _stage(job: Job, settings: Settings) -> list[dict[str, Any]]:
    """Train a stage of a recipe unless it is finished, and measure it where it has a row."""
    assert job.file is not None
    stage = load_recipe(job.file)[job.stage]
    stage.check()
    stage.write()
    if stage.state != "finished":
        run_stage(stage)
    if not has_row(job) or not settings.measure:
        return []
    report(str(stage.folder), stage.dense, batch_sizes=settings.plan.get("batch_sizes", [1, 32]))
    found = row(job, settings, json.loads((stage.folder / "report" / "report.json").read_text()))
    if settings.plan["data"][job.data]["data"]["class_path"] in UPSTREAM:
        return [found]  # goes on to a task, and is deployed there
    dense, _ = dense_of(run_config(str(stage.folder), {}), stage.dense)
    tokens = settings.plan["data"][job.data]["data"]["init_args"]["max_length"]
    return [found | served(stage.folder, Path(dense or stage.folder / "model"), found["metric"], tokens)]


def _family(job: Job, settings: Settings) -> list[dict[str, Any]]:
    """Make a family with `lit_compress compress` from the dense model of the data set, and read what it measured."""
    if not settings.measure:  # its structures are planned by measured times
        return []
    folder, dense = _folder(job, settings), settings.base / job.dataset / f"seed{job.seed}" / TEACHER / "model"
    data = data_of(job, settings)
    options = settings.plan["recipes"][job.recipe]["family"]
    command = family_command(options, data["class_path"], data["init_args"], dense, folder, job.seed)
    _call([sys.executable, "-m", "lit_compress", *command], str(job))
    rows = family_rows(folder / "report.json", options)
    same = [line for line in read_rows(RESULTS) if line["data"] == job.data and line["metric"] == rows[0]["metric"]]
    majority = next((line["majority"] for line in same if line["majority"]), "")
    return [_common(job, settings) | each | {"majority": majority} for each in rows]


def _call(command: Sequence[str], what: str) -> None:
    """Run a command, which is interrupted when this process is, and ends first.

    Raises:
        SystemExit: it was interrupted.
        UserError: it ended with an error.

    """
    process = subprocess.Popen(command)
    before = signal.signal(signal.SIGINT, lambda number, _: process.send_signal(number))
    try:
        status = process.wait()
    finally:
        signal.signal(signal.SIGINT, before)
    if status in (-signal.SIGINT, 128 + signal.SIGINT):
        raise SystemExit(status)
    if status:
        raise UserError(f"{what} ended with exit status {status} (see above)")


def row(job: Job, settings: Settings, result: dict[str, Any]) -> dict[str, Any]:
    """One line of the CSV from one report."""
    models = result["models"]
    own, dense = models[own_name(result)], models.get("dense")
    metric = settings.plan["data"][job.data].get("metric", next(iter(own["accuracy"])))
    encoder, whole = own["size"]["encoder"], own["size"]["model"]
    differences = result["comparison"]["metrics"][metric]["differences"].get(own_name(result), {})
    _, full = reference(result)  # of the original shape: physically removed parts count as saved
    latency = {b: dense["latency_ms"][b] / own["latency_ms"][b] if dense else 1.0 for b in own["latency_ms"]}
    used = result["machine"]
    return _common(job, settings) | {
        "stage": job.stage,
        "metric": metric,
        "value": round(own["accuracy"][metric], 5),
        "dense": round(dense["accuracy"][metric], 5) if dense else "",
        **{f"difference_{end}": round(differences[end], 5) for end in ("low", "high") if end in differences},
        "encoder_sparsity": round(sparsity_of(encoder), 4),
        "encoder_compression": round(full["encoder"] / max(encoder["compressed_bytes"], 1), 2),
        "model_compression": round(full["model"] / whole["compressed_bytes"], 2),
        "parameters": whole["parameters"],
        **{f"speedup_batch_{batch}": round(ratio, 2) for batch, ratio in latency.items()},
        "machine": f"{used['device']}, {used['threads']} threads, torch {used['torch']}",
        "device": used["device"],
        "instructions": used.get("processor", ""),
        "runtime": "eager",
        "majority": majority_of(metric, result),
    }


def majority_of(metric: str, result: Mapping[str, Any]) -> float | str:
    """The score of the validation labels' most frequent answer given to all of them; empty where that says nothing.

    Correlations, and the F1 of entities and of places in a text, are 0 for one answer to everything.
    """
    if metric == "accuracy" and result.get("majority"):
        return round(result["majority"]["share"], 5)
    return "" if metric in result["lower_is_better"] or metric == "accuracy" else 0.0


def _common(job: Job, settings: Settings) -> dict[str, Any]:
    cuts = {"--model": settings.model if settings.model != MINILM else None, "--limit": settings.limit}
    cuts |= {"--max_steps": settings.max_steps, "--gpu": "true" if settings.gpu else None}
    cuts |= {"--bf16": "true" if settings.bf16 else None}
    given = "".join(f" {key} {value}" for key, value in cuts.items() if value)
    return {
        "model": settings.model,
        "recipe": job.recipe,
        "data": job.data,
        "seed": job.seed,
        "limit": settings.limit or "",
        "max_steps": settings.max_steps or "",
        "date": datetime.now(UTC).date().isoformat(),
        "commit": commit(),
        "command": f"python -m tools.reproduce --data data{given} --only '[{job.recipe}]' --seeds '[{job.seed}]'",
    }


if __name__ == "__main__":
    auto_cli(main, as_positional=False)
