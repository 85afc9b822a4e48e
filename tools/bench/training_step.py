"""What compression adds to a training step.

Measured: the time from the start of one training batch to the start of the next inside ``Trainer.fit`` as the command
line sets it up (forward, backward, clipping at 1.0, AdamW, all hooks, logging), on synthetic batches of full length.
Each repetition is one short fit per case, the cases in turn; a fit counts with the median of its steps, the first ones
left out (on a GPU with their mean, for it is waited for at the first and the last of them only: give more steps there).

- ``plain``: ``LitTeacher`` alone. The baseline.
- ``masks``: plus ``MagnitudePruning`` at 80 %, reached before the first step; no update inside the timed steps.
- ``masks + qat``: plus ``QuantAwareTraining`` on every encoder linear, int8 weights and uint8 inputs, quantizers
  enabled and observing.
- ``structured``: masks, and ``StructuredPruning`` collecting first-order scores of heads and neurons at every step; no
  pruning inside the timed steps. Its baseline is ``masks``: the scores alone.
- ``distillation``: ``LitStudent`` with logit distillation from a teacher of its own.
- ``distillation - teacher``: the same less the teacher's forward, which is timed alone (evaluation mode, no
  gradient, the same batches) in the same repetition; what exceeds 1 is the overhead beyond the teacher's forward.

Gate, before any timing: with masks at 0 % the losses of three steps equal the plain ones (relative 1e-6), the task
loss of distillation equals the plain loss at the first step (1e-6), and int8 moves it by less than 5 %. After every
timed fit: masks really are at 80 %, quantizers really are on.
"""

import statistics
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from jsonargparse import auto_cli
from lightning.pytorch import Callback, seed_everything
from torch.utils.data import DataLoader

from lit_compress.models import load_classifier
from lit_compress.models.load import load_config
from lit_compress.modules import LitEncoder, LitStudent, LitTeacher
from lit_compress.nn import FrozenTeacher, compressible_layers
from lit_compress.strategies import MagnitudePruning, QuantAwareTraining, StructuredPruning
from lit_compress.tasks import Batch
from tools.bench.measure import (
    MINILM,
    RESULTS,
    Losses,
    Row,
    StepClock,
    cli_trainer,
    interleave,
    milliseconds,
    model_source,
    publish,
    quiet,
    require_close,
    synchronize,
    synthetic_batches,
)

LABELS = ["0", "1"]
SPARSITY = 0.8
CASES = ("plain", "masks", "masks + qat", "structured", "distillation")
TEACHER = "teacher forward"


@dataclass(frozen=True, kw_only=True)
class Setup:
    """What all cases share: models, batches, where runs are kept."""

    model: str
    teacher: str
    batches: list[Batch]
    folder: Path
    skip: int
    compile: bool
    precision: Literal["32-true", "bf16-mixed"]


def training_step(
    model: str = MINILM,
    teacher: str | None = None,
    batch_size: int = 32,
    tokens: int = 128,
    steps: int = 6,
    skip: int = 2,
    repetitions: int = 9,
    compile: bool = False,
    precision: Literal["32-true", "bf16-mixed"] = "32-true",
    output: Path = RESULTS,
) -> list[Row]:
    """Time a training step: plain, with masks, with masks and fake quantization, with a teacher.

    Args:
        model: hub name, folder, ``package:...`` or ``random:LAYERSxWIDTH``.
        teacher: likewise; None takes the model.
        batch_size: rows of a batch.
        tokens: length of each row.
        steps: training steps of each fit.
        skip: first steps of each fit that are not counted.
        repetitions: fits of each case.
        compile: compile the student.
        precision: Lightning's option.
        output: CSV to append to.

    """
    if steps < skip + 2:
        raise SystemExit(f"steps: {steps} leaves nothing to time after skip={skip}; give at least {skip + 2}")
    settings = {
        "model": model,
        "teacher": teacher or model,
        "batch_size": batch_size,
        "tokens": tokens,
        "steps": steps,
        "skip": skip,
        "compile": compile,
        "precision": precision,
    }
    with tempfile.TemporaryDirectory() as folder, quiet():
        source = model_source(model, Path(folder))
        setup = Setup(
            model=source,
            teacher=model_source(teacher or model, Path(folder)),
            batches=synthetic_batches(steps, batch_size, tokens, load_config(source, "model").vocab_size),
            folder=Path(folder),
            skip=skip,
            compile=compile,
            precision=precision,
        )
        gate(setup)
        runs = {case: lambda case=case: timed_fit(case, setup) for case in CASES}
        seconds = interleave(runs | {TEACHER: lambda: timed_teacher(setup)}, repetitions)
    result = rows(seconds, settings | {"ms": milliseconds(seconds)})
    publish(result, output)
    return result


def rows(seconds: dict[str, list[float]], settings: dict[str, Any]) -> list[Row]:
    """Ratios to the step that a case is compared with, repetition by repetition."""
    seconds = seconds | {
        "distillation - teacher": [d - t for d, t in zip(seconds["distillation"], seconds[TEACHER], strict=True)]
    }
    targets = {
        "masks": ("plain", 1.08),
        "masks + qat": ("plain", 1.25),
        "structured": ("masks", 1.03),
        "distillation": ("plain", None),
        TEACHER: ("plain", None),
        "distillation - teacher": ("plain", 1.05),
    }
    return [
        Row(
            benchmark="training_step",
            case=case,
            baseline=baseline,
            ratios=[a / b for a, b in zip(seconds[case], seconds[baseline], strict=True)],
            target=target,
            settings=settings,
        )
        for case, (baseline, target) in targets.items()
    ]


def gate(setup: Setup) -> None:
    """Stop unless the variants compute what the plain model computes."""
    losses = {}
    for case in CASES:
        record = Losses()
        fit(case, setup, record, steps=3, sparsity=0.0)
        losses[case] = record.task
    plain = losses["plain"]
    # bf16 rounds the masked weight once more than the plain one; fp32 has no such difference.
    exact = 1e-6 if setup.precision == "32-true" and not setup.compile else 1e-2
    require_close("losses with masks at 0 % and plain losses", losses["masks"], plain, exact)
    require_close("the task loss of distillation and the plain loss", losses["distillation"][:1], plain[:1], exact)
    require_close("losses while scores are collected and plain losses", losses["structured"][:2], plain[:2], exact)
    require_close("the int8 loss and the plain loss", losses["masks + qat"][:1], plain[:1], 0.05)


def timed_fit(case: str, setup: Setup) -> float:
    """Median seconds of a step."""
    clock = StepClock(setup.skip)
    module = fit(case, setup, clock, steps=len(setup.batches), sparsity=SPARSITY)
    layers = [layer for _, layer in compressible_layers(module.student)]
    if "masks" in case:
        kept = sum(int(layer.weight_mask.sum()) for layer in layers)
        require_close("final and wanted density", [kept / sum(x.weight.numel() for x in layers)], [1 - SPARSITY], 0.01)
    if "qat" in case and not all(x.weight_quantizer.observing and x.input_quantizer.observing for x in layers):
        raise SystemExit("gate: a quantizer was not observing; the timing would say nothing")
    return clock.median


def timed_teacher(setup: Setup) -> float:
    """Median seconds of the teacher's forward alone."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    teacher = FrozenTeacher(load_classifier(setup.teacher, LABELS, key="teacher")).to(device)
    seconds = []
    for batch in setup.batches:
        inputs = {name: tensor.to(device) for name, tensor in batch.inputs.items()}
        synchronize()
        started = time.perf_counter()
        with torch.autocast(device, torch.bfloat16, enabled=setup.precision == "bf16-mixed"):
            teacher(**inputs)
        synchronize()
        seconds.append(time.perf_counter() - started)
    return statistics.median(seconds[setup.skip :])


def fit(case: str, setup: Setup, watcher: Callback, steps: int, sparsity: float) -> LitEncoder:
    """Train one case; the same seed gives every case the same head, dropout and batches."""
    seed_everything(42, verbose=False)
    if case == "distillation":
        module: LitEncoder = LitStudent(setup.model, setup.teacher, labels=LABELS, compile=setup.compile)
    else:
        module = LitTeacher(setup.model, labels=LABELS, compile=setup.compile)
    strategies: list[Callback] = []
    if "masks" in case or case == "structured":
        strategies.append(MagnitudePruning(sparsity, schedule="constant", start="0%", end="0%"))
    if case == "structured":
        # One pruning, after the last step: until then scores add up.
        heads = 0.5 if module.student.config.num_attention_heads > 1 else None
        strategies.append(StructuredPruning(heads, neurons=0.5, pruning_steps=1, start="0%", end="100%"))
    if "qat" in case:
        strategies.append(QuantAwareTraining(start="0%", freeze_observers=None))
    trainer = cli_trainer(setup.folder, [*strategies, watcher], steps, setup.precision)
    trainer.fit(module, DataLoader(setup.batches, batch_size=None))  # whole batches, in order
    return module


if __name__ == "__main__":
    auto_cli(training_step, as_positional=False)
