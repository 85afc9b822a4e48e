import pytest
import torch
from torch import nn

from lit_compress.nn import CompressibleLinear, MinMaxWeightQuantizer, TableQuantizer
from lit_compress.nn.embedding import CompressibleEmbedding
from lit_compress.storage import QuantizedWeight, round_weight


@pytest.mark.parametrize("per_channel", [True, False])
@pytest.mark.parametrize("bits", [8, 7, 4])
def test_a_layer_gives_the_integers_that_it_computes_with(bits, per_channel):
    layer = CompressibleLinear(20, 12)
    assert layer.quantized_weight() is None
    layer.add_mask()
    layer.weight_mask.copy_(torch.rand(12, 20) < 0.5)
    layer.weight_quantizer = MinMaxWeightQuantizer(12, bits, per_channel)
    weight = layer.quantized_weight()
    assert torch.equal(weight.weight(), layer.effective_weight().detach())
    assert weight.scale.shape == ((12, 1) if per_channel else (1, 1))
    assert (weight.values.dtype, weight.bits) == (torch.int8, bits)
    assert int(weight.values.abs().max()) == 2 ** (bits - 1) - 1
    assert not weight.values[~layer.weight_mask].any()
    layer.weight_quantizer.enabled = False
    assert layer.quantized_weight() is None


@pytest.mark.parametrize("per_row", [True, False])
def test_a_table_gives_the_integers_that_lookups_see(per_row):
    table = CompressibleEmbedding.from_embedding(nn.Embedding(9, 6))
    table.weight_quantizer = TableQuantizer(9, per_row)
    weight = table.quantized_weight()
    assert torch.equal(weight.weight(), table.effective_weight().detach())
    assert weight.values.dtype == (torch.int8 if per_row else torch.uint8)
    assert (weight.zero_point == 0) == per_row


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_integers_are_exact_in_half_precision(dtype):
    """Products of integers and scales are rounded there, and nothing could find the integers in them again."""
    layer = CompressibleLinear(20, 12).to(dtype)
    layer.weight_quantizer = MinMaxWeightQuantizer(12)
    weight = layer.quantized_weight()
    assert torch.equal(weight.weight().to(dtype), layer.effective_weight().detach())


def test_integers_are_found_in_what_lies_on_a_grid_and_in_nothing_else():
    weight = round_weight(torch.randn(5, 7))
    found = QuantizedWeight.from_dequantized(weight.weight(), weight.scale, None, 8)
    assert torch.equal(found.values, weight.values)
    with pytest.raises(ValueError, match="was changed after it was quantized"):
        QuantizedWeight.from_dequantized(weight.weight() + 1e-3, weight.scale, None, 8)
    with pytest.raises(ValueError, match="is not quantized to 4 bits"):
        QuantizedWeight.from_dequantized(weight.weight(), weight.scale, None, 4)
