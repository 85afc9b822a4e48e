import json

import pytest
import torch
from torch import nn

from lit_compress.functional import asymmetric_qparams, fake_quantize, symmetric_qparams
from lit_compress.nn import DynamicTokenQuantizer, MinMaxWeightQuantizer, MovingAverageQuantizer

QUANTIZERS = {
    "weight per channel": lambda: MinMaxWeightQuantizer(4),
    "weight per tensor": lambda: MinMaxWeightQuantizer(4, per_channel=False),
    "uint8": lambda: MovingAverageQuantizer(),
    "int8": lambda: MovingAverageQuantizer(symmetric=True),
    "dynamic": lambda: DynamicTokenQuantizer(),
}
every_quantizer = pytest.mark.parametrize("make", QUANTIZERS.values(), ids=QUANTIZERS)


def ranges(quantizer):
    return quantizer.low.item(), quantizer.high.item()


@every_quantizer
def test_disabled_is_the_identity_and_observes_nothing(make):
    quantizer, x = make(), torch.randn(4, 8)
    quantizer.enabled = False
    before = {name: value.clone() for name, value in quantizer.state_dict().items()}
    assert quantizer(x) is x
    assert all(torch.equal(value, before[name]) for name, value in quantizer.state_dict().items())


@every_quantizer
def test_keeps_zero_and_changes_the_rest_a_little(make):
    x = torch.randn(4, 8)
    x[::2, ::3] = 0.0
    y = make()(x)
    assert (y[::2, ::3] == 0).all()
    assert not torch.equal(y, x)
    assert torch.allclose(y, x, atol=0.03)


@every_quantizer
def test_gradient_goes_straight_through(make):
    x = torch.randn(4, 8, requires_grad=True)
    make()(x).sum().backward()
    assert torch.equal(x.grad, torch.ones(4, 8))


@every_quantizer
def test_zeros_give_zeros(make):
    y = make()(torch.zeros(4, 8))
    assert torch.equal(y, torch.zeros(4, 8))


@every_quantizer
def test_spec_survives_json_and_builds_an_equal(make):
    quantizer, x = make(), torch.randn(4, 8)
    twin = type(quantizer)(**json.loads(json.dumps(quantizer.spec())))
    assert twin.spec() == quantizer.spec()
    assert torch.equal(twin(x), quantizer(x))


def test_spec_says_every_argument():
    assert MinMaxWeightQuantizer(7, bits=4, per_channel=False).spec() == {
        "out_features": 7,
        "bits": 4,
        "per_channel": False,
    }
    assert MovingAverageQuantizer(4, True, 0.5).spec() == {"bits": 4, "symmetric": True, "momentum": 0.5}
    assert DynamicTokenQuantizer(4).spec() == {"bits": 4}


@every_quantizer
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_inputs_keep_their_dtype(make, dtype):
    # Ranges in fp32, data in half precision: what autocast makes of a model.
    x = torch.randn(4, 8).to(dtype).requires_grad_()
    y = make()(x)
    y.sum().backward()
    assert y.dtype == x.grad.dtype == dtype
    assert torch.allclose(y.float(), x.float(), atol=0.06)


@every_quantizer
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_modules(make, dtype):
    # What Trainer(precision="bf16-true") does to a module.
    x = torch.randn(4, 8).to(dtype)
    assert torch.allclose(make().to(dtype)(x).float(), x.float(), atol=0.06)


@pytest.mark.parametrize("bits", [2, 4, 8])
def test_weight_scale_per_channel_and_per_tensor(bits):
    weight, qmax = torch.randn(4, 8) * torch.tensor([[0.1], [1.0], [10.0], [100.0]]), 2 ** (bits - 1) - 1
    rows, whole = MinMaxWeightQuantizer(4, bits), MinMaxWeightQuantizer(4, bits, per_channel=False)
    by_row, by_tensor = rows(weight), whole(weight)
    assert torch.equal(rows.scale, symmetric_qparams(weight.abs().amax(1), qmax))
    assert torch.equal(whole.scale, symmetric_qparams(weight.abs().max(), qmax))
    # One grid for all leaves nothing of the small channel.
    assert (by_tensor[0] == 0).all()
    assert (by_row[0] != 0).any()
    levels = (by_row / rows.scale.unsqueeze(1)).round().unique()
    assert len(levels) <= 2 * qmax + 1
    assert levels.abs().max() == qmax


def test_largest_weight_is_never_clamped_whatever_its_sign():
    weight = torch.tensor([[-3.0, 1.0], [3.0, -1.0]])
    assert torch.allclose(MinMaxWeightQuantizer(2)(weight).abs().amax(1), torch.tensor(3.0))


def test_frozen_weight_scale_stays_while_weights_go_on():
    quantizer = MinMaxWeightQuantizer(2)
    quantizer(torch.tensor([[1.0, -0.5], [2.0, 0.1]]))
    scale = quantizer.scale.clone()
    quantizer.observing = False
    assert quantizer(torch.tensor([[10.0, 0.0], [2.0, 0.0]]))[:, 0].tolist() == pytest.approx([1.0, 2.0])
    assert torch.equal(quantizer.scale, scale)


def test_frozen_scale_comes_back_with_the_state_dict():
    one, other = MinMaxWeightQuantizer(4), MinMaxWeightQuantizer(4)
    weight = torch.randn(4, 8)
    one(weight)
    other.load_state_dict(one.state_dict())
    one.observing = other.observing = False
    assert torch.equal(one(3 * weight), other(3 * weight))


def test_frozen_weight_quantizer_that_saw_nothing_passes_weights_through():
    # Its scale of one would round every weight of a network to zero.
    quantizer, weight = MinMaxWeightQuantizer(4), torch.randn(4, 8) * 0.1
    quantizer.observing = False
    assert torch.equal(quantizer(weight), weight)


def test_range_is_a_moving_average_that_the_first_batch_starts():
    quantizer = MovingAverageQuantizer(momentum=0.1)
    quantizer(torch.tensor([-1.0, 2.0]))
    assert ranges(quantizer) == (-1.0, 2.0)
    quantizer(torch.tensor([-3.0, 12.0]))
    assert ranges(quantizer) == pytest.approx((-1.2, 3.0))
    quantizer(torch.tensor([-1.2, 0.0]))
    assert ranges(quantizer) == pytest.approx((-1.2, 2.7))


def test_range_moves_before_the_batch_is_quantized():
    x = torch.tensor([-1.0, 0.3, 2.0])
    expected = fake_quantize(x, *asymmetric_qparams(torch.tensor(-1.0), torch.tensor(2.0)), 0, 255)
    assert torch.equal(MovingAverageQuantizer()(x), expected)


@pytest.mark.parametrize("freeze", [lambda q: q.eval(), lambda q: setattr(q, "observing", False)], ids=["eval", "off"])
def test_range_stays_in_evaluation_and_when_frozen(freeze):
    quantizer = MovingAverageQuantizer()
    quantizer(torch.tensor([-1.0, 2.0]))
    freeze(quantizer)
    y = quantizer(torch.tensor([-9.0, 9.0]))
    assert ranges(quantizer) == (-1.0, 2.0)
    assert y.tolist() == pytest.approx([-1.0, 2.0], abs=0.012)


@pytest.mark.parametrize("symmetric", [True, False])
def test_range_that_saw_no_data_passes_values_and_gradients_through(symmetric):
    quantizer, x = MovingAverageQuantizer(symmetric=symmetric).eval(), torch.randn(4, 8, requires_grad=True)
    y = quantizer(x)
    y.sum().backward()
    assert torch.equal(y, x)
    assert torch.equal(x.grad, torch.ones(4, 8))


@pytest.mark.parametrize(
    ("symmetric", "bits", "scale", "zero_point"),
    [(False, 8, 3 / 255, 85), (True, 8, 2 / 127, 0), (False, 4, 3 / 15, 5), (True, 4, 2 / 7, 0)],
)
def test_grid_of_a_range(symmetric, bits, scale, zero_point):
    quantizer = MovingAverageQuantizer(bits, symmetric)
    quantizer(torch.tensor([-1.0, 2.0]))
    found = quantizer.qparams()
    assert found[0].item() == pytest.approx(scale)
    assert found[1].item() == zero_point


def test_dynamic_gives_each_token_its_own_grid():
    x = torch.randn(2, 3, 8) * torch.tensor([1e-3, 1.0, 1e3]).reshape(1, 3, 1)
    y = DynamicTokenQuantizer()(x)
    assert y.shape == x.shape
    scale = x.abs().amax(-1, keepdim=True) / 127
    assert ((y - x).abs() <= 0.501 * scale).all()
    # A token's result does not depend on its neighbours.
    assert torch.equal(DynamicTokenQuantizer()(x[1, 2]), y[1, 2])


class _Net(nn.Module):
    def __init__(self, make):
        super().__init__()
        self.quantizer, self.linear = make(), nn.Linear(8, 4)

    def forward(self, x):
        return self.linear(self.quantizer(x))


@every_quantizer
def test_autocast_to_bfloat16(make):
    net, x = _Net(make), torch.randn(4, 8, requires_grad=True)
    with torch.autocast("cpu", torch.bfloat16):
        y = net(x)
    y.float().sum().backward()
    assert y.dtype == torch.bfloat16
    assert all(value.dtype == torch.float32 for value in net.quantizer.state_dict().values())
    assert x.grad.dtype == torch.float32
    assert (x.grad != 0).any()


@pytest.mark.parametrize("odd", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("symmetric", [True, False])
def test_a_batch_that_is_not_finite_moves_no_range(symmetric, odd):
    quantizer = MovingAverageQuantizer(symmetric=symmetric)
    spoilt = torch.tensor([0.5, odd])
    quantizer(spoilt)
    assert quantizer.low.isinf()  # nothing was seen yet
    quantizer(torch.tensor([-1.0, 2.0]))
    quantizer(spoilt)
    assert (quantizer.low.item(), quantizer.high.item()) == (-1.0, 2.0)
