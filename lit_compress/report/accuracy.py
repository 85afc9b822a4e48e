"""How good a model is on a run's validation data."""

import torch
from lightning.fabric.utilities import move_data_to_device
from lightning.pytorch import LightningDataModule
from transformers import PreTrainedModel

from lit_compress.modules.encoder import model_inputs
from lit_compress.modules.tasks import Task

__all__ = ["evaluate"]


@torch.inference_mode()
def evaluate(model: PreTrainedModel, data: LightningDataModule, task: Task) -> dict[str, float]:
    """Metrics of a model on ``data.val_dataloader()``, named without prefix.

    Args:
        model: in evaluation mode; runs on its own device.
        data: after ``setup``.
        task: loss and metrics.

    """
    metrics = task.metrics("").to(model.device)
    for batch in data.val_dataloader():
        batch = move_data_to_device(batch, model.device)
        task.update(metrics, model(**model_inputs(batch)), batch)
    return {name: float(value) for name, value in metrics.compute().items()}
