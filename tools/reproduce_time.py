"""How long the trainings of a plan take on this device: as they did before, or by the tokens that they read."""

import json
import statistics
from collections import defaultdict
from collections.abc import Mapping, Sequence
from functools import cache

import yaml

from lit_compress.errors import UserError
from lit_compress.export.run_folder import text_data
from lit_compress.report.machine import machine
from tools.reproduce_jobs import DENSE, FAMILY, PRETRAINED, Job, Settings, filled, jobs_of
from tools.reproduce_plan import MASKED_WORDS, TEACHER

__all__ = ["estimates", "kind_of", "plan_lines"]


def plan_lines(jobs: Sequence[Job], settings: Settings, rows: Sequence[Mapping[str, str]]) -> list[str]:
    """What is left, a line for each, and how long all of it takes.

    Args:
        jobs: that are left.
        settings: of the call.
        rows: of the results.

    """
    known = estimates(rows)
    per_token = _minutes_per_token(settings, known)
    lines, total, unknown = [], 0.0, 0
    for job in jobs:
        minutes, word = known.get(kind_of(job, settings)), ""
        if minutes is None:
            minutes, word = _guess(job, settings, known, per_token), "about "
        total += minutes or 0.0
        unknown += minutes is None
        lines.append(f"{job}: {'unknown' if minutes is None else f'{word}{minutes:.1f} minutes'}")
    what = f"{len(jobs) - unknown} take {total / 60:.1f} hours by rows of {machine()['device']}"
    return [*lines, f"{len(jobs)} left: {what}, {unknown} are unknown"]


def estimates(rows: Sequence[Mapping[str, str]]) -> dict[tuple[str, ...], float]:
    """Minutes that each kind of job took on this device, the mean over seeds.

    Args:
        rows: of the results.

    """
    device, found = machine()["device"], defaultdict(list)
    for line in rows:
        if line["minutes"] and line["device"] == device:
            stage = FAMILY if line["runtime"] != "eager" else line["stage"]
            kind = (line["model"], line["recipe"], line["data"], stage, line["limit"], line["max_steps"])
            found[kind].append(float(line["minutes"]))
    return {kind: statistics.mean(taken) for kind, taken in found.items()}


def kind_of(job: Job, settings: Settings) -> tuple[str, ...]:
    """What jobs that take equally long have in common: all but the seed."""
    recipe = DENSE if job.stage == TEACHER else job.recipe
    return (settings.model, recipe, job.data, job.stage, str(settings.limit or ""), str(settings.max_steps or ""))


def _minutes_per_token(settings: Settings, known: Mapping[tuple[str, ...], float]) -> float | None:
    """Of the trainings of this model that were timed, the median; None where none was."""
    found = {}
    for name, entry in settings.plan["recipes"].items():
        for dataset in entry["data"]:
            for job in jobs_of(settings, name, dataset, 0):
                kind = kind_of(job, settings)
                if kind in known and kind not in found and (tokens := _tokens_of(job, settings)):
                    found[kind] = known[kind] / tokens
    return statistics.median(found.values()) if found else None


def _guess(
    job: Job, settings: Settings, known: Mapping[tuple[str, ...], float], per_token: float | None
) -> float | None:
    """Minutes of a job that was never timed; None where nothing says."""
    if job.file is None:  # a family has a limit of time, whatever its data
        families = [minutes for kind, minutes in known.items() if (kind[0], kind[3]) == (settings.model, FAMILY)]
        return statistics.mean(families) if families else None
    if per_token is None or (tokens := _tokens_of(job, settings)) is None:
        return None
    return per_token * tokens


def _tokens_of(job: Job, settings: Settings) -> float | None:
    """Tokens that a training reads; None where its data is not at hand."""
    if job.file is None:
        return None
    stage = yaml.safe_load(job.file.read_text())["stages"][job.stage]
    options = dict(stage["data"]["init_args"])
    augmentation = options.pop("augmentation", None)
    trainer = stage.get("trainer") or {}
    steps, epochs = trainer.get("max_steps", -1), trainer.get("max_epochs", 1)
    if steps > 0 and stage["data"]["class_path"] == MASKED_WORDS:
        return steps * options["batch_size"] * options["max_length"]
    options["tokenizer"] = filled(PRETRAINED[0], settings, job.seed)
    texts, tokens = _size(stage["data"]["class_path"], json.dumps(options, sort_keys=True))
    if not texts:
        return None
    copies = 1 + (augmentation["init_args"]["copies"] if augmentation else 0)
    return tokens / texts * options["batch_size"] * steps if steps > 0 else epochs * copies * tokens


@cache
def _size(class_path: str, options: str) -> tuple[int, int]:
    """Training examples and their tokens; zeros where the data is not at hand."""
    try:
        data = text_data(f"lit_compress.data.{class_path}", json.loads(options))
        data.prepare_data()
        data.setup("fit")
    except UserError:
        return 0, 0
    lengths = data.train_dataloader().dataset["length"]
    return len(lengths), sum(lengths)
