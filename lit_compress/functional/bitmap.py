"""A bit for each position of a matrix, eight to a byte: where the values of a sparse weight are."""

import torch
from torch import Tensor

__all__ = ["pack_bits", "unpack_bits"]


def pack_bits(used: Tensor) -> Tensor:
    """Bits of a bool matrix; every row starts with a byte of its own.

    Args:
        used: bool ``(rows, columns)``.

    Returns:
        uint8 ``(rows, ceil(columns / 8))``; bit ``j`` of byte ``i``, counted from the lowest, is column ``8 * i + j``.

    Example:
        >>> pack_bits(torch.tensor([[False, True, False], [True, False, True]])).tolist()
        [[2], [5]]

    """
    eights = torch.nn.functional.pad(used, (0, -used.shape[1] % 8)).reshape(used.shape[0], -(-used.shape[1] // 8), 8)
    bits = torch.zeros(eights.shape[:2], dtype=torch.uint8, device=used.device)
    for number in range(8):
        bits |= eights[:, :, number].to(torch.uint8) << number
    return bits


def unpack_bits(bits: Tensor, columns: int) -> Tensor:
    """The bool matrix ``(rows, columns)`` that :func:`pack_bits` was given.

    Raises:
        ValueError: the rows are not as long as that many columns need, or a bit after the last column is set.

    Example:
        >>> unpack_bits(torch.tensor([[2], [5]], dtype=torch.uint8), columns=3).tolist()
        [[False, True, False], [True, False, True]]

    """
    if bits.dtype != torch.uint8 or bits.ndim != 2 or bits.shape[1] != -(-columns // 8):
        raise ValueError(f"bits of {columns} columns must be rows of {-(-columns // 8)} bytes")
    used = torch.empty(*bits.shape, 8, dtype=torch.bool, device=bits.device)
    for number in range(8):
        used[:, :, number] = (bits >> number) & 1
    used = used.reshape(bits.shape[0], 8 * bits.shape[1])
    if bool(used[:, columns:].any()):
        raise ValueError("a bit after the last column is set")
    return used[:, :columns]
