import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lit_compress.storage.bitmap import pack_bits, unpack_bits


@given(st.integers(0, 5), st.integers(0, 40), st.integers(0, 2**16))
def test_bits_come_back(rows, columns, seed):
    used = torch.rand(rows, columns, generator=torch.Generator().manual_seed(seed)) < 0.5
    bits = pack_bits(used)
    assert bits.shape == (rows, -(-columns // 8))
    assert bits.dtype == torch.uint8
    assert torch.equal(unpack_bits(bits, columns), used)


def test_the_lowest_bit_is_the_first_column():
    used = torch.zeros(1, 10, dtype=torch.bool)
    used[0, [0, 9]] = True
    assert pack_bits(used).tolist() == [[1, 2]]


@pytest.mark.parametrize(
    ("bits", "columns"),
    [
        (torch.zeros(2, 2, dtype=torch.uint8), 20),
        (torch.zeros(2, 2, dtype=torch.uint8), 8),
        (torch.zeros(2, 2, dtype=torch.int8), 16),
        (torch.zeros(4, dtype=torch.uint8), 32),
        (torch.full((1, 1), 4, dtype=torch.uint8), 2),
    ],
)
def test_other_bits_are_refused(bits, columns):
    with pytest.raises(ValueError, match=r"bytes|last column"):
        unpack_bits(bits, columns)
