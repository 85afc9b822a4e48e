"""A bit for each position of a matrix, eight to a byte, and the values of those that are not zero."""

import torch
from torch import Tensor

__all__ = ["pack_bitmap", "pack_bits", "unpack_bitmap", "unpack_bits"]


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


def pack_bitmap(weight: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """A bit for each weight and the values of those that are not zero.

    Args:
        weight: ``(rows, columns)``, fp32 or 8-bit; of ``float8_e4m3fn``, -0 is 0.

    Returns:
        ``(bits, values, starts)``: uint8 ``(rows, ceil(columns / 8))`` of :func:`pack_bits`; the values
        ``(nonzeros,)``, row by row; and int32 ``(rows + 1,)``, where each row's values start.

    Example:
        >>> bits, values, starts = pack_bitmap(torch.tensor([[0, 7, 0], [5, 0, 6]], dtype=torch.int8))
        >>> bits.tolist(), values.tolist(), starts.tolist()
        ([[2], [5]], [7, 5, 6], [0, 1, 3])

    """
    used = (weight.float() if weight.dtype == torch.float8_e4m3fn else weight).ne(0)
    counts = used.sum(dim=1)
    starts = torch.cat([counts.new_zeros(1), counts.cumsum(0)]).to(torch.int32)
    return pack_bits(used), _raw(weight)[used].view(weight.dtype), starts


def unpack_bitmap(bits: Tensor, values: Tensor, starts: Tensor | None, columns: int) -> Tensor:
    """The dense weight ``(rows, columns)`` that :func:`pack_bitmap` was given; ``starts`` are optional.

    Raises:
        ValueError: there are more or fewer values than bits, or bits of other columns.

    Example:
        >>> weight = torch.tensor([[0, 7, 0], [5, 0, 6]], dtype=torch.int8)
        >>> torch.equal(unpack_bitmap(*pack_bitmap(weight), columns=3), weight)
        True

    """
    used = unpack_bits(bits, columns)
    if int(used.sum()) != len(values):
        raise ValueError(f"its bitmap has {int(used.sum())} positions and it has {len(values)} values")
    if starts is not None and (starts[0] != 0 or not torch.equal(used.sum(dim=1), starts.diff())):
        raise ValueError("the bits of some row are more or fewer than its values")
    raw = _raw(values)
    dense = torch.zeros(used.shape, dtype=raw.dtype, device=bits.device)
    dense[used] = raw
    return dense.view(values.dtype)


def _raw(values: Tensor) -> Tensor:
    """8-bit floats as bytes, which every operator moves."""
    return values.contiguous().view(torch.int8) if values.dtype == torch.float8_e4m3fn else values
