import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lit_compress.functional import truncated_svd


@st.composite
def matrices(draw):
    rows, columns = draw(st.integers(1, 12)), draw(st.integers(1, 12))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 99)))
    return torch.randn(rows, columns, generator=generator, dtype=torch.float64), draw(
        st.integers(1, min(rows, columns))
    )


@given(matrices())
def test_the_error_is_the_tail_of_the_singular_values(case):
    matrix, rank = case
    left, right = truncated_svd(matrix, rank)
    assert left.shape == (matrix.shape[0], rank)
    assert right.shape == (rank, matrix.shape[1])
    tail = torch.linalg.svdvals(matrix)[rank:]
    assert torch.linalg.norm(matrix - left @ right).item() == pytest.approx(tail.norm().item(), abs=1e-9)


@given(matrices())
def test_fewer_columns_are_the_factors_of_a_lower_rank(case):
    matrix, rank = case
    full = truncated_svd(matrix, min(matrix.shape))
    left, right = truncated_svd(matrix, rank)
    assert torch.allclose(left, full[0][:, :rank], atol=1e-9)
    assert torch.allclose(right, full[1][:rank], atol=1e-9)


@given(matrices())
def test_rows_of_the_right_factor_are_orthonormal_with_a_fixed_sign(case):
    _, right = truncated_svd(*case)
    assert torch.allclose(right @ right.T, torch.eye(len(right), dtype=right.dtype), atol=1e-9)
    assert (right.gather(1, right.abs().argmax(1, keepdim=True)) > 0).all()


@pytest.mark.parametrize("rank", [0, -1, 4])
def test_a_rank_outside_the_matrix_is_an_error(rank):
    with pytest.raises(ValueError, match=rf"rank {rank} of a matrix of 5 x 3 must be in \[1, 3\]"):
        truncated_svd(torch.ones(5, 3), rank)


def test_half_precision_is_decomposed_in_single():
    matrix = torch.randn(6, 4).half()
    left, right = truncated_svd(matrix, 4)
    assert left.dtype == right.dtype == torch.float16
    assert (left.float() @ right.float() - matrix.float()).abs().max() < 1e-2
