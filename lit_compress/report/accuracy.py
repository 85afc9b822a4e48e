"""How good a model is on a run's validation data."""

from collections.abc import Sequence

import numpy as np
import torch
from lightning.fabric.utilities import move_data_to_device
from lightning.pytorch import LightningDataModule
from transformers import PreTrainedModel

from lit_compress.modules.encoder import model_inputs
from lit_compress.modules.tasks import Task
from lit_compress.report.outcomes import Outcomes, Recorder

__all__ = ["evaluate_units"]


@torch.inference_mode()
def evaluate_units(
    model: PreTrainedModel, data: LightningDataModule, task: Task, labels: Sequence[str] | None
) -> tuple[dict[str, float], Outcomes]:
    """Metrics of a model on ``data.val_dataloader()`` in float64, and what it did on each row, from one pass.

    Args:
        model: in evaluation mode; runs on its own device.
        data: after ``setup``; its rows come in the same order for every model.
        task: what the model is asked.
        labels: names of classes or tags in the order of their ids.

    """
    recorder = Recorder(task, labels)
    for batch in data.val_dataloader():
        batch = move_data_to_device(batch, model.device)
        recorder.add(model(**model_inputs(batch)), batch)
    outcomes = recorder.outcomes()
    scores = outcomes.score(np.ones((1, len(outcomes.lengths))))
    return {name: float(value[0]) for name, value in scores.items()}, outcomes
