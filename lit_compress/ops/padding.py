"""A padded batch unpadded, one sequence's tokens after the other's, and back."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from lit_compress.errors import UserError
from lit_compress.ops import reference
from lit_compress.ops.kernels_available import serves

__all__ = ["Sequences", "find_sequences", "gather_rows", "pad", "unpad"]


@dataclass(frozen=True, eq=False)
class Sequences:
    """Where the tokens of a batch are that are not padding.

    Args:
        batch: sequences.
        length: tokens of a sequence with padding.
        longest: tokens of a sequence without, at most.
        starts: ``(batch + 1,)`` int32, row where each sequence begins, and where the last one ends.
        order: int32 ``(rows,)``, the place of each row in the flattened batch, -1 for none; None when nothing is
            padding.
        place: int32 ``(batch * length,)``, the inverse; -1 at padding; None when nothing is padding.
        fits: bool, whether the rows hold all unpadded tokens, when their number was fixed beforehand; else None.

    """

    batch: int
    length: int
    longest: int
    starts: Tensor
    order: Tensor | None = None
    place: Tensor | None = None
    fits: Tensor | None = None

    def positions(self) -> Tensor | None:
        """Position of each row in its sequence, padding counted, int32; None when rows are positions."""
        # A row that stands for no token gets a position, too, and nothing reads it.
        return None if self.order is None else self.order.clamp(min=0).remainder(self.length)


def find_sequences(
    mask: Tensor | None, batch: int, length: int, device: torch.device, budget: int | None = None
) -> Sequences:
    """Find the tokens that are not padding, which may be left, right or in between.

    How many there are has to be known before anything is computed with them, which waits for the device once a batch.
    While a graph is compiled or captured, nothing can wait: then a fixed number of rows is kept, all places of the
    batch or ``budget``, unpadded tokens first and padding behind them, which attention leaves out.

    Args:
        mask: ``(batch, length)``, non-zero at tokens, 0 at padding; None without padding.
        batch: sequences.
        length: tokens of each, with padding.
        device: where the tokens are.
        budget: rows of a graph. A batch that has more unpadded tokens becomes NaN as a whole in :func:`pad`.

    Raises:
        UserError: a mask of another shape.

    Example:
        >>> found = find_sequences(torch.tensor([[1, 1, 0], [1, 0, 0]]), 2, 3, torch.device("cpu"))
        >>> found.order.tolist(), found.starts.tolist(), found.longest
        ([0, 1, 3], [0, 2, 3], 2)

    """
    if mask is None:
        return _full(batch, length, device)
    if mask.shape != (batch, length):
        raise UserError(
            f"attention_mask: shape {tuple(mask.shape)}; a fused encoder takes ({batch}, {length}), or none; for masks "
            "between single tokens call lit_compress.models.fused.unfuse(model)"
        )
    if not _waiting_allowed(device):
        return _fixed(mask, batch * length if budget is None else min(budget, batch * length))
    if device.type == "cpu" and bool(mask.all()):  # which costs nothing where nothing waits
        return _full(batch, length, device)
    return _found(mask)


def unpad(hidden: Tensor, sequences: Sequences) -> Tensor:
    """``(batch, length, width)`` to ``(rows, width)``."""
    flat = hidden.reshape(-1, hidden.shape[-1])
    return flat if sequences.order is None else gather_rows(flat, sequences.order)


def pad(rows: Tensor, sequences: Sequences) -> Tensor:
    """``(rows, width)`` to ``(batch, length, width)``, 0 at padding.

    Example:
        >>> where = find_sequences(torch.tensor([[0, 1], [1, 1]]), 2, 2, torch.device("cpu"))
        >>> pad(torch.tensor([[1.0], [2.0], [3.0]]), where).squeeze(-1)
        tensor([[0., 1.],
                [2., 3.]])

    """
    flat = rows if sequences.place is None else gather_rows(rows, sequences.place)
    padded = flat.reshape(sequences.batch, sequences.length, rows.shape[-1])
    return padded if sequences.fits is None else padded.masked_fill(~sequences.fits, float("nan"))


def _full(batch: int, length: int, device: torch.device) -> Sequences:
    starts = torch.arange(batch + 1, device=device, dtype=torch.int32) * length
    return Sequences(batch, length, length, starts)


def _found(mask: Tensor) -> Sequences:
    """As many rows as unpadded tokens; asking for their number brings the longest length along."""
    real, counted, starts = _counted(mask)
    longest = starts.diff().amax() if len(mask) else starts[0]
    rows, max_length = (int(number) for number in torch.stack([starts[-1], longest]).tolist())
    if rows == mask.numel():
        return _full(mask.shape[0], mask.shape[1], mask.device)
    place = (counted - 1).masked_fill(~real, -1).to(torch.int32)
    return Sequences(mask.shape[0], mask.shape[1], max_length, starts, _real_first(real, rows), place)


def _fixed(mask: Tensor, rows: int) -> Sequences:
    """``rows`` rows, of which the last ones are 0 and stand for no token."""
    real, counted, starts = _counted(mask)
    inside = torch.arange(rows, device=mask.device) < counted[-1]
    order = _real_first(real, rows).where(inside, -1)
    place = (counted - 1).where(real & (counted <= rows), -1).to(torch.int32)
    starts = starts.clamp(max=rows)  # nothing outside is ever read
    return Sequences(mask.shape[0], mask.shape[1], mask.shape[1], starts, order, place, counted[-1] <= rows)


def _counted(mask: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Which places are real, how many are up to each place, and where sequences begin and end."""
    real = mask.reshape(-1) != 0
    counted = real.cumsum(0)
    ends = counted.reshape(mask.shape)[:, -1]
    return real, counted, torch.nn.functional.pad(ends, (1, 0)).to(torch.int32)


def _real_first(real: Tensor, rows: int) -> Tensor:
    # Stable, so tokens keep their order; nonzero() would wait for the host a second time.
    return torch.argsort(real.logical_not().to(torch.uint8), stable=True)[:rows].to(torch.int32)


def _waiting_allowed(device: torch.device) -> bool:
    if torch.compiler.is_compiling():
        return False
    return device.type != "cuda" or not torch.cuda.is_current_stream_capturing()


def gather_rows(x: Tensor, index: Tensor) -> Tensor:
    """``x[index]``, with zeros where the index is negative; differentiable.

    Args:
        x: ``(rows, width)``.
        index: int32 ``(wanted,)``; below ``rows``.

    Returns:
        ``(wanted, width)``.

    Example:
        >>> gather_rows(torch.tensor([[1.0], [2.0]]), torch.tensor([1, -1, 0], dtype=torch.int32)).tolist()
        [[2.0], [0.0], [1.0]]

    """
    return _gather_rows(x, index)


@torch.library.custom_op("lit_compress::gather_rows", mutates_args=())
def _gather_rows(x: Tensor, index: Tensor) -> Tensor:
    return reference.gather_rows(x, index)


@_gather_rows.register_fake
def _(x: Tensor, index: Tensor) -> Tensor:
    return x.new_empty(index.shape[0], x.shape[1])


@_gather_rows.register_kernel("cuda")
@_gather_rows.register_kernel("cpu")
def _(x: Tensor, index: Tensor) -> Tensor:
    if serves(x):
        from lit_compress.ops.kernels.gather_rows import gather_rows as kernel

        return kernel(x, index)
    return reference.gather_rows(x, index)


def _remember(ctx: Any, inputs: tuple[Tensor, Tensor], output: Tensor) -> None:
    x, index = inputs
    ctx.save_for_backward(index)
    ctx.rows = x.shape[0]


def _backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
    (index,) = ctx.saved_tensors
    # The row that negative indices stand for is cut off again.
    summed = gradient.new_zeros(ctx.rows + 1, gradient.shape[1])
    return summed.index_add(0, index.long().where(index >= 0, ctx.rows), gradient)[: ctx.rows], None


_gather_rows.register_autograd(_backward, setup_context=_remember)
