"""From a model and a file of examples to a family of faster models, each measured in the runtime that it is for."""

import json
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import yaml

from lit_compress.auto.page import check_page
from lit_compress.auto.plans import (
    INT8,
    Cases,
    Planned,
    describe,
    member_name,
    plan_members,
    smallest_structure,
)
from lit_compress.auto.request import SPEEDUPS, Request, keep_request
from lit_compress.auto.stages import Training, int8_stage, member_stage, teacher_stage
from lit_compress.auto.times import Steps, steps_of, training_seconds
from lit_compress.auto.verify import verify
from lit_compress.choices import GuessedTask, Target
from lit_compress.console import say
from lit_compress.errors import UserError
from lit_compress.export.run_folder import text_data
from lit_compress.files import atomic_file
from lit_compress.initial_configs import Look, look_at
from lit_compress.models.labels import label_order
from lit_compress.models.load import load_config, load_model
from lit_compress.models.positions import check_length
from lit_compress.planning.latency import LatencyTable
from lit_compress.planning.latency_command import parse_shape
from lit_compress.planning.losses import measure_losses
from lit_compress.planning.measure_latency import measure_structures, measure_table
from lit_compress.planning.plan import Losses
from lit_compress.planning.random_models import dense_structure
from lit_compress.planning.structure import Structure
from lit_compress.recipe import load_recipe, run_stage
from lit_compress.sources import absolute_source

__all__ = ["Family", "Member", "compress"]

_RECIPE, _LATENCY, _LOSSES, _PLAN = "recipe.yaml", "latency.json", "losses.json", "plan.json"
_TEACHER = "teacher"
_ROWS = 64  # of the training data, on which losses are measured
_SMALL, _SMALL_RATE, _RATE = 512, 1e-4, 5e-5  # hidden sizes below this learn faster
# More rows are needed for an interval that decides anything.
_FEW_ROWS = 20


@dataclass(frozen=True, kw_only=True)
class Member:
    """A model of a family.

    Args:
        name: ``4x``, or ``int8``.
        folder: of its export.
        speedup: measured, to the dense model in fp32 in the same runtime.
        score: of the task's first metric on the validation rows, in its runtime.
        loss: points that it loses.
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
        members: from the slowest to the fastest.
        best: the one that is recommended; None when none is faster and good enough.
        report: the page about it.

    """

    members: tuple[Member, ...]
    best: Member | None
    report: Path


@dataclass(frozen=True, kw_only=True)
class _Job:
    """A request together with what is known of its data and model.

    Args:
        request: what is asked.
        folder: of the family.
        look: what the data is.
        has_head: whether the model has the task's head, so that it is the teacher itself.

    """

    request: Request
    folder: Path
    look: Look
    has_head: bool

    @property
    def data(self) -> dict[str, Any]:
        """The `data` section of every training."""
        return {"class_path": f"lit_compress.data.{self.look.module}", "init_args": dict(self.look.options)}

    @property
    def teacher(self) -> str:
        """The dense model, as a stage of the recipe names it."""
        return absolute_source(self.request.model) if self.has_head else f"stage:{_TEACHER}"

    @property
    def dense(self) -> str:
        """Folder or hub name of the dense model."""
        return self.request.model if self.has_head else str(self.folder / _TEACHER / "model")

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and tokens at which speed is asked for."""
        return self.request.shape or (1, self.look.options["max_length"])

    @property
    def training(self) -> Training:
        """What all trainings have in common."""
        config: Any = load_config(self.request.model, "--model")
        rate = _SMALL_RATE if config.hidden_size < _SMALL else _RATE
        return Training(data=self.data, seed=self.request.seed, learning_rate=rate, label_map=self.request.label_map)


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
    seed: int = 42,
    dry_run: bool = False,
) -> Family | None:
    """Make a family of faster models of an encoder for somebody's data, measure each, and recommend one.

    The same call again goes on where it was stopped; one with another ``max_loss`` only chooses again.

    Args:
        model: folder or hub name of an encoder; with the head of the task it is the teacher, else it is trained first.
        train: file of training examples.
        val: file of validation examples; without it some of the training examples are held out.
        run: folder for everything.
        speedup: how many times as fast as the dense model in fp32 in the same runtime members are to be.
        max_loss: how many points the recommended member may lose.
        target: runtime and precision of the members.
        shape: rows and tokens at which speed counts, ``1x128``; without it one row of the data's length.
        threads: of the processor; without it as many as PyTorch takes.
        minutes: for all trainings together, which become shorter when that is not enough; measuring comes on top.
        task: of the data, where its columns say too little.
        text_columns: likewise.
        label_column: likewise.
        data: options of the data module, such as ``{"max_length": 64}``.
        label_map: names of the model's classes -> labels of the data, where they differ.
        seed: of every training.
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
        seed=seed,
    )
    request.check()
    job = _begin(request, Path(run), dry_run)
    timing = _timing(job, dry_run)
    steps = _steps(job, timing.seconds)
    _say_trainings(job, steps, timing.seconds)
    if dry_run:
        return None
    if not job.has_head:
        _train(job, {_TEACHER: teacher_stage(job.training, absolute_source(model), steps[_TEACHER])})
    planned = _planned(job, timing)
    _say_members(planned, dense_structure(load_config(job.dense, "--model")))
    _train(job, _stages(job, planned, steps))
    results = verify(
        request=request,
        folder=job.folder,
        dense=job.dense,
        planned=planned,
        trained={name: job.folder / name / "model" for name in dict.fromkeys(_trained_as(planned).values())},
        section=job.data,
        shape=job.shape,
    )
    return _family(results, job.folder)


def _begin(request: Request, folder: Path, dry_run: bool) -> _Job:
    """Look at data and model, say what was found, and keep it for the next time."""
    kept = keep_request(folder, request)
    check_page(folder)
    config = load_config(request.model, "--model")
    if kept is None:
        given = request.data
        columns = (request.task, request.text_columns, request.label_column)
        look = look_at(request.train, request.val, request.model, *columns, given=given)
    else:
        look = Look.from_json(kept)
    options = {"tokenizer": request.model, **look.options}
    data = text_data(f"lit_compress.data.{look.module}", options)
    held = data.rows("val") if request.val else None
    rows = look.rows * look.options.get("val_fraction", 0) if held is None else len(held)
    if rows < _FEW_ROWS:
        raise UserError(
            f"--val: {round(rows)} validation rows say nothing about a loss of {request.max_loss:g} points; "
            f"give {_FEW_ROWS} or more, hundreds if you can"
        )
    has_head = data.task.has_head(config)
    if has_head:
        label_order(config, data.task.labels, request.label_map, request.model, "--model")
    job = _Job(request=request, folder=folder, look=look, has_head=has_head)
    check_length(config, job.shape[1], f"--model {request.model!r}", "--shape")
    say(f"{request.train}: {look.guess.task}, {look.rows:,} rows, {round(rows):,} to validate")
    for key in ("text_columns", "label_column", "max_length"):
        if key in look.options:
            why = f" ({look.why[key]})" if key in look.why else ""
            say(f"  --data.{key}: {look.options[key]}{why}")
    say(f"Teacher: {request.model}" + ("" if has_head else ", to be trained for the task first"))
    if not dry_run:
        keep_request(folder, request, look.to_json())
    return job


@dataclass(frozen=True, kw_only=True)
class _Timing:
    """What was measured on this machine before anything was trained.

    Args:
        table: latency of the parts in the target runtime.
        seconds: of an optimizer step, by kind of training.

    """

    table: LatencyTable
    seconds: Mapping[str, float]


def _timing(job: _Job, dry_run: bool) -> _Timing:
    """The latency table and the time of a step; refuse a speedup that no structure has."""
    kept = _read(job.folder / _LATENCY)
    if kept is not None:
        return _Timing(table=LatencyTable.from_json(kept["table"]), seconds=kept["seconds"])
    config, request = load_config(job.request.model, "--model"), job.request
    table = measure_table(config, request.target, *job.shape, request.threads)
    _check_reach(job, config, table)
    model = _dense_model(job, job.request.model)
    seconds = training_seconds(model, job.look.options["batch_size"], job.look.options["max_length"])
    if not dry_run:
        _keep(job.folder / _LATENCY, {"table": table.to_json(), "seconds": seconds})
    return _Timing(table=table, seconds=seconds)


def _check_reach(job: _Job, config: Any, table: LatencyTable) -> None:
    """Refuse a speedup before any training that is above what the smallest structure has."""
    request, dense = job.request, dense_structure(config)
    smallest = smallest_structure(dense)
    cases: Cases = {"dense": (dense, request.runtime), "smallest": (smallest, request.target)}
    seconds = measure_structures(config, cases, request.target, *job.shape, request.threads)
    limit = seconds["dense"] / seconds["smallest"]
    if (asked := max(request.speedups)) > limit:
        raise UserError(
            f"--speedup: {asked:g} is out of reach of {request.model!r} in {request.target} at "
            f"{job.shape[0]}x{job.shape[1]}: one layer with one head is {limit:.1f} times as fast as the dense model"
        )


def _dense_model(job: _Job, source: str) -> Any:
    data = text_data(f"lit_compress.data.{job.look.module}", {"tokenizer": source, **job.look.options})
    return load_model(source, data.task, "--model", job.request.label_map).eval()


def _steps(job: _Job, seconds: Mapping[str, float]) -> Steps:
    """Optimizer steps of every training that there may be."""
    kinds = {} if job.has_head else {_TEACHER: "teacher"}
    kinds |= {INT8: "int8"} if job.request.int8 else {}
    kinds |= {member_name(speedup): "member" for speedup in job.request.speedups}
    return steps_of(kinds, job.look.steps, seconds, job.request.minutes)


def _say_trainings(job: _Job, steps: Steps, seconds: Mapping[str, float]) -> None:
    """How long what will take, and what a limit of time has cost."""
    usual = _steps(replace(job, request=replace(job.request, minutes=None)), seconds)
    for name, count in steps.items():
        kind = name if name in (_TEACHER, INT8) else "member"
        epochs, minutes = count / job.look.steps, count * seconds[kind] / 60
        fewer = f", shortened from {usual[name]:,} by --minutes" if count < usual[name] else ""
        say(f"  {name}: {count:,} steps ({epochs:.1f} epochs), about {minutes:.1f} minutes{fewer}")


def _planned(job: _Job, timing: _Timing) -> list[Planned]:
    """The members' structures, as they were planned the first time."""
    if (kept := _read(job.folder / _PLAN)) is not None:
        return [Planned.from_json(each) for each in kept["members"]]
    config = load_config(job.dense, "--model")
    losses = _losses(job)
    measured = partial(_measure, config, job)
    planned = plan_members(job.request, losses, timing.table, dense_structure(config), measured)
    _keep(job.folder / _PLAN, {"members": [each.to_json() for each in planned]})
    return planned


def _measure(config: Any, job: _Job, cases: Cases) -> dict[str, float]:
    return measure_structures(config, cases, job.request.target, *job.shape, job.request.threads)


def _losses(job: _Job) -> Losses:
    """What removing parts of the teacher costs, on rows that it was trained on."""
    if (kept := _read(job.folder / _LOSSES)) is not None:
        return Losses.from_json(kept)
    data = text_data(f"lit_compress.data.{job.look.module}", {"tokenizer": job.dense, **job.look.options})
    data.prepare_data()
    data.setup("fit")
    pl.seed_everything(job.request.seed, verbose=False)
    batches = [*islice(data.train_dataloader(), -(-_ROWS // data.batch_size))]
    losses = measure_losses(_dense_model(job, job.dense), batches, data.task)
    _keep(job.folder / _LOSSES, losses.to_json())
    return losses


def _trained_as(planned: Sequence[Planned]) -> dict[Planned, str]:
    """Which training each member comes from: one of the same structure serves both."""
    first: dict[Structure, str] = {}
    return {each: first.setdefault(each.structure, each.name) for each in planned}


def _stages(job: _Job, planned: Sequence[Planned], steps: Steps) -> dict[str, dict[str, Any]]:
    """A training for each member that needs one, from the member before."""
    stages: dict[str, dict[str, Any]] = {}
    if not job.has_head:
        stages[_TEACHER] = teacher_stage(job.training, absolute_source(job.request.model), steps[_TEACHER])
    previous = (job.teacher, dense_structure(load_config(job.dense, "--model")))
    for each, name in _trained_as(planned).items():
        if name in stages:
            continue
        if each.name == INT8:
            stages[INT8] = int8_stage(job.training, job.teacher, steps[INT8])
            continue
        stages[name] = member_stage(job.training, previous, job.teacher, each.structure, steps[name], job.request.int8)
        previous = (f"stage:{name}", each.structure)
    return stages


def _train(job: _Job, stages: Mapping[str, Any]) -> None:
    """Run the stages that are not finished; one that was interrupted goes on."""
    _keep_recipe(job.folder / _RECIPE, stages)
    for stage in load_recipe(job.folder / _RECIPE, str(job.folder)).values():
        stage.check()
        if stage.state == "finished":
            continue
        say(f"Training {stage.name}: lit_compress {shlex.join(stage.command())}")
        stage.write()
        run_stage(stage)


def _keep_recipe(file: Path, stages: Mapping[str, Any]) -> None:
    text = "# Made by `lit_compress compress`; a stage alone: lit_compress recipe THIS_FILE --only NAME\n"
    with atomic_file(file) as staging:
        staging.write_text(text + yaml.safe_dump({"stages": dict(stages)}, sort_keys=False))


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
            score=each["score"],
            loss=each["loss"],
            bytes=each["bytes"],
        )
        for each in results["members"]
    )
    best = next((member for member in members if member.name == results["recommended"]), None)
    return Family(members=members, best=best, report=folder / "report.html")


def _read(file: Path) -> Any:
    """What an earlier call kept; None where it did not come that far."""
    return json.loads(file.read_text()) if file.is_file() else None


def _keep(file: Path, content: Mapping[str, Any]) -> None:
    with atomic_file(file) as staging:
        staging.write_text(json.dumps(content, indent=1) + "\n")
