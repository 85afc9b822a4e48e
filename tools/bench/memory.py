"""How much memory training with a teacher takes, against what its two models need by themselves.

Measured: peak memory of a training of a few full-length synthetic batches with the real modules and Trainer. Without a
GPU each case is a process of its own and the figure is the largest resident set it ever had (``VmHWM``: loading,
training, everything); with one it is ``torch.cuda.max_memory_allocated`` of such a process.

Definitions, in bytes:

- *interpreter*: peak of the same program training a toy model (one layer of width 64 and one batch of two rows of
  eight tokens): Python, all imports, thread pools. Subtracted from every peak below.
- *student's own footprint*: peak of training the student alone (``LitTeacher``: labels only) - interpreter.
- *teacher's own footprint*: bytes of its parameters + how far one forward under ``no_grad`` raises the peak above
  what was resident before it. (Where ``/proc/self/clear_refs`` cannot be written, above the earlier peak, which makes
  this footprint smaller and the ratio larger.)
- ratio: (peak of ``LitStudent`` with this teacher and logit distillation - interpreter) / (student's + teacher's own).
  ``hidden`` measures the same with hidden states imitated as well (equal widths needed), without a target.

Gate, before any row is written: the task loss at the first step is the same with and without the teacher.
"""

import contextlib
import gc
import multiprocessing
import statistics
import tempfile
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import torch
from jsonargparse import auto_cli
from lightning.pytorch import seed_everything
from torch.utils.data import DataLoader

from lit_compress.models import load_classifier
from lit_compress.models.load import load_config
from lit_compress.modules import HiddenDistillation, LitEncoder, LitStudent, LitTeacher, LogitDistillation
from lit_compress.nn import FrozenTeacher
from lit_compress.tasks import Batch
from tools.bench.measure import (
    MINILM,
    RESULTS,
    Losses,
    Row,
    cli_trainer,
    interleave,
    model_source,
    publish,
    quiet,
    require_close,
    synthetic_batches,
)

LABELS = ["0", "1"]
BOTH, HIDDEN = "student + teacher", "student + teacher, hidden states"
BASELINE = "student's own + teacher's own"
TARGET = 1.15


def memory(
    model: str = MINILM,
    teacher: str | None = None,
    batch_size: int = 32,
    tokens: int = 128,
    steps: int = 3,
    hidden: bool = False,
    repetitions: int = 3,
    output: Path = RESULTS,
) -> list[Row]:
    """Measure peak memory of a student's training with its teacher.

    Args:
        model: student: hub name, folder, ``package:...`` or ``random:LAYERSxWIDTH``.
        teacher: likewise; None takes the model.
        batch_size: rows of a batch.
        tokens: length of each row.
        steps: training steps; AdamW's moments exist from the first on.
        hidden: measure the imitation of hidden states, too.
        repetitions: processes of each case.
        output: CSV to append to.

    """
    settings = {
        "model": model,
        "teacher": teacher or model,
        "batch_size": batch_size,
        "tokens": tokens,
        "steps": steps,
    }
    losses: dict[str, float] = {}
    with tempfile.TemporaryDirectory() as folder, quiet():
        models = {key: model_source(settings[key], Path(folder)) for key in ("model", "teacher")}
        real = models | {"batch_size": batch_size, "tokens": tokens, "steps": steps}
        toy = model_source("random:1x64", Path(folder), vocabulary=100)
        options = {
            "interpreter": {"model": toy, "teacher": toy, "batch_size": 2, "tokens": 8, "steps": 1},
            "student": real,
            "teacher": real,
            BOTH: real,
        } | ({HIDDEN: real} if hidden else {})

        def peak(case: str) -> float:
            size, losses[case] = in_new_process({"case": case} | options[case])
            return size

        peaks = interleave({name: partial(peak, name) for name in options}, repetitions)
    cases = [name for name in (BOTH, HIDDEN) if name in peaks]
    for case in cases:
        require_close("the task losses with and without a teacher", [losses[case]], [losses["student"]], 1e-6)
    settings["mebibytes"] = {name: round(statistics.median(values) / 2**20, 1) for name, values in peaks.items()}
    rows = [
        Row(
            benchmark="memory",
            case=case,
            baseline=BASELINE,
            ratios=ratios(peaks, case),
            target=TARGET if case == BOTH else None,
            settings=settings,
        )
        for case in cases
    ]
    publish(rows, output)
    print(f"MiB: {settings['mebibytes']}")
    return rows


def ratios(peaks: dict[str, list[float]], case: str) -> list[float]:
    """(peak with a teacher - interpreter) / (student's own + teacher's own), repetition by repetition."""
    rounds = zip(peaks[case], peaks["student"], peaks["teacher"], peaks["interpreter"], strict=True)
    return [(both - base) / (student - base + teacher) for both, student, teacher, base in rounds]


def in_new_process(options: dict[str, Any]) -> tuple[float, float]:
    """:func:`footprint` in a process of its own, forked from one that has imported the frameworks and done nothing."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["tools.bench.measure"])
    with ProcessPoolExecutor(1, context) as pool:
        return pool.submit(footprint, **options).result()


def footprint(case: str, model: str, teacher: str, batch_size: int, tokens: int, steps: int) -> tuple[float, float]:
    """Bytes of one case, and the task loss of its first step (0 for the teacher, which learns nothing)."""
    # Ids from the whole vocabulary: a page of the weight file that nobody reads would not be resident.
    batches = synthetic_batches(steps, batch_size, tokens, load_config(model, "model").vocab_size)
    with tempfile.TemporaryDirectory() as folder, quiet():
        if case == "teacher":
            return teachers_own(teacher, batches[0]), 0.0
        seed_everything(42, verbose=False)
        if case in ("interpreter", "student"):
            module: LitEncoder = LitTeacher(model, labels=LABELS)
        else:
            terms = {"kd": LogitDistillation()} | ({"hidden": HiddenDistillation()} if case == HIDDEN else {})
            module = LitStudent(model, teacher, distillation=terms, labels=LABELS)
        losses = Losses()
        cli_trainer(Path(folder), [losses], steps).fit(module, DataLoader(batches, batch_size=None))
        return peak_bytes(), losses.task[0]


def teachers_own(source: str, batch: Batch) -> float:
    """Bytes of the parameters, and of what a forward under ``no_grad`` adds at its peak."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    teacher = FrozenTeacher(load_classifier(source, LABELS, key="teacher")).to(device)
    parameters = sum(p.numel() * p.element_size() for p in teacher.model.parameters())
    inputs = {name: tensor.to(device) for name, tensor in batch.inputs.items()}
    # Weights are mapped from their file and become resident when first read, libraries load with the first forward:
    # neither is part of the forward measured.
    teacher(**{name: tensor[:1, :8] for name, tensor in inputs.items()})
    sum(float(p.sum()) for p in teacher.model.parameters())
    gc.collect()
    before = restart_peak()
    teacher(**inputs)
    return parameters + max(peak_bytes() - before, 0)


def peak_bytes() -> float:
    """Largest GPU allocation, or largest resident set of this process, since it began or since the last restart."""
    return torch.cuda.max_memory_allocated() if torch.cuda.is_available() else _status("VmHWM")


def restart_peak() -> float:
    """Let the peak start anew from what is held now, where the system allows it, and return it."""
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
    else:
        with contextlib.suppress(OSError):  # then the peak so far stays, and is what is returned
            Path("/proc/self/clear_refs").write_text("5")
    return peak_bytes()


def _status(key: str) -> float:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{key}:"):
            return int(line.split()[1]) * 1024.0
    raise SystemExit(f"memory: /proc/self/status has no {key}; this benchmark needs Linux")


if __name__ == "__main__":
    auto_cli(memory, as_positional=False)
