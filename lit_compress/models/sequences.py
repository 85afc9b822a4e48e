"""A padded batch as rows of real tokens, one sequence after the other, and back."""

from dataclasses import dataclass

import torch
from torch import Tensor

from lit_compress.errors import UserError

__all__ = ["Sequences", "find_sequences", "pad", "unpad"]


@dataclass(frozen=True, eq=False)
class Sequences:
    """Where the real tokens of a batch are.

    Args:
        batch: sequences.
        length: tokens of a sequence with padding.
        longest: tokens of a sequence without, at most.
        starts: ``(batch + 1,)`` int32, row where each sequence begins, and where the last one ends.
        order: ``(rows,)`` int64, the place in the flattened batch of each row; None when nothing is padding.
        mask: ``(batch, length)`` bool, when rows behind the last real token stand for padding; else None.
        fits: bool, whether the rows hold all real tokens, when their number was fixed beforehand; else None.

    """

    batch: int
    length: int
    longest: int
    starts: Tensor
    order: Tensor | None = None
    mask: Tensor | None = None
    fits: Tensor | None = None


def find_sequences(
    mask: Tensor | None, batch: int, length: int, device: torch.device, budget: int | None = None
) -> Sequences:
    """Find the real tokens; padding may be left, right or in between.

    How many there are has to be known before anything is computed with them, which waits for the device once. While a
    graph is compiled or captured, nothing can wait: then a fixed number of rows is kept, all places of the batch or
    ``budget``, real tokens first and padding behind them, which attention leaves out.

    Args:
        mask: ``(batch, length)``, non-zero at real tokens; None when all are.
        batch: sequences.
        length: tokens of each, with padding.
        device: where the tokens are.
        budget: rows of a graph. A batch that has more real tokens becomes NaN as a whole in :func:`pad`.

    Raises:
        UserError: a mask of another shape.

    """
    if mask is None:
        return _full(batch, length, device)
    if mask.shape != (batch, length):
        raise UserError(
            f"attention_mask: shape {tuple(mask.shape)}; a fused encoder takes ({batch}, {length}), or none; for masks "
            "between single tokens call lit_compress.models.fused.unfuse(model)"
        )
    mask = mask.to(torch.bool)
    lengths = mask.sum(1)
    places = torch.argsort(mask.logical_not().reshape(-1).to(torch.uint8), stable=True)
    starts = torch.nn.functional.pad(lengths.cumsum(0), (1, 0)).to(torch.int32)
    if _static(device):
        rows = batch * length if budget is None else min(budget, batch * length)
        fits = starts[-1] <= rows
        return Sequences(batch, length, length, starts.clamp(max=rows), places[:rows], mask, fits)
    rows, longest = torch.stack([lengths.sum(), lengths.max()]).tolist()
    if rows == batch * length:
        return _full(batch, length, device)
    return Sequences(batch, length, longest, starts, places[:rows])


def unpad(hidden: Tensor, sequences: Sequences) -> Tensor:
    """``(batch, length, width)`` to ``(rows, width)``."""
    rows = hidden.reshape(-1, hidden.shape[-1])
    return rows if sequences.order is None else rows.index_select(0, sequences.order)


def pad(rows: Tensor, sequences: Sequences) -> Tensor:
    """``(rows, width)`` to ``(batch, length, width)``, 0 at padding.

    Example:
        >>> where = find_sequences(torch.tensor([[0, 1], [1, 1]]), 2, 2, torch.device("cpu"))
        >>> pad(torch.tensor([[1.0], [2.0], [3.0]]), where).squeeze(-1)
        tensor([[0., 1.],
                [2., 3.]])

    """
    shape = (sequences.batch, sequences.length, rows.shape[-1])
    if sequences.order is None:
        return rows.reshape(shape)
    padded = rows.new_zeros(sequences.batch * sequences.length, rows.shape[-1])
    padded = padded.index_copy(0, sequences.order, rows).reshape(shape)
    if sequences.mask is None or sequences.fits is None:
        return padded
    # What was computed for padding may be anything, not a number included.
    padded = padded.masked_fill(~sequences.mask.unsqueeze(-1), 0)
    return padded.masked_fill(~sequences.fits, float("nan"))


def _full(batch: int, length: int, device: torch.device) -> Sequences:
    starts = torch.arange(batch + 1, device=device, dtype=torch.int32) * length
    return Sequences(batch, length, length, starts)


def _static(device: torch.device) -> bool:
    if torch.compiler.is_compiling():
        return True
    return device.type == "cuda" and torch.cuda.is_current_stream_capturing()
