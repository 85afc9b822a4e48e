"""A padded batch as rows of real tokens, one sequence behind the other, and back."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from lit_compress.errors import UserError
from lit_compress.ops import reference
from lit_compress.ops.kernel_choice import serves

__all__ = ["Tokens", "find_tokens", "gather_rows", "pad", "unpad"]


@dataclass(frozen=True, eq=False)
class Tokens:
    """Where the real tokens of a padded batch are.

    Args:
        order: int32 ``(tokens,)``: the place of each real token in the flattened batch.
        place: int32 ``(batch * length,)``: the inverse; -1 at padding.
        cu_seqlens: int32 ``(batch + 1,)``: the row where each sequence begins, and where the last one ends.
        max_seqlen: length of the longest sequence.
        shape: ``(batch, length)`` of the padded batch.

    """

    order: Tensor
    place: Tensor
    cu_seqlens: Tensor
    max_seqlen: int
    shape: tuple[int, int]


def find_tokens(mask: Tensor) -> Tokens:
    """Find the real tokens of a batch; padding may be anywhere.

    The number of real tokens decides how much memory everything after it takes, so the host waits for it: this is the
    one synchronization, once a batch. It brings the longest length along.

    Args:
        mask: ``(batch, length)``, not zero at real tokens.

    Raises:
        UserError: a mask of another shape.

    Example:
        >>> tokens = find_tokens(torch.tensor([[1, 1, 0], [1, 0, 0]]))
        >>> tokens.order.tolist(), tokens.cu_seqlens.tolist(), tokens.max_seqlen
        ([0, 1, 3], [0, 2, 3], 2)

    """
    if mask.ndim != 2:
        raise UserError(f"mask: shape {tuple(mask.shape)}; padding is found in a mask of shape (batch, length)")
    real = mask.reshape(-1) != 0
    lengths = real.reshape(mask.shape).sum(1)
    cu_seqlens = torch.nn.functional.pad(lengths.cumsum(0), (1, 0)).to(torch.int32)
    place = (real.cumsum(0) - 1).masked_fill_(~real, -1).to(torch.int32)
    longest = lengths.max() if len(lengths) else lengths.new_zeros(())
    rows, max_seqlen = (int(number) for number in torch.stack([cu_seqlens[-1].long(), longest]).tolist())
    # Stable, so real tokens come first in their old order; nonzero() would wait for the host a second time.
    order = torch.argsort(real.logical_not().to(torch.uint8), stable=True)[:rows].to(torch.int32)
    return Tokens(order, place, cu_seqlens, max_seqlen, (mask.shape[0], mask.shape[1]))


def unpad(hidden: Tensor, tokens: Tokens) -> Tensor:
    """``(batch, length, width)`` to ``(tokens, width)``."""
    return gather_rows(hidden.reshape(-1, hidden.shape[-1]), tokens.order)


def pad(rows: Tensor, tokens: Tokens) -> Tensor:
    """``(tokens, width)`` to ``(batch, length, width)``, 0 at padding.

    Example:
        >>> tokens = find_tokens(torch.tensor([[0, 1], [1, 1]]))
        >>> pad(torch.tensor([[1.0], [2.0], [3.0]]), tokens).squeeze(-1).tolist()
        [[0.0, 1.0], [2.0, 3.0]]

    """
    return gather_rows(rows, tokens.place).reshape(*tokens.shape, rows.shape[-1])


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
