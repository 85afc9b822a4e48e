import pytest
import torch
from torch import nn

from lit_compress.nn import CompressibleLinear, MinMaxWeightQuantizer, keep_inputs, keep_outputs

KEPT = torch.tensor([4, 0, 2])


def compressible(per_channel):
    layer = CompressibleLinear(6, 5)
    layer.add_mask()
    layer.weight_mask[:, ::2] = False
    layer.weight_quantizer = MinMaxWeightQuantizer(5, per_channel=per_channel)
    layer(torch.rand(1, 6))
    layer.weight_quantizer.observing = False
    return layer


@pytest.mark.parametrize("make", [lambda: nn.Linear(6, 5), lambda: compressible(True), lambda: compressible(False)])
def test_kept_outputs_are_unchanged(make):
    layer, x = make(), torch.randn(3, 6)
    expected = layer(x)[:, KEPT]
    keep_outputs(layer, KEPT)
    assert (layer.in_features, layer.out_features) == (6, 3)
    assert torch.allclose(layer(x), expected, atol=1e-6)


@pytest.mark.parametrize("make", [lambda: nn.Linear(6, 5, bias=False), lambda: compressible(False)])
def test_kept_inputs_are_all_that_is_read(make):
    layer, x = make(), torch.randn(3, 6)
    silent = torch.zeros(6, dtype=torch.bool).index_fill(0, KEPT, True)
    expected = layer(x * silent)
    keep_inputs(layer, KEPT)
    assert (layer.in_features, layer.out_features) == (3, 5)
    assert torch.allclose(layer(x[:, KEPT]), expected, atol=1e-6)


def test_masks_and_scales_are_cut_along():
    layer = compressible(True)
    mask, scale = layer.weight_mask.clone(), layer.weight_quantizer.scale.clone()
    keep_outputs(layer, KEPT)
    keep_inputs(layer, torch.tensor([5, 1]))
    assert torch.equal(layer.weight_mask, mask[KEPT][:, [5, 1]])
    assert torch.equal(layer.weight_quantizer.scale, scale[KEPT])
    assert layer.weight_quantizer.spec()["out_features"] == 3


def test_learned_scores_are_cut_along():
    layer = CompressibleLinear(6, 5)
    layer.add_mask_scores()
    scores = torch.randn(5, 6)
    layer.mask_scores.data.copy_(scores)
    keep_outputs(layer, KEPT)
    keep_inputs(layer, torch.tensor([5, 1]))
    assert torch.equal(layer.mask_scores, scores[KEPT][:, [5, 1]])
    assert layer.mask_scores.requires_grad


def test_a_frozen_layer_stays_frozen():
    layer = nn.Linear(6, 5).requires_grad_(False)
    keep_outputs(layer, KEPT)
    assert not layer.weight.requires_grad
    assert not layer.bias.requires_grad
