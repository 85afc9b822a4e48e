"""What compression is doing, for TensorBoard and the progress bar; reads only."""

import math
import time
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.loggers import TensorBoardLogger
from matplotlib.figure import Figure

from lit_compress.nn.quantizers import MinMaxWeightQuantizer
from lit_compress.nn.replace_layers import compressible_layers
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
        self._masks = _Masks()

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
        # Tensors on the host: a number would be copied to the device and back, and waited for both times.
        pl_module.log("samples_per_second", torch.tensor(samples / max(now - started, 1e-9)))
        if self._masks.read(student_of(pl_module)):
            pl_module.log("sparsity", torch.tensor(self._masks.total), prog_bar=True)
            per_layer = self._masks.per_layer
            pl_module.log_dict({f"sparsity/{name}": torch.tensor(value) for name, value in per_layer.items()})

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


class _Masks:
    """The sparsity of a student, looked up again only after a mask has changed: until then a GPU is not waited for.

    Attributes:
        total: fraction of pruned weights over all layers that have a mask.
        per_layer: the same of each.

    """

    def __init__(self) -> None:
        self.total = 0.0
        self.per_layer: dict[str, float] = {}
        self._versions: list[tuple[int, int]] = []

    def read(self, student: torch.nn.Module) -> bool:
        """Bring the figures up to date; whether there is any mask."""
        masks = _masks(student)
        versions = [(id(mask), mask._version) for mask in masks.values()]
        if versions != self._versions:
            self._versions, kept = versions, _kept(masks)
            self.total, self.per_layer = _total(masks, kept), _per_layer(masks, kept)
        return bool(masks)


def layer_sparsity(student: torch.nn.Module) -> dict[str, float]:
    """Layer name to fraction of pruned weights, for layers that have a mask."""
    masks = _masks(student)
    return _per_layer(masks, _kept(masks))


def total_sparsity(student: torch.nn.Module) -> float:
    """Fraction of pruned weights over all layers that have a mask."""
    masks = _masks(student)
    return _total(masks, _kept(masks))


def _masks(student: torch.nn.Module) -> dict[str, torch.Tensor]:
    layers = compressible_layers(student)
    return {name: layer.weight_mask for name, layer in layers if layer.weight_mask is not None}


def _kept(masks: dict[str, torch.Tensor]) -> list[int]:
    """Weights that each mask keeps, in one transfer."""
    return torch.stack([torch.count_nonzero(mask) for mask in masks.values()]).tolist() if masks else []


def _per_layer(masks: dict[str, torch.Tensor], kept: list[int]) -> dict[str, float]:
    return {name: 1.0 - count / mask.numel() for (name, mask), count in zip(masks.items(), kept, strict=True)}


def _total(masks: dict[str, torch.Tensor], kept: list[int]) -> float:
    return 1 - sum(kept) / max(sum(mask.numel() for mask in masks.values()), 1)


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
