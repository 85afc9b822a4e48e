"""From a model and a file of examples to a family of faster models, each measured in the runtime that it is for."""

import math
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import lightning.pytorch as pl

from lit_compress.auto.job import Job, begin, keep, kept
from lit_compress.auto.measure import verify
from lit_compress.auto.plans import (
    INT8,
    Cases,
    Planned,
    describe,
    member_name,
    plan_members,
    smallest_structure,
)
from lit_compress.auto.recipe_file import keep_recipe, teacher_steps
from lit_compress.auto.request import PLAN, SPEEDUPS, Request
from lit_compress.auto.stages import TEACHER, int8_stage, member_stage, teacher_stage
from lit_compress.auto.time_budget import START, Steps, steps_of, training_seconds
from lit_compress.choices import GuessedTask, Target, TrainerPrecision
from lit_compress.console import say
from lit_compress.errors import UserError
from lit_compress.planning.latency_command import parse_shape
from lit_compress.planning.latency_table import LatencyTable
from lit_compress.planning.losses import measure_losses
from lit_compress.planning.measure_latency import fixed_parts, measure_structures, measure_table
from lit_compress.planning.plan import Losses
from lit_compress.planning.random_models import dense_structure
from lit_compress.planning.structure import Structure
from lit_compress.recipe import load_recipe, run_stage
from lit_compress.sources import absolute_source

__all__ = ["Family", "Member", "compress", "train_stages"]

_RECIPE, _LATENCY, _LOSSES = "recipe.yaml", "latency.json", "losses.json"
_ROWS = 64  # of the training data, on which losses are measured


@dataclass(frozen=True, kw_only=True)
class Member:
    """A model of a family.

    Args:
        name: ``4x``, or ``int8``.
        folder: of its export.
        speedup: measured, to the dense model in fp32 in the same runtime.
        score: of the task's first metric on the validation examples, in its runtime; NaN where it is not defined.
        loss: points that it loses; infinite where the score is not defined.
        bytes: of its weights.

    """

    name: str
    folder: Path
    speedup: float
    score: float
    loss: float
    bytes: int


@dataclass(frozen=True, kw_only=True)
class Family:
    """What `compress` made.

    Args:
        members: ``int8`` first, then by the speed that was asked for.
        best: the one that is recommended; None when none is faster and good enough.
        report: the page about it.

    """

    members: tuple[Member, ...]
    best: Member | None
    report: Path


def compress(
    model: str = "",
    train: str = "",
    val: str | None = None,
    run: str = "runs/compressed",
    speedup: float | Sequence[float] = SPEEDUPS,
    max_loss: float = 1.0,
    target: Target = "onnx-int8",
    shape: str | None = None,
    threads: int | None = None,
    minutes: float | None = None,
    task: GuessedTask | None = None,
    text_columns: list[str] | None = None,
    label_column: str | None = None,
    data: Mapping[str, Any] | None = None,
    label_map: Mapping[str, str | int] | None = None,
    retrieval: str | None = None,
    seed: int = 42,
    precision: TrainerPrecision = "32-true",
    dry_run: bool = False,
) -> Family | None:
    """Make a family of faster models of an encoder for somebody's data, measure each, and recommend one.

    Calling it again with the same arguments continues where it stopped; with another ``max_loss`` or ``retrieval`` it
    trains nothing, and only measures and chooses again.

    Args:
        model: folder or hub name of an encoder; if it has a head for the task it is the teacher, otherwise a teacher is
            fine-tuned first.
        train: file of training examples.
        val: file of validation examples; without it some of the training examples are held out.
        run: folder for everything: checkpoints, exports, report.
        speedup: how many times the speed of the dense fp32 model in the same runtime.
        max_loss: how many points the recommended member may lose.
        target: runtime and precision to export to.
        shape: batch size and tokens at which speed is measured, ``1x128``; None is one text of ``data.max_length``.
        threads: CPU threads; None leaves it to PyTorch.
        minutes: time limit for all trainings together, which are shortened to fit; measuring takes extra time.
        task: task, if the guess from the columns is wrong.
        text_columns: columns with the texts, one or two, if the guess is wrong.
        label_column: column with the labels, if the guess is wrong.
        data: options of the data module, such as ``{"max_length": 64}``.
        label_map: class names of the model -> labels of the data, if they differ.
        retrieval: file with a query and the text to find in each row; sentence encoders are measured on it, too.
        seed: random seed of every training.
        precision: of every training: ``bf16-mixed`` takes less time where the hardware computes in bf16.
        dry_run: print the plan and train nothing.

    Returns:
        The family; None for a dry run.

    Raises:
        UserError: an option, the data or the model cannot be; no structure is as fast as asked.

    """
    speedups = (speedup,) if isinstance(speedup, int | float) else speedup
    request = Request(
        model=model,
        train=train,
        val=val,
        speedups=tuple(sorted({float(each) for each in speedups})),
        max_loss=max_loss,
        target=target,
        shape=parse_shape(shape) if shape else None,
        threads=threads,
        minutes=minutes,
        task=task,
        text_columns=text_columns,
        label_column=label_column,
        data=dict(data or {}),
        label_map=label_map,
        retrieval=retrieval,
        seed=seed,
        precision=precision,
    )
    request.check()
    job = begin(request, Path(run), dry_run)
    timing = _timing(job, dry_run)
    steps = _steps(job, timing.seconds)
    _say_trainings(job, steps, timing.seconds)
    if dry_run:
        return None
    if not job.has_head:
        train_stages(job, {TEACHER: teacher_stage(job.training, absolute_source(model), steps[TEACHER])})
    planned = _planned(job, timing)
    _say_members(planned, dense_structure(job.config))
    train_stages(job, _stages(job, planned, steps))
    trained = {name: job.folder / name / "model" for name in dict.fromkeys(_trained_as(planned).values())}
    results = verify(job, planned, trained)
    return _family(results, job.folder)


@dataclass(frozen=True)
class _Timing:
    """What was measured on this machine before anything was trained.

    Args:
        table: latency of the parts in the target runtime.
        seconds: of an optimizer step, by kind of training.
        limit: times the speed of the dense model that the smallest structure has.

    """

    table: LatencyTable
    seconds: Mapping[str, float]
    limit: float


def _timing(job: Job, dry_run: bool) -> _Timing:
    """The latency table and the time of a step; refuse a speedup that no structure has."""
    file = job.folder / _LATENCY
    known = kept(file, _timing_of)
    if known is not None:
        _check_reach(job, known.limit)
        return known
    request, guessed = job.request, job.guessed
    table = measure_table(job.config, request.target, *job.shape, request.threads)
    limit = _limit(job)
    _check_reach(job, limit)
    # Batches are of rows of nearly the same length, so that hardly any of their tokens is padding.
    rows = guessed.options["batch_size"] * guessed.inputs
    seconds = training_seconds(job.model(request.model), rows, guessed.tokens, request.precision)
    if not dry_run:
        keep(file, {"table": table.to_json(), "seconds": seconds, "limit": limit})
    return _Timing(table, seconds, limit)


def _timing_of(content: Mapping[str, Any]) -> _Timing:
    return _Timing(LatencyTable.from_json(content["table"]), content["seconds"], content.get("limit", math.inf))


def _smallest(job: Job) -> Structure:
    return smallest_structure(dense_structure(job.config), fixed_parts(job.config))


def _limit(job: Job) -> float:
    """Times the speed of the dense model that the smallest structure has."""
    request = job.request
    cases: Cases = {
        "dense": (dense_structure(job.config), request.runtime),
        "smallest": (_smallest(job), request.target),
    }
    seconds = _measure(job, cases)
    return seconds["dense"] / seconds["smallest"]


def _check_reach(job: Job, limit: float) -> None:
    """Refuse a speedup before any training that is above what the smallest structure has."""
    request, dense = job.request, dense_structure(job.config)
    if (asked := max(request.speedups)) > limit:
        smallest = describe(_smallest(job), dense)
        raise UserError(
            f"--speedup: {asked:g} is out of reach of {request.model!r} in {request.target} at "
            f"{job.shape[0]}x{job.shape[1]}: the smallest structure ({smallest}) is {limit:.1f} times as fast as the "
            "dense model"
        )


def _measure(job: Job, cases: Cases) -> dict[str, float]:
    """Seconds of structures with random weights, each in a process of its own, as the members are timed at the end."""
    request = job.request
    return measure_structures(job.config, cases, request.target, *job.shape, request.threads, apart=True).seconds


def _steps(job: Job, seconds: Mapping[str, float]) -> Steps:
    """Optimizer steps of every training that there may be."""
    kinds = {} if job.has_head else {TEACHER: "teacher"}
    kinds |= {INT8: "int8"} if job.request.int8 else {}
    kinds |= {member_name(speedup): "member" for speedup in job.request.speedups}
    # How many speedups are asked for may have changed since.
    begun = teacher_steps(job.folder / _RECIPE)
    return steps_of(kinds, job.guessed.steps, seconds, job.request.minutes, begun)


def _say_trainings(job: Job, steps: Steps, seconds: Mapping[str, float]) -> None:
    """How long what will take, and what a limit of time has cost."""
    usual = _steps(replace(job, request=replace(job.request, minutes=None)), seconds)
    total, given = START * len(steps) / 60, job.request.minutes
    for name, count in steps.items():
        kind = name if name in (TEACHER, INT8) else "member"
        epochs, minutes = count / job.guessed.steps, count * seconds[kind] / 60
        total += minutes
        fewer = f", shortened from {usual[name]:,} by --minutes" if count < usual[name] else ""
        say(f"  {name}: {count:,} steps ({epochs:.1f} epochs), about {minutes:.1f} minutes{fewer}")
    if given and total > 1.05 * given:
        say(f"--minutes {given:g} is not enough for so many trainings, which take about {total:.1f} minutes at least")


def _planned(job: Job, timing: _Timing) -> list[Planned]:
    """The members' structures, as they were planned the first time."""
    file = job.folder / PLAN
    known = kept(file, lambda content: [Planned.from_json(each) for each in content["members"]])
    if known is not None:
        return known
    planned = plan_members(job.request, _losses(job), timing.table, dense_structure(job.config), partial(_measure, job))
    keep(file, {"members": [each.to_json() for each in planned]})
    return planned


def _losses(job: Job) -> Losses:
    """The loss of removing each part of the teacher, on examples that it was trained on."""
    file = job.folder / _LOSSES
    if (known := kept(file, Losses.from_json)) is not None:
        return known
    data = job.guessed.texts(job.dense)
    data.prepare_data()
    data.setup("fit")
    pl.seed_everything(job.request.seed, verbose=False)
    batches = [*islice(data.train_dataloader(), -(-_ROWS // data.batch_size))]
    losses = measure_losses(job.model(job.dense), batches, data.task)
    keep(file, losses.to_json())
    return losses


def _trained_as(planned: Sequence[Planned]) -> dict[Planned, str]:
    """Which training each member comes from: one of the same structure serves both."""
    first: dict[Structure, str] = {}
    return {each: first.setdefault(each.structure, each.name) for each in planned}


def _stages(job: Job, planned: Sequence[Planned], steps: Steps) -> dict[str, dict[str, Any]]:
    """A training for each member that needs one, from the member before."""
    stages: dict[str, dict[str, Any]] = {}
    if not job.has_head:
        stages[TEACHER] = teacher_stage(job.training, absolute_source(job.request.model), steps[TEACHER])
    previous = (job.teacher, dense_structure(job.config))
    for each, name in _trained_as(planned).items():
        if name in stages:
            continue
        if each.name == INT8:
            stages[INT8] = int8_stage(job.training, job.teacher, steps[INT8])
            continue
        stages[name] = member_stage(job.training, previous, job.teacher, each.structure, steps[name], job.request.int8)
        previous = (f"stage:{name}", each.structure)
    return stages


def train_stages(job: Job, stages: Mapping[str, Any]) -> None:
    """Run the stages that are not finished; one that was interrupted continues.

    Args:
        job: whose folder they are in.
        stages: configurations of `fit`, by name.

    """
    keep_recipe(job.folder / _RECIPE, stages)
    for stage in load_recipe(job.folder / _RECIPE, str(job.folder)).values():
        if stage.name not in stages:
            continue
        stage.check()
        if stage.state == "finished":
            continue
        say(f"Training {stage.name}: lit_compress {shlex.join(stage.command())}")
        stage.write()
        run_stage(stage)


def _say_members(planned: Sequence[Planned], whole: Structure) -> None:
    for each in planned:
        again = " (planned twice)" if each.corrected else ""
        say(f"{each.name}: {describe(each.structure, whole)}; {each.measured:.2f}x before training{again}")


def _family(results: Mapping[str, Any], folder: Path) -> Family:
    members = tuple(
        Member(
            name=each["name"],
            folder=Path(each["folder"]),
            speedup=each["speedup"],
            score=math.nan if each["score"] is None else each["score"],
            loss=math.inf if each["loss"] is None else each["loss"],
            bytes=each["bytes"],
        )
        for each in results["members"]
    )
    best = next((member for member in members if member.name == results["recommended"]), None)
    return Family(members=members, best=best, report=folder / "report.html")
