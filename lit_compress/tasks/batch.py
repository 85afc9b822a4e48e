"""What a data module gives to a training, an evaluation or a prediction."""

from collections.abc import Mapping
from typing import Any, NamedTuple

from torch import Tensor

__all__ = ["IGNORED", "Batch", "rows_of"]

# Label of tokens that are not part of a loss or a metric: F.cross_entropy's default.
IGNORED = -100


class Batch(NamedTuple):
    """Rows as the model, the loss and the metrics need them.

    Attributes:
        inputs: arguments of the model's forward pass, each ``(batch, tokens)``.
        targets: tensors that a loss or a metric compares with; in predictions there need not be any.
        meta: what else is known of the rows: ``index`` ``(batch,)``, the number of each training example; texts and
            places that metrics and predictions are made of.

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
