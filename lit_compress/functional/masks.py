"""Scores to boolean masks (True keeps a weight), with exact counts and deterministic ties.

Ties at the threshold are resolved by position, first in memory pruned first, so that the same scores give the same
mask on every rank and after a resume. Nothing here waits for the device: no value is read back to Python.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

__all__ = [
    "balanced_block_mask",
    "balanced_count",
    "block_mask",
    "global_group_masks",
    "global_masks",
    "group_mask",
    "nm_mask",
    "sparsity",
    "unstructured_mask",
]


def unstructured_mask(scores: Tensor, sparsity: float) -> Tensor:
    """Prune the ``round(sparsity * numel)`` lowest scores of one tensor.

    The count is SparseML's ``UnstructuredPruningMaskCreator`` rule: rounded, exact also among equal scores.

    Args:
        scores: any shape; all finite.
        sparsity: fraction of entries to prune, in [0, 1].

    Returns:
        Bool mask of the same shape.

    Example:
        >>> unstructured_mask(torch.tensor([3.0, 1.0, 2.0, 1.0]), 0.25).tolist()
        [True, False, True, True]

    """
    flat = scores.reshape(-1)
    count = round(sparsity * flat.numel())
    if count <= 0:
        return torch.ones_like(scores, dtype=torch.bool)
    if count >= flat.numel():
        return torch.zeros_like(scores, dtype=torch.bool)
    threshold = _kth_smallest(flat, count)
    below, tied = flat < threshold, flat == threshold
    # Of the tied scores only as many go as are missing to the exact count.
    pruned = below | (tied & (tied.cumsum(0) <= count - below.sum()))
    return ~pruned.reshape(scores.shape)


def global_masks(scores: Sequence[Tensor], sparsity: float) -> list[Tensor]:
    """Prune the lowest scores of several tensors together: one threshold, one exact total count.

    Example:
        >>> [m.tolist() for m in global_masks([torch.tensor([1.0, 9.0]), torch.tensor([8.0, 2.0])], 0.5)]
        [[False, True], [True, False]]

    """
    pooled = unstructured_mask(torch.cat([s.reshape(-1) for s in scores]), sparsity)
    parts = pooled.split([s.numel() for s in scores])
    return [part.reshape(s.shape) for part, s in zip(parts, scores, strict=True)]


def group_mask(scores: Tensor, keep: int) -> Tensor:
    """Keep the ``keep`` highest of the scores ``(groups,)`` of heads or neurons.

    Example:
        >>> group_mask(torch.tensor([3.0, 1.0, 2.0]), keep=2).tolist()
        [True, False, True]

    """
    return unstructured_mask(scores, 1 - keep / scores.numel())


def global_group_masks(scores: Sequence[Tensor], keep: int) -> list[Tensor]:
    """Keep the ``keep`` highest scores of the groups of all layers together, and of each layer at least one.

    Scores are divided by their layer's L2 norm first (Molchanov et al. 2017, arXiv 1611.06440; Michel et al. 2019,
    arXiv 1905.10650), or layers with large gradients would keep everything.

    Args:
        scores: ``(groups,)`` of each layer; ``-inf`` for what is gone already.
        keep: at least the number of layers.

    Example:
        >>> [m.tolist() for m in global_group_masks([torch.tensor([3.0, 4.0]), torch.tensor([0.1, 9.0])], keep=3)]
        [[True, True], [False, True]]

    """
    if keep < len(scores):
        raise ValueError(f"{keep} groups cannot leave one in each of {len(scores)} layers")
    ranked = []
    for score in scores:
        norm = score.masked_fill(score.isinf(), 0.0).norm().clamp_min(torch.finfo(score.dtype).tiny)
        best = torch.arange(len(score), device=score.device) == score.argmax()
        ranked.append((score / norm).masked_fill(best, torch.inf))
    return global_masks(ranked, 1 - keep / sum(score.numel() for score in scores))


def nm_mask(scores: Tensor, keep: int, group: int) -> Tensor:
    """Keep the ``keep`` highest scores of every ``group`` consecutive inputs (N:M sparsity, as in 2:4).

    Args:
        scores: ``(out_features, in_features)``, ``in_features`` divisible by ``group``.
        keep: N, entries kept in a group.
        group: M, consecutive entries along the last dimension.

    Returns:
        Bool mask of the same shape with exactly ``keep`` True in each group.

    Example:
        >>> nm_mask(torch.tensor([[1.0, 4.0, 3.0, 2.0]]), 2, 4).tolist()
        [[False, True, True, False]]

    """
    if scores.shape[-1] % group:
        raise ValueError(f"groups of {group} do not divide rows of {scores.shape[-1]}")
    groups = scores.reshape(-1, group)
    # A stable sort makes ties deterministic: of equal scores the earlier one is pruned.
    order = groups.argsort(dim=1, stable=True)
    mask = torch.ones_like(groups, dtype=torch.bool).scatter(1, order[:, : group - keep], False)
    return mask.reshape(scores.shape)


def block_mask(scores: Tensor, sparsity: float, block: tuple[int, int]) -> Tensor:
    """Prune whole blocks of ``block = (rows, columns)``, ranked by their mean score.

    Args:
        scores: ``(out_features, in_features)``, both divisible by the block.
        sparsity: fraction of blocks to prune, in [0, 1]; ``round(sparsity * blocks)`` are.
        block: ``(rows, columns)``; ``(1, 4)`` is SparseML's ``block4``.

    Returns:
        Bool mask of the same shape, constant inside each block.

    Example:
        >>> block_mask(torch.tensor([[1.0, 1.0, 5.0, 0.0]]), 0.5, (1, 2)).tolist()
        [[False, False, True, True]]

    """
    return expand_blocks(unstructured_mask(block_means(scores, block), sparsity), block)


def balanced_block_mask(scores: Tensor, sparsity: float, block: tuple[int, int], multiple: int = 1) -> Tensor:
    """Prune blocks, equally many in every row of blocks, ranked by their mean score within it.

    A kernel that computes a row of blocks at once is then equally busy everywhere.

    Args:
        scores: ``(out_features, in_features)``, ``in_features`` divisible by the block; a last row of blocks that
            ``out_features`` does not fill has smaller ones.
        sparsity: fraction of blocks to prune, in [0, 1]; of :func:`balanced_count` kept, the nearest.
        block: ``(rows, columns)``; ``(128, 32)`` for tall blocks.
        multiple: how many blocks are multiplied together: 4 for tall blocks.

    Returns:
        Bool mask of the same shape, constant inside each block.

    Example:
        >>> balanced_block_mask(torch.tensor([[1.0, 2.0], [9.0, 8.0]]), 0.5, (1, 1)).tolist()
        [[False, True], [True, False]]

    """
    rows, columns = block
    out_features, in_features = scores.shape
    padded = torch.nn.functional.pad(scores, (0, 0, 0, -out_features % rows))
    # A last row of blocks has fewer rows than it is divided by, but so have all blocks that it is compared with.
    means = block_means(padded, block)
    pruned = means.shape[1] - balanced_count(in_features // columns, sparsity, multiple)
    order = means.argsort(dim=1, stable=True)
    kept = torch.ones_like(means, dtype=torch.bool).scatter(1, order[:, :pruned], False)
    return expand_blocks(kept, block)[:out_features]


def balanced_count(blocks: int, sparsity: float, multiple: int = 1) -> int:
    """How many of ``blocks`` are kept: all, or that multiple of ``multiple`` which is nearest, but none only at 1.

    Example:
        >>> [balanced_count(24, sparsity, 4) for sparsity in (0.0, 0.5, 0.8, 0.9, 1.0)]
        [24, 12, 4, 4, 0]

    """
    wanted = (1 - sparsity) * blocks
    if sparsity >= 1:
        return 0
    levels = [*range(multiple, blocks, multiple), blocks]
    # Of two that are equally near the one that prunes less; a float next to the middle counts as the middle.
    return min(reversed(levels), key=lambda level: round(abs(level - wanted), 6))


def block_means(scores: Tensor, block: tuple[int, int]) -> Tensor:
    """Mean score of each block, shape ``(out_features / rows, in_features / columns)``."""
    rows, columns = block
    out_features, in_features = scores.shape
    return scores.reshape(out_features // rows, rows, in_features // columns, columns).mean(dim=(1, 3))


def expand_blocks(mask: Tensor, block: tuple[int, int]) -> Tensor:
    """Repeat each entry of a block mask over its block: the inverse shape of :func:`block_means`."""
    return mask.repeat_interleave(block[0], dim=0).repeat_interleave(block[1], dim=1)


def sparsity(mask: Tensor) -> float:
    """Fraction of zeros (False entries) in a mask or weight tensor.

    Example:
        >>> sparsity(torch.tensor([True, False, False, False]))
        0.75

    """
    return 1.0 - torch.count_nonzero(mask).item() / mask.numel()


def _kth_smallest(flat: Tensor, k: int) -> Tensor:
    # On a GPU kthvalue runs one block for a one-dimensional tensor; a full radix sort is many times faster there.
    return flat.sort().values[k - 1] if flat.is_cuda else flat.kthvalue(k).values
