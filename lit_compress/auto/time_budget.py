"""How long the trainings of a family take, and how many steps of each fit into the time that is given."""

import copy
import time
from collections.abc import Mapping
from functools import partial
from typing import Any

import torch
from transformers import PreTrainedModel

from lit_compress.choices import TrainerPrecision
from lit_compress.guessed_data import student_epochs, teacher_epochs

__all__ = ["START", "Steps", "steps_of", "training_seconds"]

_INT8_STEPS = 100  # of the optimizer, until ranges are known and weights have adapted
_LEAST = 20  # steps below which a training is none
_CHEAP = 0.1  # fraction of all time that the integers alone may have whatever becomes of the others
START = 10.0  # seconds that a training takes in addition to its steps

Steps = dict[str, int]


def steps_of(
    names: Mapping[str, str],
    epoch: int,
    seconds: Mapping[str, float],
    minutes: float | None,
    begun: int | None = None,
) -> Steps:
    """Optimizer steps of each training.

    The integers alone have at most an epoch. When everything takes longer than there is time, all become shorter by the
    same share; the integers alone stay as they are where they take a tenth of the time at most.

    Args:
        names: of the trainings, and the kind of each: ``teacher``, ``int8`` or ``member``.
        epoch: steps of an epoch.
        seconds: of a step, by kind.
        minutes: for all trainings together; None takes as long as it takes.
        begun: steps of the teacher, where an earlier call with other names decided them; the others share the time that
            they leave.

    Example:
        >>> steps_of({"teacher": "teacher", "4x": "member"}, 500, {"teacher": 0.1, "member": 0.2}, None)
        {'teacher': 1500, '4x': 2000}
        >>> steps_of({"teacher": "teacher", "4x": "member"}, 500, {"teacher": 0.1, "member": 0.2}, 2.0)
        {'teacher': 273, '4x': 364}

    """
    usual = {
        "teacher": epoch * teacher_epochs(epoch),
        "int8": min(_INT8_STEPS, epoch),
        "member": epoch * student_epochs(epoch),
    }
    steps = {name: usual[kind] for name, kind in names.items()}
    if minutes is None:
        return steps
    time_left = 60 * minutes - START * len(steps)
    taken = {name: seconds[kind] * steps[name] for name, kind in names.items()}
    cheap = {name for name, kind in names.items() if kind == "int8" and taken[name] <= _CHEAP * time_left}
    left = {name: each for name, each in taken.items() if name not in cheap}
    share = (time_left - sum(taken[name] for name in cheap)) / max(sum(left.values()), 1e-9)
    found = {
        name: count if name in cheap else min(count, max(round(share * count), _LEAST)) for name, count in steps.items()
    }
    if begun is None or "teacher" not in names or found["teacher"] == begun:
        return found
    others = {name: kind for name, kind in names.items() if name != "teacher"}
    left = minutes - (START + begun * seconds["teacher"]) / 60
    return {"teacher": begun} | steps_of(others, epoch, seconds, left)


def training_seconds(
    model: PreTrainedModel, rows: int, tokens: int, precision: TrainerPrecision = "32-true", repetitions: int = 3
) -> dict[str, float]:
    """Seconds of an optimizer step of each kind of training, measured on random tokens; the model stays as it is.

    Args:
        model: dense, with any head.
        rows: of a batch.
        tokens: of each row.
        precision: of the trainings.
        repetitions: of which the fastest counts.

    """
    config: Any = model.config
    device = torch.accelerator.current_accelerator() or torch.device("cpu")  # where Lightning trains
    inputs = {"input_ids": torch.randint(0, config.vocab_size, (rows, tokens), device=device)}
    inputs["attention_mask"] = torch.ones_like(inputs["input_ids"])
    autocast = partial(torch.autocast, device.type, torch.bfloat16, enabled=precision == "bf16-mixed")
    learning, listening = [], []
    learner: Any = copy.deepcopy(model).train()
    learner.to(device)
    optimizer = torch.optim.AdamW([parameter for parameter in learner.parameters() if parameter.requires_grad])
    for _ in range(repetitions + 1):
        started = _now(device)
        # Each forward pass casts the weights anew, as those of a teacher and a student do.
        with autocast(), torch.no_grad():
            learner(**inputs)
        between = _now(device)
        with autocast():
            output = learner(**inputs)
        values = [value for value in output.values() if isinstance(value, torch.Tensor) and value.requires_grad]
        torch.stack([value.float().square().mean() for value in values]).sum().backward()
        optimizer.step()
        optimizer.zero_grad()
        listening.append(between - started)
        learning.append(_now(device) - between)
    step, teacher = min(learning[1:]), min(listening[1:])  # the first call is slower
    return {"teacher": step, "int8": step + teacher, "member": step + teacher}


def _now(device: torch.device) -> float:
    """Seconds, once everything that was begun on the device is done."""
    if device.type != "cpu":
        torch.accelerator.synchronize(device)
    return time.perf_counter()
