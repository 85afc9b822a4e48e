"""What a data module gives to a training, an evaluation or a prediction."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor

__all__ = ["IGNORED", "Batch", "counted", "rows_of", "rows_where"]

# Label of tokens that are not part of a loss or a metric: F.cross_entropy's default.
IGNORED = -100


class Batch(NamedTuple):
    """Rows as the model, the loss and the metrics need them.

    Attributes:
        inputs: arguments of the model's forward pass, each ``(batch, tokens)``.
        targets: tensors that a loss or a metric compares with; in predictions there need not be any.
        meta: what else is known of the rows: ``index`` ``(batch,)``, the number of each training example; texts and
            places that metrics and predictions are made of; the numbers of :func:`counted`.

    """

    inputs: dict[str, Tensor]
    targets: dict[str, Tensor]
    meta: dict[str, Any]

    @property
    def rows(self) -> int:
        """How many examples it has."""
        return len(next(iter(self.inputs.values())))


def rows_of(batch: Batch | Mapping[str, Tensor]) -> int:
    """How many examples a batch has; for strategies, whose modules may have dictionaries of tensors as batches."""
    return batch.rows if isinstance(batch, Batch) else len(next(iter(batch.values())))


def counted(batch: Batch) -> Batch:
    """The batch with the numbers of its ``attended`` and ``labelled`` tokens, counted while they are on the host.

    Afterwards nobody need wait for a device to know how many rows :func:`rows_where` gives.
    """
    found: dict[str, int] = {}
    mask, labels = batch.inputs.get("attention_mask"), batch.targets.get("labels")
    if mask is not None and mask.device.type == "cpu":
        found["attended"] = int(torch.count_nonzero(mask))
    if labels is not None and labels.device.type == "cpu" and labels.ndim == 2 and not labels.is_floating_point():
        found["labelled"] = int(torch.count_nonzero(labels != IGNORED))
    return batch._replace(meta=batch.meta | found)


def rows_where(mask: Tensor, count: int | None, *values: Tensor) -> list[Tensor]:
    """Of each of some values ``(..., *)`` the rows ``(count, *)`` where a mask ``(...)`` is not zero.

    Args:
        mask: of any type.
        count: how many are not zero; None waits for the mask's device to know.
        values: begin with the mask's shape.

    Example:
        >>> rows_where(torch.tensor([[1, 0], [1, 1]]), 3, torch.tensor([[1, 2], [3, 4]]))
        [tensor([1, 3, 4])]

    """
    if count is None:
        chosen = mask.bool()
        return [value[chosen] for value in values]
    place = torch.nonzero_static(mask.reshape(-1), size=count).squeeze(1)
    return [value.flatten(0, mask.ndim - 1).index_select(0, place) for value in values]
