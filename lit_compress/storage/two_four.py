"""2:4 sparse 8-bit weights as two values of every four, and back, bit for bit: small in files, expanded when loaded.

Accepted are int8 from -127 to 127, or ``float8_e4m3fn``, whose -0 comes back as 0.
"""

import torch
from torch import Tensor

from lit_compress.storage.tiles import as_int8

__all__ = ["pack_two_four", "unpack_two_four"]


def pack_two_four(weight_q: Tensor) -> tuple[Tensor, Tensor]:
    """Of every four consecutive inputs the two that may be other than zero, and which two they are.

    Args:
        weight_q: 8-bit ``(out_features, in_features)``, at most two of each four not zero.

    Returns:
        ``(values, index)``: ``(out_features, in_features / 2)``, and uint8 ``(out_features, in_features / 8)``: a byte
        for two groups, the first in its lower half; of a half the lower two bits are the first position, the upper two
        the second.

    Raises:
        ValueError: 8 does not divide ``in_features``, or some four hold more than two values.

    Example:
        >>> values, index = pack_two_four(torch.tensor([[0, 7, 0, 5, 9, 0, 0, 0]], dtype=torch.int8))
        >>> values.tolist(), index.tolist()
        ([[7, 5, 9, 0]], [[77]])

    """
    rows, columns = weight_q.shape
    if columns % 8:
        raise ValueError(f"2:4 stores two groups of four in a byte, and {columns} inputs are not a multiple of 8")
    groups = as_int8(weight_q).reshape(rows, columns // 4, 4)
    if int(groups.ne(0).sum(dim=2).amax() if groups.numel() else 0) > 2:
        raise ValueError("some four consecutive inputs hold more than two values")
    # Used ones first, in their order; of the unused ones the first fill up.
    place = groups.eq(0).to(torch.uint8).argsort(dim=2, stable=True)[:, :, :2].sort(dim=2).values
    values = groups.gather(2, place).reshape(rows, columns // 2)
    halves = (place[:, :, 0] | place[:, :, 1] << 2).to(torch.uint8)
    return values.view(weight_q.dtype), halves[:, 0::2] | halves[:, 1::2] << 4


def unpack_two_four(values: Tensor, index: Tensor) -> Tensor:
    """The dense 8-bit weight ``(out_features, in_features)`` that :func:`pack_two_four` was given.

    Raises:
        ValueError: a group names a position twice, or its second one before its first.

    Example:
        >>> weight = torch.tensor([[0, 7, 0, 5, 9, 0, 0, 0]], dtype=torch.int8)
        >>> torch.equal(unpack_two_four(*pack_two_four(weight)), weight)
        True

    """
    rows, kept = values.shape
    halves = torch.stack([index & 15, index >> 4], dim=2).reshape(rows, kept // 2)
    place = torch.stack([halves & 3, halves >> 2], dim=2).long()
    if not bool((place[:, :, 0] < place[:, :, 1]).all()):
        raise ValueError("some four consecutive inputs have no first and second position")
    groups = torch.zeros(rows, kept // 2, 4, dtype=torch.int8, device=values.device)
    groups.scatter_(2, place, as_int8(values).reshape(rows, kept // 2, 2))
    return groups.reshape(rows, kept * 2).view(values.dtype)
