"""How good a model is on a run's validation data."""

from collections.abc import Callable, Mapping
from itertools import chain
from typing import Any

import numpy as np
import torch
from lightning.fabric.utilities import move_data_to_device
from lightning.pytorch import LightningDataModule
from torch import Tensor
from transformers import PreTrainedModel

from lit_compress.progress import counted
from lit_compress.tasks import Batch, Outcomes, Task

__all__ = ["Recorder", "evaluate_answers", "evaluate_units"]


class Recorder:
    """Keeps what :class:`~lit_compress.tasks.Outcomes` needs of each batch; logits are not kept.

    Args:
        task: what the model is asked.

    """

    def __init__(self, task: Task) -> None:
        self.task = task
        self._batches: list[dict[str, Any]] = []

    def add(self, output: Any, batch: Batch) -> None:
        """Keep the answers to one batch, a Hugging Face output."""
        ids, mask = batch.inputs["input_ids"], batch.inputs.get("attention_mask")
        lengths = torch.full(ids.shape[:1], ids.shape[1]) if mask is None else mask.sum(1)
        self._batches.append({"lengths": lengths.cpu().numpy()} | self.task.outcome_columns(output, batch))

    def outcomes(self) -> Outcomes:
        """Everything that was added."""
        columns: dict[str, Any] = {}
        for name in self._batches[0]:
            parts = [batch[name] for batch in self._batches]
            columns[name] = (
                np.concatenate(parts) if isinstance(parts[0], np.ndarray) else list(chain.from_iterable(parts))
            )
        return self.task.outcomes(columns)


def evaluate_units(
    model: PreTrainedModel, data: LightningDataModule, task: Task, name: str = "the model"
) -> tuple[dict[str, float], Outcomes]:
    """Metrics of a model on ``data.val_dataloader()`` in float64, and what it did on each row, from one pass.

    Args:
        model: in evaluation mode; runs on its own device.
        data: after ``setup``; its rows come in the same order for every model.
        task: what the model is asked.
        name: of the model, for the progress that is shown.

    """
    return evaluate_answers(lambda inputs: model(**inputs), data, task, name, model.device)


@torch.inference_mode()
def evaluate_answers(
    answer: Callable[[Mapping[str, Tensor]], Any],
    data: LightningDataModule,
    task: Task,
    name: str,
    device: torch.device | str = "cpu",
) -> tuple[dict[str, float], Outcomes]:
    """:func:`evaluate_units` of whatever answers: a model, or a runtime that computes its export.

    Args:
        answer: from the inputs of a batch by name to outputs like Transformers'.
        data: after ``setup``.
        task: what is asked.
        name: of the model, for the progress that is shown.
        device: that batches are put on.

    """
    recorder, batches = Recorder(task), data.val_dataloader()
    with counted(f"Evaluating {name}", len(batches), "batches") as tell:
        for done, batch in enumerate(batches, 1):
            batch = move_data_to_device(batch, device)
            recorder.add(answer(batch.inputs), batch)
            tell(done)
    outcomes = recorder.outcomes()
    scores = outcomes.score(np.ones((1, len(outcomes.lengths))))
    return {name: float(value[0]) for name, value in scores.items()}, outcomes
