"""Low-rank factors of a matrix: the best approximation of a given rank, from a singular value decomposition."""

import torch
from torch import Tensor

__all__ = ["truncated_svd"]


def truncated_svd(matrix: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """Factors ``left @ right`` of the best approximation of ``matrix`` of a rank (Eckart and Young 1936).

    ``E = U S V^T`` gives ``left = U_r S_r`` and ``right = V_r^T``, the embedding factorisation of ROSITA (Liu et al.
    2021, arXiv 2103.11367). The Frobenius error is ``sqrt(sum of s_i^2, i > r)``, the singular values left out; at
    the full rank it is rounding alone. Columns are in order of falling singular value, so that fewer of them are the
    factors of a lower rank.

    Args:
        matrix: ``(rows, columns)``; half precision is decomposed in fp32.
        rank: from 1 to ``min(rows, columns)``.

    Returns:
        ``left`` of shape ``(rows, rank)`` and ``right`` of shape ``(rank, columns)``, in the matrix's dtype.

    Raises:
        ValueError: a rank below 1 or above ``min(rows, columns)``.

    Example:
        >>> left, right = truncated_svd(torch.tensor([[3.0, 0.0], [0.0, 1.0]]), 1)
        >>> (left @ right).tolist()
        [[3.0, 0.0], [0.0, 0.0]]

    """
    if not 1 <= rank <= min(matrix.shape):
        rows, columns = matrix.shape
        raise ValueError(f"rank {rank} of a matrix of {rows} x {columns} must be in [1, {min(rows, columns)}]")
    exact = matrix.detach().to(torch.promote_types(matrix.dtype, torch.float32))
    u, s, vh = torch.linalg.svd(exact, full_matrices=False)
    left, right = u[:, :rank] * s[:rank], vh[:rank]
    # The signs of a singular pair are free, and libraries differ: the largest entry of each row of `right` is positive.
    largest = right.gather(1, right.abs().argmax(dim=1, keepdim=True))
    sign = torch.where(largest < 0, -1.0, 1.0).to(right.dtype)
    return (left * sign.T).to(matrix.dtype), (right * sign).to(matrix.dtype)
