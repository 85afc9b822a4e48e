import pytest
import torch

from lit_compress.functional.pooling import POOLINGS, pool


@pytest.mark.parametrize("pooling", POOLINGS)
@pytest.mark.parametrize("normalize", [False, True])
def test_padding_is_no_part_of_a_vector(pooling, normalize):
    hidden = torch.randn(3, 7, 5)
    mask = torch.ones(3, 7)
    mask[0, 4:] = mask[1, 1:] = 0
    found = pool(hidden, mask, pooling, normalize)
    for row, length in enumerate((4, 1, 7)):
        alone = pool(hidden[row : row + 1, :length], None, pooling, normalize)
        assert torch.allclose(found[row], alone[0], atol=1e-6)
    if normalize:
        assert torch.allclose(found.norm(dim=1), torch.ones(3))


def test_sums_of_half_precision_are_made_in_full():
    hidden = torch.full((1, 4096, 2), 1.0, dtype=torch.bfloat16)
    assert pool(hidden, None, "mean", False).tolist() == [[1.0, 1.0]]
