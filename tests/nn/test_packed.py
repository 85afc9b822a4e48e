import copy
import json

import pytest
import torch
from torch import nn

from lit_compress.errors import UserError
from lit_compress.functional import nm_mask, unstructured_mask
from lit_compress.functional.masks import expand_blocks
from lit_compress.nn.packed import PackedLinear
from lit_compress.nn.quantizers import MinMaxWeightQuantizer
from lit_compress.storage.layouts import DTYPES
from lit_compress.storage.weight import QuantizedWeight, round_weight

FORMATS = ["dense", "tall_blocks", "blocks", "bitmap", "two_four"]


def sparse_linear(format, out_features=192, in_features=256, bias=True):
    """A linear with the zeros that a format is for."""
    linear = nn.Linear(in_features, out_features, bias=bias)
    weight = linear.weight.detach()
    if format in ("tall_blocks", "blocks"):
        rows, width = (128, 32) if format == "tall_blocks" else (64, 64)
        kept = torch.rand(-(-out_features // rows), in_features // width) < 0.4
        weight *= expand_blocks(kept, (rows, width))[:out_features]
    elif format == "two_four":
        weight *= nm_mask(weight.abs(), 2, 4)
    elif format == "bitmap":
        weight *= unstructured_mask(weight.abs(), 0.8)
    return linear


@pytest.fixture(params=[(format, dtype) for format in FORMATS for dtype in DTYPES], ids="-".join)
def packed(request):
    format, dtype = request.param
    return PackedLinear.from_linear(sparse_linear(format), format, DTYPES[dtype])


def loaded(layer):
    """The layer as a file of it becomes one."""
    other = PackedLinear.from_description(json.loads(json.dumps(layer.describe())))
    other.load_state_dict({name: value.clone() for name, value in layer.state_dict().items()}, strict=True)
    return other


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize(("dtype", "error"), [("int8", 0.5 / 127), ("fp8", 1 / 16)])
def test_the_weight_is_the_linears_up_to_rounding(format, dtype, error):
    linear = sparse_linear(format)
    layer = PackedLinear.from_linear(linear, format, DTYPES[dtype])
    weight, found = linear.weight.detach(), layer.dequantized()
    # int8: half a step of the channel's grid. fp8: half of the last of three bits, of each number.
    size = weight.abs().amax(1, keepdim=True) if dtype == "int8" else weight.abs().clamp_min(1e-4)
    assert ((found - weight).abs() <= error * size * 1.001).all()
    assert (found[weight == 0] == 0).all()
    assert layer.values.dtype == DTYPES[dtype]
    layer.check()


def test_it_computes_what_its_weight_does(packed):
    x = torch.randn(2, 5, 256)
    expected = nn.functional.linear(x, packed.dequantized(), packed.bias)
    assert torch.equal(packed(x), expected)
    assert torch.equal(packed(x), expected)  # of what was kept


def test_the_linear_is_left_alone():
    linear = sparse_linear("dense")
    before = linear.weight.clone(), linear.bias.clone()
    layer = PackedLinear.from_linear(linear)
    layer.bias.add_(1)
    assert torch.equal(linear.weight, before[0])
    assert torch.equal(linear.bias, before[1])
    assert list(layer.parameters()) == []


@pytest.mark.parametrize("per_channel", [True, False])
def test_integers_are_those_of_the_training_form(per_channel):
    linear = nn.Linear(64, 48)
    quantizer = MinMaxWeightQuantizer(48, per_channel=per_channel)
    grid = quantizer(linear.weight).detach()
    quantizer.observing = False
    with torch.no_grad():
        linear.weight.mul_(0.9)  # the scale is frozen and no longer the largest weight's
        on_grid = quantizer(linear.weight)
    layer = PackedLinear.from_weight(quantizer.quantize(linear.weight), linear.bias)
    integers = (on_grid / quantizer.scale.reshape(-1, 1)).round()
    assert torch.equal(layer.values.float(), integers)
    assert torch.equal(layer.dequantized(), on_grid)
    assert not torch.equal(on_grid, grid)


def test_values_are_never_minus_128_and_channels_of_zeros_stay_zero():
    weight = QuantizedWeight.rounded(torch.tensor([[-9.0, 9.0], [0.0, 0.0]]), torch.tensor(0.01), None, 8)
    assert weight.values.tolist() == [[-127, 127], [0, 0]]
    weight = round_weight(torch.zeros(1, 4), torch.float8_e4m3fn)
    assert weight.values.float().tolist() == [[0.0] * 4]
    assert (1 / weight.scale).isfinite().all()


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_a_weight_that_is_not_finite_is_refused(value):
    linear = nn.Linear(8, 2)
    linear.weight.data[1, 3] = value
    with pytest.raises(UserError, match=r"the.layer: its weight holds a number that is not finite"):
        PackedLinear.from_linear(linear, name="the.layer")


@pytest.mark.parametrize(
    ("format", "inputs", "words"),
    [
        ("tall_blocks", 48, "blocks of 32 columns do not divide 48 inputs"),
        ("blocks", 96, "blocks of 64 columns do not divide 96 inputs"),
        ("two_four", 20, "20 inputs are not a multiple of 8"),
        ("two_four", 32, "hold more than two values"),
    ],
)
def test_a_format_that_does_not_fit_is_refused(format, inputs, words):
    with pytest.raises(UserError, match=f"--layout: {format} does not fit 'the.layer': .*{words}"):
        PackedLinear.from_linear(nn.Linear(inputs, 16), format, name="the.layer")


def test_a_file_gives_the_same_layer(packed):
    packed.input_scale = torch.tensor([0.25])
    other = loaded(packed)
    assert other.describe() == packed.describe()
    assert dict(other.named_buffers()).keys() == dict(packed.named_buffers()).keys()
    for name, buffer in packed.named_buffers():
        assert torch.equal(buffer.view(torch.uint8), other.get_buffer(name).view(torch.uint8))
    x = torch.randn(3, 256)
    assert torch.equal(other(x), packed(x))
    assert {name: tuple(v.shape) for name, v in other.state_dict().items()} == {
        name: tuple(v.shape) for name, v in packed.state_dict().items()
    }


def test_a_second_file_replaces_the_first(packed):
    x = torch.randn(3, 256)
    before = packed(x)
    other = PackedLinear.from_linear(sparse_linear(packed.format), packed.format, packed.dtype)
    if packed.format in ("tall_blocks", "blocks") and other.values.shape != packed.values.shape:
        return  # another number of blocks is another layer
    packed.load_state_dict(other.state_dict())
    assert torch.equal(packed(x), other(x))
    assert not torch.equal(packed(x), before)


@pytest.mark.parametrize("format", ["bitmap", "two_four", "tall_blocks", "blocks"])
def test_small_formats_are_small(format):
    dense, small = (
        sum(
            v.numel() * v.element_size()
            for v in PackedLinear.from_linear(sparse_linear(format), f).state_dict().values()
        )
        for f in ("dense", format)
    )
    assert small < 0.75 * dense


def test_casting_and_copying_keep_what_is_stored(packed):
    x = torch.randn(3, 256)
    before = {name: value.clone() for name, value in packed.state_dict().items()}
    for other in (
        copy.deepcopy(packed).half(),
        copy.deepcopy(packed).to(torch.float64),
        nn.Sequential(packed).bfloat16()[0],
    ):
        assert all(value.dtype == before[name].dtype for name, value in other.state_dict().items())
        assert torch.equal(other(x), packed(x))
    assert packed(x.half()).dtype == torch.float16
    assert packed.to("meta").w_scale.is_meta


def test_gradients_reach_the_input():
    layer = PackedLinear.from_linear(nn.Linear(8, 4))
    with torch.inference_mode():
        layer(torch.randn(2, 8))
    x = torch.randn(2, 8, requires_grad=True)
    layer(x).sum().backward()
    assert torch.allclose(x.grad, layer.dequantized().sum(0).expand(2, 8))


def test_it_compiles_to_one_graph():
    layer = PackedLinear.from_linear(nn.Linear(8, 4))
    x = torch.randn(2, 8)
    assert torch.equal(torch.compile(layer, fullgraph=True, backend="eager")(x), layer(x))


DAMAGES = {
    "columns beyond": ("tall_blocks", lambda s: s["columns"].__setitem__((0, 3), 8), "that is not one of the 8"),
    "columns below": ("blocks", lambda s: s["columns"].__setitem__((0, 0), -1), "that is not one of the 4"),
    "columns swapped": ("tall_blocks", lambda s: s["columns"].copy_(s["columns"].flip(1)), "blocks come twice, out of"),
    "a block twice": ("blocks", lambda s: s["columns"].fill_(0), "blocks come twice, out of order"),
    "offsets": ("tall_blocks", lambda s: s["offsets"].add_(1), "offsets do not divide"),
    "offsets down": ("blocks", lambda s: s["offsets"].__setitem__(1, 99), "offsets do not divide"),
    "bits": ("bitmap", lambda s: s["bits"].bitwise_xor_(1), "positions and it has"),
    "starts": ("bitmap", lambda s: s["starts"].add_(1), "more or fewer than its values"),
    "index": ("two_four", lambda s: s["index"].zero_(), "no first and second position"),
    "scale": ("dense", lambda s: s["w_scale"].__setitem__(0, torch.nan), "w_scale holds a number that is not finite"),
    "no scale": ("dense", lambda s: s["w_scale"].__setitem__(0, 0), "w_scale is not above 0"),
    "bias": ("dense", lambda s: s["bias"].__setitem__(0, torch.inf), "bias holds a number that is not finite"),
    "values": ("dense", lambda s: s["values"].__setitem__((0, 0), -128), "values hold a number that no packing writes"),
}  # fmt: skip


@pytest.mark.parametrize("case", DAMAGES)
def test_damage_is_refused_in_one_line(case):
    format, damage, words = DAMAGES[case]
    layer = PackedLinear.from_linear(sparse_linear(format), format)
    state = {name: value.clone() for name, value in layer.state_dict().items()}
    damage(state)
    other = PackedLinear.from_description(layer.describe())
    with pytest.raises(UserError, match=f"layer: the packed weight is damaged: .*{words}") as caught:
        other.load_state_dict(state)
    assert "\n" not in str(caught.value)


def test_values_outside_the_weight_are_refused():
    layer = PackedLinear.from_linear(sparse_linear("tall_blocks", out_features=192), "tall_blocks")
    layer.values[-1, -1] = 1  # the second tile has 64 rows, the last 64 are none
    with pytest.raises(UserError, match="outside the weight"):
        layer.check()


def test_a_nan_in_fp8_is_refused():
    layer = PackedLinear.from_linear(nn.Linear(8, 4), dtype=torch.float8_e4m3fn)
    layer.values.view(torch.int8)[0, 0] = 127
    with pytest.raises(UserError, match="values hold a number that no packing writes"):
        layer.check()


def test_wrong_shapes_are_refused():
    layer = PackedLinear.from_linear(nn.Linear(8, 4))
    layer.w_scale = torch.ones(5)
    with pytest.raises(UserError, match=r"w_scale is torch.float32 \(5,\) and must be"):
        layer.check("x")


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"format": "of tomorrow"}, "'of tomorrow' in 'int8' and must be one of dense"),
        ({"format": ["dense"]}, "must be one of dense"),
        ({"dtype": "int4"}, "in 'int4' and must be one of"),
        ({"shape": [4]}, r"shape \[4\] and must have two sizes above 0"),
        ({"shape": [4, -8]}, "must have two sizes above 0"),
        ({"shape": [4, 2.5]}, "must have two sizes above 0"),
        ({"shape": [192, 100]}, "100 inputs, of which tall_blocks needs a multiple of 32"),
        ({"chunks": 10**9}, "chunks 1000000000 and must have from 0 to 4"),
        ({"chunks": None}, "chunks None and must have from 0 to 4"),
        ({"chunks": True}, "chunks True"),
    ],
)
def test_a_wrong_description_is_refused(changed, words):
    described = PackedLinear.from_linear(sparse_linear("tall_blocks"), "tall_blocks").describe()
    with pytest.raises(UserError, match=f"packed: 'the.layer' .*{words}"):
        PackedLinear.from_description(described | changed, "the.layer")
    for wrong in (None, [], {"format": "dense"}):
        with pytest.raises(UserError, match=r"packed: 'the.layer' must have bias, dtype, format"):
            PackedLinear.from_description(wrong, "the.layer")
