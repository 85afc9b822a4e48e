"""A family's members: exported, loaded back, scored on the validation examples in their runtime, timed together."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from lightning.pytorch import LightningDataModule

from lit_compress.auto.choose import choose, loss_of
from lit_compress.auto.family_report import save_page
from lit_compress.auto.job import DENSE, Job
from lit_compress.auto.plans import Planned, describe
from lit_compress.auto.request import Request
from lit_compress.auto.retrieval import retrieval_section
from lit_compress.data.text_data import TextData
from lit_compress.export.command import export
from lit_compress.export.run_folder import task_of, validation_data
from lit_compress.models.labels import label_order
from lit_compress.models.load import load_config
from lit_compress.planning.random_models import ENGINES, dense_structure
from lit_compress.planning.structure import Structure
from lit_compress.report.accuracy import evaluate_answers
from lit_compress.report.bootstrap import compare_outcomes
from lit_compress.report.machine import command_line, machine
from lit_compress.report.timing import Case, cases_of, measure, opened, runtimes
from lit_compress.runtimes.engines import open_engine
from lit_compress.runtimes.torch_engine import answers
from lit_compress.tasks import Outcomes, Task

__all__ = ["SCHEMA", "verify"]

SCHEMA = 1
_EAGER = "eager"
_MANY = 32  # batch size, for the throughput
_WARMUP, _REPETITIONS, _FEW = 3, 30, 5  # calls: before, and at the shape and the larger batch


def verify(job: Job, planned: Sequence[Planned], trained: Mapping[str, Path]) -> dict[str, Any]:
    """Measure a family whose trainings are finished; print the table, write report.html, report.md and report.json.

    Args:
        job: what was asked, of which model and data.
        planned: the members.
        trained: the model that the training of each left, by the member's name.

    Returns:
        What report.json holds.

    """
    request, shape = job.request, job.shape
    threads = request.threads or torch.get_num_threads()
    exports = _export_all(job, trained)
    cases = _cases(job, exports)
    first = str(next(iter(trained.values())))  # its labels are in the order of the data
    section = job.guessed.section
    section["init_args"]["tokenizer"] = first
    data = validation_data(section, load_config(first, "--run"))
    task = task_of(data)
    if task.labels:
        theirs = load_config(job.dense, "--model")
        cases[1].order = label_order(theirs, task.labels, request.label_map, job.dense, "--model")
    scores, outcomes = _evaluate(cases[1:], data, task, threads)
    retrieval = _retrieval(request, first, cases[1:], threads) if request.retrieval is not None else None
    shapes = list(dict.fromkeys([shape, (_MANY, shape[1])]))
    busy: dict[str, str] = {}
    with opened(cases, threads, "cpu") as asks:
        for each, repetitions in zip(shapes, (_REPETITIONS, _FEW), strict=False):
            busy |= measure(cases, asks, [each], _WARMUP, repetitions)
    results = {
        "schema": SCHEMA,
        "command": command_line(),
        "machine": machine() | {"threads": str(threads)} | runtimes(cases) | busy,
        "model": request.model,
        "target": request.target,
        "shape": "x".join(map(str, shape)),
        "max_loss": request.max_loss,
        "task": task.name,
        "pipeline_tag": task.pipeline_tag,
        "score": next(iter(scores[DENSE])),
        "points": {metric: task.points(metric) for metric in scores[DENSE]},
        "lower_is_better": sorted(task.lower_is_better),
        "validation": {
            "source": _source(job.guessed.texts(first)),
            "rows": len(data.val_dataloader().dataset),
        },
        "comparison": compare_outcomes(outcomes),
        "scores": scores,
        "retrieval": retrieval,
        "references": [
            {"name": name, "engine": case.label, "bytes": case.variant.bytes, "times": case.results["times"]}
            for name, case in zip(("dense, Hugging Face eager", "dense, fp32"), cases[:2], strict=True)
        ],
    }
    whole = dense_structure(job.config)
    members = [_member(each, planned, whole, trained, cases, exports, results) for each in planned]
    results |= {"members": members} | choose(members, request.max_loss)
    save_page(results, job.folder)
    return results


def _source(data: TextData) -> str:
    """Where the validation examples are from."""
    train, val = data.files["train"], data.files["val"]
    if val is None:
        return f"held out of {train}"
    return f"the validation split of {val}" if val == train else val


def _export_all(job: Job, trained: Mapping[str, Path]) -> dict[str, Path]:
    """The dense model in fp32 and every model that was trained in the target, by name."""
    places = {name: job.folder / "exports" / name for name in (DENSE, *trained)}
    # What is replaced was written by an earlier call: nobody else's file is in there, or nothing is.
    export(model=job.dense, to=job.request.runtime, output=str(places[DENSE]), overwrite=True)
    for name, model in trained.items():
        export(run=str(model.parent), to=job.request.target, output=str(places[name]), overwrite=True)
    return places


def _cases(job: Job, exports: Mapping[str, Path]) -> list[Case]:
    """The dense model in eager PyTorch, then every export on its engine, the dense one first."""
    found = cases_of([f"{_EAGER}={job.dense}"], ["eager"])
    for name, folder in exports.items():
        found += cases_of([f"{name}={folder}"], [ENGINES[job.request.runtime]])
    return found


def _evaluate(
    cases: Sequence[Case], data: LightningDataModule, task: Task, threads: int
) -> tuple[dict[str, dict[str, float]], dict[str, Outcomes]]:
    """Metrics and answers of each case by the name of its model, computed by its engine."""
    scores: dict[str, dict[str, float]] = {}
    outcomes: dict[str, Outcomes] = {}
    for case in cases:
        answer = _in_order(answers(open_engine(case.variant, threads)), case.order)
        scores[case.model], outcomes[case.model] = evaluate_answers(answer, data, task, case.model)
    return scores, outcomes


def _retrieval(request: Request, model: str, cases: Sequence[Case], threads: int) -> dict[str, Any]:
    """Scores of each case on the queries of ``--retrieval``, each among the texts of all."""
    section = retrieval_section(request)
    section["init_args"]["tokenizer"] = model
    data = validation_data(section, load_config(model, "--run"))
    scores, outcomes = _evaluate(cases, data, task_of(data), threads)
    queries = len(next(iter(outcomes.values())).lengths)
    return {
        "source": request.retrieval,
        "queries": queries,
        "scores": scores,
        "comparison": compare_outcomes(outcomes),
    }


def _in_order(answer: Callable[[Any], SimpleNamespace], order: Sequence[int] | None) -> Callable[[Any], Any]:
    """Answers with the classes in the order of the data."""
    if order is None:
        return answer

    def ordered(inputs: Any) -> SimpleNamespace:
        output = answer(inputs)
        output.logits = output.logits[..., list(order)]
        return output

    return ordered


def _member(
    each: Planned,
    planned: Sequence[Planned],
    whole: Structure,
    trained: Mapping[str, Path],
    cases: Sequence[Case],
    exports: Mapping[str, Path],
    results: Mapping[str, Any],
) -> dict[str, Any]:
    """Everything about a member; of one that is the same model as an earlier one what is that one's."""
    same = (other.name for other in planned if other.structure == each.structure)
    name = each.name if each.name in trained else next(same)
    case = next(case for case in cases if case.model == name)
    loss, said = loss_of(results, name)
    models = results["comparison"]["metrics"][results["score"]]["models"]
    times = {reference.model: reference.results["times"] for reference in cases[:2]}

    def faster(reference: str) -> float:
        shape = results["shape"]
        return times[reference][shape]["median_ms"] / case.results["times"][shape]["median_ms"]

    return {
        "name": each.name,
        "same_as": None if name == each.name else name,
        "asked": each.asked,
        "structure": each.structure.to_json(),
        "done": describe(each.structure, whole),
        "planned_twice": each.corrected,
        "folder": str(exports[name]),
        "run": str(trained[name].parent),
        "file": str(case.variant.file),
        "engine": case.label,
        "bytes": case.variant.bytes,
        "times": case.results["times"],
        "speedup": faster(DENSE),
        "speedup_to_eager": faster(_EAGER),
        "score": models[name]["value"],
        "interval": [models[name]["low"], models[name]["high"]],
        "loss": loss,
        "said": said,
    }
