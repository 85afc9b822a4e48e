"""What a data module gives to a training, an evaluation or a prediction."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor

__all__ = ["IGNORED", "Batch", "count_of", "counted", "rows_of", "rows_where", "tied"]

IGNORED = -100
"""Label of tokens that are not part of a loss or a metric: F.cross_entropy's default."""


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


class _Count(NamedTuple):
    """A number that was counted of a tensor, as it was then."""

    number: int
    of: Tensor
    version: int


def tied(batch: Batch) -> Batch:
    """The batch, on its device, with the numbers of :func:`counted` tied to the tensors that they are of.

    A module may change masks and labels afterwards; :func:`count_of` then no longer knows.
    """
    tensors = {"attended": batch.inputs.get("attention_mask"), "labelled": batch.targets.get("labels")}
    found = {
        name: _Count(number, tensor, _version(tensor))
        for name, tensor in tensors.items()
        if tensor is not None and isinstance(number := batch.meta.get(name), int)
    }
    return batch._replace(meta=batch.meta | found) if found else batch


def count_of(batch: Batch, name: str, tensor: Tensor) -> int | None:
    """How many tokens of a mask are ``attended``, or of labels ``labelled``; None when it is not known on the host."""
    known = batch.meta.get(name)
    if not isinstance(known, _Count) or known.of is not tensor or known.version != _version(tensor):
        return None
    return known.number


def _version(tensor: Tensor) -> int:
    return 0 if tensor.is_inference() else tensor._version


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
