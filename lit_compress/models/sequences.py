"""A padded batch as rows of real tokens, one sequence after the other, and back."""

from dataclasses import dataclass

import torch
from torch import Tensor

from lit_compress import ops
from lit_compress.errors import UserError
from lit_compress.ops import Tokens

__all__ = ["Sequences", "find_sequences", "pad", "unpad"]


@dataclass(frozen=True, eq=False)
class Sequences:
    """Where the real tokens of a batch are.

    Args:
        batch: sequences.
        length: tokens of a sequence with padding.
        longest: tokens of a sequence without, at most.
        starts: ``(batch + 1,)`` int32, row where each sequence begins, and where the last one ends.
        tokens: where each row comes from; None when nothing is padding.
        fits: bool, whether the rows hold all real tokens, when their number was fixed beforehand; else None.

    """

    batch: int
    length: int
    longest: int
    starts: Tensor
    tokens: Tokens | None = None
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
    if _waiting_allowed(device):
        if device.type == "cpu" and bool(mask.all()):  # which costs nothing where nothing waits
            return _full(batch, length, device)
        tokens = ops.find_tokens(mask)
        if len(tokens.order) == batch * length:
            return _full(batch, length, device)
        return Sequences(batch, length, tokens.max_seqlen, tokens.cu_seqlens, tokens)
    return _fixed(mask, batch, length, batch * length if budget is None else min(budget, batch * length))


def unpad(hidden: Tensor, sequences: Sequences) -> Tensor:
    """``(batch, length, width)`` to ``(rows, width)``."""
    if sequences.tokens is None:
        return hidden.reshape(-1, hidden.shape[-1])
    return ops.unpad(hidden, sequences.tokens)


def pad(rows: Tensor, sequences: Sequences) -> Tensor:
    """``(rows, width)`` to ``(batch, length, width)``, 0 at padding.

    Example:
        >>> where = find_sequences(torch.tensor([[0, 1], [1, 1]]), 2, 2, torch.device("cpu"))
        >>> pad(torch.tensor([[1.0], [2.0], [3.0]]), where).squeeze(-1)
        tensor([[0., 1.],
                [2., 3.]])

    """
    if sequences.tokens is None:
        return rows.reshape(sequences.batch, sequences.length, rows.shape[-1])
    padded = ops.pad(rows, sequences.tokens)
    return padded if sequences.fits is None else padded.masked_fill(~sequences.fits, float("nan"))


def _fixed(mask: Tensor, batch: int, length: int, rows: int) -> Sequences:
    """``rows`` rows, of which the last ones are 0 and stand for no token."""
    real = mask.reshape(-1) != 0
    counted = real.cumsum(0)
    starts = torch.nn.functional.pad(counted.reshape(batch, length)[:, -1], (1, 0)).to(torch.int32)
    inside = torch.arange(rows, device=mask.device) < counted[-1]
    order = torch.argsort(real.logical_not().to(torch.uint8), stable=True)[:rows].where(inside, -1).to(torch.int32)
    place = (counted - 1).where(real & (counted <= rows), -1).to(torch.int32)
    starts = starts.clamp(max=rows)  # nothing outside is ever read
    return Sequences(
        batch, length, length, starts, Tokens(order, place, starts, length, (batch, length)), counted[-1] <= rows
    )


def _full(batch: int, length: int, device: torch.device) -> Sequences:
    starts = torch.arange(batch + 1, device=device, dtype=torch.int32) * length
    return Sequences(batch, length, length, starts)


def _waiting_allowed(device: torch.device) -> bool:
    if torch.compiler.is_compiling():
        return False
    return device.type != "cuda" or not torch.cuda.is_current_stream_capturing()
