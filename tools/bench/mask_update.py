"""How many training steps one update of all pruning masks costs.

Measured: inside ``Trainer.fit`` as the command line sets it up, on a ``LitTeacher`` of BERT-base size with random
weights, ``MagnitudePruning`` updates every mask after every step, the sparsity growing all the time. Two callbacks, one
before and one after it, take the time of the update (scores, masks, zeroing weights and AdamW's moments, in all 72
linears of the encoder). What the same step took before (forward, backward, clipping, AdamW) is its baseline, so step
and update are interleaved by construction. Every pair of a step and its update is a repetition; the first are left out.

Patterns: ``unstructured`` per layer, ``unstructured global`` (one threshold), ``2:4``, and ``1x4`` blocks.

Target: an update costs less than 1.5 steps. Every row also says how often masks may be updated if pruning is to cost
at most 1 % of training: every ``N`` steps, ``N = ceil(100 * ratio)``.

Gate, after each fit and before any row is written: the masks have the sparsity asked for (per layer, or in total when
global), exactly 2 of 4 are kept, blocks are whole.

``scale`` multiplies the step's time, to try this out with small batches: ``--batch_size 4 --scale 8`` stands for 32
rows. That ignores what does not grow with the batch (AdamW, clipping) and makes the ratio too small; rows with a scale
other than 1 are no result.
"""

import math
import statistics
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from jsonargparse import auto_cli
from lightning.pytorch import Callback, LightningModule, Trainer, seed_everything
from torch.utils.data import DataLoader

from lit_compress.models.load import load_config
from lit_compress.modules import LitTeacher
from lit_compress.nn import CompressibleLinear, compressible_layers
from lit_compress.strategies import MagnitudePruning
from lit_compress.tasks import Batch
from tools.bench.measure import (
    RESULTS,
    Row,
    cli_trainer,
    milliseconds,
    model_source,
    publish,
    quiet,
    require_close,
    synchronize,
    synthetic_batches,
)

PATTERNS: dict[str, dict[str, Any]] = {
    "unstructured": {"sparsity": 0.8, "pattern": "unstructured"},
    "unstructured global": {"sparsity": 0.8, "pattern": "unstructured", "scope": "global"},
    "2:4": {"sparsity": 0.5, "pattern": "2:4"},
    "1x4": {"sparsity": 0.8, "pattern": "1x4"},
}
TARGET = 1.5
AMORTISED = "every_n_steps_for_1_percent"


class Ticks(Callback):
    """Times at which a batch starts and at which its end reaches this callback."""

    def __init__(self) -> None:
        self.starts: list[float] = []
        self.ends: list[float] = []

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        self.starts.append(_now())

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        self.ends.append(_now())


def mask_update(
    model: str = "random:12x768",
    batch_size: int = 32,
    tokens: int = 128,
    steps: int = 6,
    skip: int = 1,
    scale: float = 1.0,
    output: Path = RESULTS,
) -> list[Row]:
    """Time one update of all masks against one training step.

    Args:
        model: hub name, folder, ``package:...`` or ``random:LAYERSxWIDTH``.
        batch_size: rows of a batch.
        tokens: length of each row.
        steps: training steps of the fit of each pattern.
        skip: first steps of each fit that are not counted.
        scale: factor on the step's time, when the batch is smaller than the one it stands for; for trying out only.
        output: CSV to append to.

    """
    if steps <= skip:
        raise SystemExit(f"steps: {steps} leaves nothing to time after skip={skip}; give at least {skip + 1}")
    settings = {"model": model, "batch_size": batch_size, "tokens": tokens, "steps": steps, "skip": skip}
    rows = []
    with tempfile.TemporaryDirectory() as folder, quiet():
        source = model_source(model, Path(folder))
        batches = synthetic_batches(steps, batch_size, tokens, load_config(source, "model").vocab_size)
        for name, options in PATTERNS.items():
            step, update = fit(source, batches, options, Path(folder))
            step, update = [seconds * scale for seconds in step[skip:]], update[skip:]
            ratios = [u / s for u, s in zip(update, step, strict=True)]
            absolute = {"ms": milliseconds({"step": step, "update": update})}
            amortised = {AMORTISED: math.ceil(100 * statistics.median(ratios))}
            rows.append(
                Row(
                    benchmark="mask_update",
                    case=name,
                    baseline="training step" if scale == 1 else f"training step x {scale:g}",
                    ratios=ratios,
                    target=TARGET,
                    settings=settings | options | {"scale": scale} | amortised | absolute,
                )
            )
    publish(rows, output)
    for row in rows:
        print(f"{row.case}: at most 1 % of training when updated every {row.settings[AMORTISED]} steps")
    return rows


def fit(source: str, batches: list[Batch], options: dict[str, Any], folder: Path) -> tuple[list[float], list[float]]:
    """Seconds of each step without its update, and of each update."""
    seed_everything(42, verbose=False)
    module = LitTeacher(source, labels=["0", "1"])
    before, after = Ticks(), Ticks()
    pruning = MagnitudePruning(schedule="linear", start="0%", end="100%", every="1 steps", **options)
    cli_trainer(folder, [before, pruning, after], len(batches)).fit(module, DataLoader(batches, batch_size=None))
    check(options, [layer for _, layer in compressible_layers(module.student)])
    step = [end - start for start, end in zip(before.starts, before.ends, strict=True)]
    update = [end - start for start, end in zip(before.ends, after.ends, strict=True)]
    return step, update


def check(options: dict[str, Any], layers: Sequence[CompressibleLinear]) -> None:
    """Gate: the final masks have the sparsity and the shape asked for, and weights are 0 under them."""
    masks = [layer.weight_mask for layer in layers]
    groups = masks if options.get("scope") != "global" else [torch.cat([mask.flatten() for mask in masks])]
    tolerance = 4 / min(group.numel() for group in groups)  # rounding to whole blocks
    densities = [group.float().mean().item() for group in groups]
    require_close("final and wanted density", densities, [1 - options["sparsity"]] * len(groups), 5 * tolerance)
    fours = torch.cat([mask.reshape(-1, 4).sum(1) for mask in masks])
    allowed = {"2:4": [2], "1x4": [0, 4]}.get(options["pattern"], [0, 1, 2, 3, 4])
    if not torch.isin(fours, torch.tensor(allowed, device=fours.device)).all():
        raise SystemExit(f"gate: groups of four do not follow {options['pattern']!r}; no row was written")
    if any((layer.weight[~layer.weight_mask] != 0).any() for layer in layers):
        raise SystemExit("gate: a pruned weight is not 0; no row was written")


def _now() -> float:
    synchronize()
    return time.perf_counter()


if __name__ == "__main__":
    auto_cli(mask_update, as_positional=False)
