import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lit_compress.functional import asymmetric_qparams, dequantize, fake_quantize, quantize, symmetric_qparams

bounds = st.floats(-1e4, 1e4, width=32)
signed_grids = st.sampled_from([(-127, 127), (-7, 7), (-1, 1)])
unsigned_grids = st.sampled_from([(0, 255), (0, 15), (-128, 127)])


def grid_of(low, high, qmin, qmax):
    """Scale and zero point of a range: symmetric on a symmetric grid, affine on every other."""
    low, high = torch.tensor(low), torch.tensor(high)
    if qmin == -qmax:
        return symmetric_qparams(torch.maximum(low.abs(), high.abs()), qmax), torch.tensor(0, dtype=torch.int32)
    return asymmetric_qparams(low, high, qmin, qmax)


def bits(x):
    return x.view(torch.int32)


@given(bounds, bounds, signed_grids | unsigned_grids)
def test_zero_is_exactly_zero(one, other, grid):
    scale, zero_point = grid_of(*sorted([one, other]), *grid)
    zero = torch.zeros(())
    assert fake_quantize(zero, scale, zero_point, *grid).item() == 0.0
    assert dequantize(quantize(zero, scale, zero_point, *grid), scale, zero_point).item() == 0.0


@given(bounds, bounds, unsigned_grids)
def test_affine_zero_point_is_on_the_grid(one, other, grid):
    scale, zero_point = asymmetric_qparams(*map(torch.tensor, sorted([one, other])), *grid)
    assert zero_point.dtype == torch.int32
    assert grid[0] <= zero_point.item() <= grid[1]
    assert scale.item() > 0


@given(bounds, bounds, signed_grids | unsigned_grids, st.integers(0, 1000))
def test_integers_and_fake_quantization_agree_bit_for_bit(one, other, grid, seed):
    scale, zero_point = grid_of(*sorted([one, other]), *grid)
    noise = torch.randn(200, generator=torch.Generator().manual_seed(seed))
    # Random values, some far outside, and the ties between neighbours of the grid.
    x = torch.cat([noise * scale * grid[1], (torch.arange(-300, 300) + 0.5) * scale])
    there_and_back = dequantize(quantize(x, scale, zero_point, *grid), scale, zero_point)
    assert torch.equal(bits(there_and_back), bits(fake_quantize(x, scale, zero_point, *grid)))


def test_integers_and_fake_quantization_agree_per_channel():
    x = torch.randn(5, 300) * torch.tensor([1e-6, 0.1, 1.0, 3.0, 1e6]).unsqueeze(1)
    scale = symmetric_qparams(x.abs().amax(1))
    fake = fake_quantize(x, scale, torch.zeros(5, dtype=torch.int32), -127, 127, channel_dim=0)
    q = quantize(x, scale.unsqueeze(1), 0, -127, 127)
    assert torch.equal(bits(dequantize(q, scale.unsqueeze(1), 0)), bits(fake))
    assert q.abs().amax(1).tolist() == [127] * 5


@given(bounds, bounds, signed_grids | unsigned_grids)
def test_error_is_at_most_half_a_step(one, other, grid):
    low, high = sorted([one, other])
    low, high = min(low, 0.0), max(high, 0.0)
    scale, zero_point = grid_of(low, high, *grid)
    x = torch.linspace(low, high, 501)
    error = (fake_quantize(x, scale, zero_point, *grid) - x).abs().max()
    assert error <= scale * 0.5 + 1e-5 * x.abs().max()


@given(bounds, bounds, signed_grids | unsigned_grids, st.integers(0, 1000))
def test_quantizing_twice_changes_nothing(one, other, grid, seed):
    scale, zero_point = grid_of(*sorted([one, other]), *grid)
    x = torch.randn(200, generator=torch.Generator().manual_seed(seed)) * scale * grid[1]
    once = fake_quantize(x, scale, zero_point, *grid)
    assert torch.equal(bits(fake_quantize(once, scale, zero_point, *grid)), bits(once))


def test_gradient_is_one_inside_and_zero_where_clamped():
    x = torch.tensor([-2.0, -1.0, -0.013, 0.0, 0.5, 1.0, 2.0], requires_grad=True)
    scale, zero_point = asymmetric_qparams(torch.tensor(-1.0), torch.tensor(1.0))
    fake_quantize(x, scale, zero_point, 0, 255).sum().backward()
    assert x.grad.tolist() == [0, 1, 1, 1, 1, 1, 0]


def test_gradient_per_channel_follows_each_channels_range():
    x = torch.tensor([[0.5, 2.0], [0.5, 2.0]], requires_grad=True)
    scale = symmetric_qparams(torch.tensor([1.0, 3.0]))
    fake_quantize(x, scale, torch.zeros(2, dtype=torch.int32), -127, 127, channel_dim=0).sum().backward()
    assert x.grad.tolist() == [[1, 0], [1, 1]]


def test_a_channel_of_zeros_stays_zero():
    x = torch.tensor([[0.0, 0.0], [1.0, -2.0]], requires_grad=True)
    scale = symmetric_qparams(x.detach().abs().amax(1))
    y = fake_quantize(x, scale, torch.zeros(2, dtype=torch.int32), -127, 127, channel_dim=0)
    y.sum().backward()
    assert y[0].tolist() == [0.0, 0.0]
    assert y.isfinite().all()
    assert x.grad.isfinite().all()


def test_an_empty_range_has_a_finite_scale():
    scale, zero_point = asymmetric_qparams(torch.tensor(0.0), torch.tensor(0.0))
    assert 0 < scale.item() < 1e-20
    assert (1 / scale).isfinite()
    assert fake_quantize(torch.zeros(3), scale, zero_point, 0, 255).tolist() == [0, 0, 0]


@pytest.mark.parametrize(
    ("low", "high", "scale", "zero_point"),
    [
        (-1.0, 1.55, 0.01, 100),
        (0.0, 2.55, 0.01, 0),
        (-2.55, 0.0, 0.01, 255),
        (1.0, 2.55, 0.01, 0),  # a range beside zero is widened to hold it
        (-2.55, -1.0, 0.01, 255),
    ],
)
def test_affine_grid_by_hand(low, high, scale, zero_point):
    found = asymmetric_qparams(torch.tensor(low), torch.tensor(high))
    assert found[0].item() == pytest.approx(scale)
    assert found[1].item() == zero_point


@pytest.mark.parametrize(
    ("x", "q"),
    [(0.0, 0), (0.05, 0), (0.15, 2), (0.26, 3), (-0.26, -3), (12.7, 127), (99.0, 127), (-99.0, -127)],
)
def test_symmetric_integers_by_hand(x, q):
    # 0.05 and 0.15 are ties: halves go to the even neighbour.
    assert quantize(torch.tensor(x), torch.tensor(0.1), 0, -127, 127).item() == q
