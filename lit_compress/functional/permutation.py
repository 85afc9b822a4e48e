"""An order of feed-forward neurons in which those with similar weights are next to each other.

The neurons of a feed-forward part may stand in any order, if rows of its first matrix and columns of its second are
moved together. Blocks of weights are pruned whole, and the fewer different neurons a block holds, the more of what is
left out was small.
"""

import math

import torch
from torch import Tensor

from lit_compress.functional.masks import balanced_block_mask, block_means

__all__ = ["group_alike", "neuron_order"]


def group_alike(features: Tensor, size: int) -> Tensor:
    """An order of rows in which each ``size`` consecutive ones are alike.

    Rows are divided in two halves along the direction in which they differ most (their first principal component), and
    each half again, until a part is no larger than ``size``.

    Args:
        features: ``(rows, n)``.
        size: of a part; the last part may be smaller.

    Returns:
        int64 ``(rows,)``, a permutation.

    Example:
        >>> group_alike(torch.tensor([[0.0], [5.0], [0.1], [5.1]]), 2).tolist()
        [0, 2, 1, 3]

    """
    features = features.double()
    parts, done = [torch.arange(len(features), device=features.device)], []
    while parts:
        part = parts.pop(0)
        if len(part) <= size:
            done.append(part)
            continue
        x = features[part] - features[part].mean(dim=0)
        direction = torch.linalg.eigh(x.t() @ x).eigenvectors[:, -1]
        # An eigenvector has no sign of its own.
        direction = direction * direction[direction.abs().argmax()].sign()
        part = part[(x @ direction).argsort(stable=True)]
        half = math.ceil(math.ceil(len(part) / size) / 2) * size
        parts[:0] = [part[:half], part[half:]]
    return torch.cat(done)


def neuron_order(
    up: Tensor | None, down: Tensor | None, neurons: int, sparsity: float, block: tuple[int, int], multiple: int
) -> Tensor | None:
    """The order of neurons in which balanced blocks keep more of the scores than in the one they have.

    Neurons that read alike share a row of blocks of the first matrix; of those, neurons that write alike share a column
    of blocks of the second.

    Args:
        up: scores of the first matrix ``(neurons * parts, in_features)``; None when it is not pruned. With several
            parts (a value and its gate) all rows of a neuron move together.
        down: scores of the second matrix ``(out_features, neurons)``; None when it is not pruned.
        neurons: their number.
        sparsity: fraction of blocks that will be pruned.
        block: ``(rows, columns)``, as of :func:`~lit_compress.functional.masks.balanced_block_mask`.
        multiple: how many blocks are multiplied together.

    Returns:
        int64 ``(neurons,)``: which neuron comes at each place; None when no better order was found.

    """
    rows, columns = block
    tiles: list[Tensor] | None = None
    order = torch.arange(neurons)
    if up is not None:
        parts = up.reshape(-1, neurons, up.shape[1])
        reads = torch.cat([block_means(part, (1, columns)) for part in parts], dim=1)
        order = group_alike(reads, rows)
        tiles = list(order.split(rows))
    if down is not None:
        writes = block_means(torch.nn.functional.pad(down, (0, 0, 0, -len(down) % rows)), (rows, 1)).t()
        tiles = tiles or [order.to(down.device)]
        order = torch.cat([tile[group_alike(writes[tile], columns)] for tile in tiles])
    before, after = 0.0, 0.0
    if up is not None:
        moved = torch.cat([order + start for start in range(0, len(up), neurons)])
        before += _kept(up, sparsity, block, multiple)
        after += _kept(up[moved], sparsity, block, multiple)
    if down is not None:
        before += _kept(down, sparsity, block, multiple)
        after += _kept(down[:, order], sparsity, block, multiple)
    return order if after > before else None


def _kept(scores: Tensor, sparsity: float, block: tuple[int, int], multiple: int) -> float:
    """The sum of the scores that balanced blocks keep."""
    return float(scores[balanced_block_mask(scores, sparsity, block, multiple)].double().sum())
