"""How good a model is on a run's validation data."""

from collections.abc import Sequence

import torch
from lightning.fabric.utilities import move_data_to_device
from lightning.pytorch import LightningDataModule
from transformers import PreTrainedModel

from lit_compress.modules.encoder import model_inputs
from lit_compress.modules.tasks import Task
from lit_compress.report.outcomes import Outcomes, Recorder

__all__ = ["evaluate", "evaluate_units"]


def evaluate(model: PreTrainedModel, data: LightningDataModule, task: Task) -> dict[str, float]:
    """Metrics of a model on ``data.val_dataloader()``, named without prefix.

    Args:
        model: in evaluation mode; runs on its own device.
        data: after ``setup``.
        task: loss and metrics.

    """
    return _evaluate(model, data, task, None)


def evaluate_units(
    model: PreTrainedModel, data: LightningDataModule, task: Task, labels: Sequence[str] | None
) -> tuple[dict[str, float], Outcomes]:
    """The same metrics, and what the model did on each row, from one pass over the data.

    Args:
        model: as in :func:`evaluate`.
        data: likewise; its rows come in the same order for every model.
        task: likewise.
        labels: names of classes or tags in the order of their ids.

    """
    recorder = Recorder(task, labels)
    metrics = _evaluate(model, data, task, recorder)
    return metrics, recorder.outcomes()


@torch.inference_mode()
def _evaluate(
    model: PreTrainedModel, data: LightningDataModule, task: Task, recorder: Recorder | None
) -> dict[str, float]:
    metrics = task.metrics("").to(model.device)
    for batch in data.val_dataloader():
        batch = move_data_to_device(batch, model.device)
        output = model(**model_inputs(batch))
        task.update(metrics, output, batch)
        if recorder is not None:
            recorder.add(output, batch)
    return {name: float(value) for name, value in metrics.compute().items()}
