"""What compression is doing, for TensorBoard and the progress bar; reads only."""

import math
import time
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.loggers import TensorBoardLogger
from matplotlib.figure import Figure

from lit_compress.functional.masks import sparsity
from lit_compress.nn.quantizers import MinMaxWeightQuantizer
from lit_compress.nn.surgery import compressible_layers
from lit_compress.strategies.strategy import student_of
from lit_compress.tasks.batch import rows_of

__all__ = ["CompressionMonitor", "sparsity_heatmap"]


class CompressionMonitor(Callback):
    """Logs samples per second, sparsity (all, and per layer), a sparsity heat map and histograms of weight scales.

    Args:
        every: training batches between two measurements.

    """

    def __init__(self, every: int = 10) -> None:
        self.every = every
        self._batch_ended = 0.0
        self._clock = (0.0, 0)  # time and samples of the last measurement; a display, not a state worth saving

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._clock = (time.perf_counter(), 0)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        started, samples = self._clock
        samples += rows_of(batch) * trainer.world_size
        self._clock = (started, samples)
        self._batch_ended = time.perf_counter()
        if (batch_idx + 1) % self.every and not trainer.is_last_batch:
            return
        now = time.perf_counter()
        self._clock = (now, 0)
        pl_module.log("samples_per_second", samples / max(now - started, 1e-9))
        student = student_of(pl_module)
        if per_layer := layer_sparsity(student):
            pl_module.log("sparsity", total_sparsity(student), prog_bar=True)
            pl_module.log_dict({f"sparsity/{name}": value for name, value in per_layer.items()})

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        # Speed is that of training: the clock stands still while validation runs.
        started, samples = self._clock
        self._clock = (started + time.perf_counter() - self._batch_ended, samples)
        logger = trainer.logger
        if trainer.sanity_checking or not isinstance(logger, TensorBoardLogger) or not trainer.is_global_zero:
            return
        student = student_of(pl_module)
        if per_layer := layer_sparsity(student):
            logger.experiment.add_figure("sparsity_map", sparsity_heatmap(per_layer), trainer.global_step)
        for name, layer in compressible_layers(student):
            if isinstance(layer.weight_quantizer, MinMaxWeightQuantizer) and layer.weight_quantizer.enabled:
                scale = layer.weight_quantizer.scale.reshape(-1)
                logger.experiment.add_histogram(f"weight_scale/{name}", scale, trainer.global_step)


def layer_sparsity(student: torch.nn.Module) -> dict[str, float]:
    """Layer name to fraction of pruned weights, for layers that have a mask."""
    return {
        name: sparsity(layer.weight_mask)
        for name, layer in compressible_layers(student)
        if layer.weight_mask is not None
    }


def total_sparsity(student: torch.nn.Module) -> float:
    """Fraction of pruned weights over all layers that have a mask."""
    masks = [layer.weight_mask for _, layer in compressible_layers(student) if layer.weight_mask is not None]
    kept = sum(int(torch.count_nonzero(mask)) for mask in masks)
    return 1 - kept / max(sum(mask.numel() for mask in masks), 1)


def sparsity_heatmap(per_layer: dict[str, float]) -> Figure:
    """Layers by matrices, the sparsity of each in its cell; a name's layer is its first number."""
    rows: dict[str, dict[str, float]] = {}
    for name, value in per_layer.items():
        parts = name.split(".")
        index = next((i for i, part in enumerate(parts) if part.isdigit()), None)
        row, column = (parts[index], ".".join(parts[index + 1 :])) if index is not None else ("-", name)
        rows.setdefault(row, {})[column] = value
    columns = list(dict.fromkeys(column for row in rows.values() for column in row))
    values = [[row.get(column, float("nan")) for column in columns] for row in rows.values()]
    figure = Figure(figsize=(1.6 + 1.1 * len(columns), 1.8 + 0.34 * len(rows)), dpi=150, layout="constrained")
    axes = figure.add_subplot()
    axes.imshow(values, vmin=0, vmax=1, cmap="Blues", aspect="auto")
    axes.set_xticks(range(len(columns)), [column.replace(".", "\n", 1) for column in columns], fontsize=8)
    axes.set_yticks(range(len(rows)), list(rows), fontsize=8)
    axes.set_ylabel("layer")
    axes.set_title("Sparsity (fraction of pruned weights)", fontsize=10)
    for y, row in enumerate(values):
        for x, value in enumerate(row):
            if math.isnan(value):
                continue
            axes.text(
                x, y, f"{value:.2f}", ha="center", va="center", fontsize=8, color="white" if value > 0.6 else "black"
            )
    return figure
