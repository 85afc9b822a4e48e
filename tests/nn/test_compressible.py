import copy
import pickle

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from lit_compress.functional import fake_quantize
from lit_compress.nn import CompressibleLinear, DynamicTokenQuantizer, MinMaxWeightQuantizer, MovingAverageQuantizer

MASK = torch.arange(12).reshape(3, 4) % 3 != 0


def compressible(mask=False, weight_quantizer=False, input_quantizer=False, bias=True):
    layer = CompressibleLinear.from_linear(nn.Linear(4, 3, bias=bias))
    if mask:
        layer.add_mask()
        layer.weight_mask.copy_(MASK)
    if weight_quantizer:
        layer.weight_quantizer = MinMaxWeightQuantizer(3)
    if input_quantizer:
        layer.input_quantizer = MovingAverageQuantizer()
    return layer


SLOTS = [
    {},
    {"mask": True},
    {"weight_quantizer": True},
    {"mask": True, "weight_quantizer": True},
    {"mask": True, "weight_quantizer": True, "input_quantizer": True},
]


@pytest.mark.parametrize("bias", [True, False])
def test_takes_over_the_same_parameters_and_names(bias):
    linear = nn.Linear(4, 3, bias=bias).eval()
    layer = CompressibleLinear.from_linear(linear)
    x = torch.randn(2, 4)
    assert layer.weight is linear.weight
    assert layer.bias is linear.bias
    assert list(layer.state_dict()) == list(linear.state_dict())
    assert not layer.training
    assert torch.equal(layer(x), linear(x))


def test_is_usable_without_a_linear_to_take_over():
    layer = CompressibleLinear(4, 3)
    assert layer.weight_mask is None
    assert torch.equal(layer(torch.ones(2, 4)), F.linear(torch.ones(2, 4), layer.weight, layer.bias))


def test_forward_masks_then_quantizes():
    layer, x = compressible(mask=True, weight_quantizer=True), torch.randn(2, 5, 4)
    masked = layer.weight.detach() * MASK
    # The scale belongs to what is left: the largest weight of a row may be masked.
    scale = masked.abs().amax(1) / 127
    weight = fake_quantize(masked, scale, torch.zeros(3, dtype=torch.int32), -127, 127, channel_dim=0)
    assert torch.equal(layer.effective_weight(), weight)
    assert torch.equal(layer(x), F.linear(x, weight, layer.bias))
    assert (layer.effective_weight()[~MASK] == 0).all()


def test_forward_quantizes_the_input():
    layer, x = compressible(input_quantizer=True), torch.randn(2, 4)
    expected = F.linear(MovingAverageQuantizer()(x), layer.weight, layer.bias)
    assert torch.equal(layer(x), expected)
    assert not torch.equal(expected, F.linear(x, layer.weight, layer.bias))


@pytest.mark.parametrize("slots", SLOTS[1::2], ids=str)
def test_no_gradient_under_the_mask(slots):
    layer = compressible(**slots)
    layer(torch.randn(8, 4)).square().sum().backward()
    assert (layer.weight.grad[~MASK] == 0).all()
    assert (layer.weight.grad[MASK] != 0).all()


def test_scores_learn_through_the_mask_and_the_quantizer():
    layer = compressible(mask=True, weight_quantizer=True)
    layer.add_mask_scores()
    layer(torch.randn(8, 4)).square().sum().backward()
    assert (layer.mask_scores.grad != 0).all()
    assert (layer.weight.grad[~MASK] == 0).all()


def test_scores_change_nothing_but_gradients():
    plain, scored, x = compressible(mask=True), compressible(mask=True), torch.randn(5, 4)
    scored.load_state_dict(plain.state_dict())
    scored.add_mask_scores()
    torch.nn.init.normal_(scored.mask_scores, std=1e4)
    assert torch.equal(scored(x), plain(x))
    assert torch.equal(scored.to_linear()(x), plain(x))
    assert list(scored.to_linear().state_dict()) == ["weight", "bias"]


def test_scores_start_at_zero_beside_a_mask_and_are_installed_once():
    layer = compressible()
    layer.add_mask_scores()
    scores = layer.mask_scores
    assert layer.weight_mask.all()
    assert not scores.any()
    layer.add_mask_scores()
    assert layer.mask_scores is scores


def test_mask_starts_full_and_is_installed_once():
    layer = compressible()
    layer.add_mask()
    assert layer.weight_mask.dtype == torch.bool
    assert layer.weight_mask.all()
    layer.weight_mask.copy_(MASK)
    layer.add_mask()
    assert torch.equal(layer.weight_mask, MASK)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("slots", SLOTS[:4], ids=str)
def test_to_linear_equals_the_training_form_bit_for_bit(slots, bias):
    layer, x = compressible(**slots, bias=bias).eval(), torch.randn(5, 4)
    linear = layer.to_linear()
    assert type(linear) is nn.Linear
    assert list(linear.state_dict()) == (["weight", "bias"] if bias else ["weight"])
    assert torch.equal(linear(x), layer(x))
    assert not linear.training


def test_to_linear_leaves_the_layer_as_it_was():
    layer = compressible(mask=True, weight_quantizer=True)
    before = layer.weight.detach().clone()
    nn.init.zeros_(layer.to_linear().weight)
    assert torch.equal(layer.weight, before)


@pytest.mark.parametrize("slots", SLOTS, ids=str)
@pytest.mark.parametrize("clone", [copy.deepcopy, lambda x: pickle.loads(pickle.dumps(x))], ids=["deepcopy", "pickle"])
def test_copies_are_equal_and_apart(slots, clone):
    layer, x = compressible(**slots), torch.randn(2, 4)
    expected = layer(x)
    layer.eval()
    other = clone(layer)
    assert torch.equal(other(x), expected)
    assert list(other.state_dict()) == list(layer.state_dict())
    with torch.no_grad():
        other.weight.zero_()
    assert torch.equal(layer(x), expected)


RANGES = ["input_quantizer.low", "input_quantizer.high"]
ADDED = [[], ["weight_mask"], ["weight_quantizer.scale"], ["weight_mask", "weight_quantizer.scale"]]
ADDED.append([*ADDED[-1], *RANGES])


@pytest.mark.parametrize(("slots", "added"), [*zip(SLOTS, ADDED, strict=True)], ids=str)
def test_state_dict_adds_only_what_is_installed(slots, added):
    assert list(compressible(**slots).state_dict()) == ["weight", "bias", *added]


def test_dynamic_quantizer_has_no_state():
    layer = compressible()
    layer.input_quantizer = DynamicTokenQuantizer()
    assert list(layer.state_dict()) == ["weight", "bias"]


def test_a_dense_state_dict_loads_strictly():
    dense, layer = nn.Linear(4, 3), compressible()
    layer.load_state_dict(dense.state_dict(), strict=True)
    assert torch.equal(layer.weight, dense.weight)


@pytest.mark.parametrize("slots", SLOTS, ids=str)
def test_state_of_one_layer_makes_another_equal(slots):
    layer, x = compressible(**slots), torch.randn(2, 4)
    layer(x)  # moves the ranges
    other = compressible(**slots)
    other.load_state_dict(layer.state_dict(), strict=True)
    assert torch.equal(other.eval()(x), layer.eval()(x))


def test_mask_moves_with_the_layer_and_stays_bool():
    layer = compressible(mask=True).to(torch.bfloat16)
    assert layer.weight_mask.dtype == torch.bool
    assert layer.effective_weight().dtype == torch.bfloat16
