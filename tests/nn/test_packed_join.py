import itertools

import pytest
import torch
from torch import nn

from lit_compress.nn.packed import PackedLinear
from lit_compress.nn.packed_join import join, share


def linears(formats, rows, inputs=128, dtype=torch.int8, biases=None):
    made = []
    for format, count, bias in zip(formats, rows, biases or [True] * len(rows), strict=True):
        linear = nn.Linear(inputs, count, bias=bias)
        linear.weight.data[:, 32:64] = 0  # a block, in every layout
        if format == "two_four":
            linear.weight.data.reshape(-1, 4)[:, :2] = 0
        made.append(PackedLinear.from_linear(linear, format, dtype))
    return made


def shares(joined, linear, name="values"):
    pair = (getattr(joined, name), getattr(linear, name))
    return len({tensor.untyped_storage().data_ptr() for tensor in pair}) == 1


CASES = {
    "dense": (["dense"] * 3, [8, 8, 8], True),
    "dense of odd sizes": (["dense"] * 3, [7, 3, 5], True),
    "tall blocks": (["tall_blocks"] * 3, [128, 256, 128], True),
    "tall blocks that are filled up": (["tall_blocks"] * 3, [64, 64, 128], False),
    "tall blocks of which the last are filled up": (["tall_blocks"] * 3, [128, 128, 64], True),
    "one that is filled up": (["tall_blocks"], [192], True),
    "blocks": (["blocks"] * 3, [64, 64, 64], True),
    "stored small": (["bitmap", "two_four", "dense"], [8, 8, 8], True),
    "some in tiles": (["dense", "tall_blocks", "dense"], [128, 128, 128], False),
    "two kinds of tiles": (["blocks", "tall_blocks", "blocks"], [128, 128, 128], False),
}


@pytest.mark.parametrize("dtype", [torch.int8, torch.float8_e4m3fn])
@pytest.mark.parametrize("case", CASES)
def test_a_product_of_all(case, dtype):
    formats, rows, shared = CASES[case]
    parts = linears(formats, rows, dtype=dtype)
    before = [{name: buffer.clone() for name, buffer in part.state_dict().items()} for part in parts]
    weights = [part.dequantized() for part in parts]
    joined = join(parts)
    joined.check()
    assert torch.equal(joined.dequantized(), torch.cat(weights))
    assert torch.equal(joined.bias, torch.cat([part.bias for part in parts]))
    assert joined.out_features == sum(rows)
    # The linears are what they were, and no bytes are there twice that need not be.
    for part, buffers in zip(parts, before, strict=True):
        after = part.state_dict()
        assert list(after) == list(buffers)
        assert all(torch.equal(after[name].view(torch.uint8), buffers[name].view(torch.uint8)) for name in buffers)
        part.check()
        assert shares(joined, part) == shared
        assert shares(joined, part, "w_scale")


def test_biases_that_are_missing_are_zero():
    parts = linears(["dense"] * 3, [2, 2, 2], biases=(True, False, True))
    expected = torch.cat([parts[0].bias, torch.zeros(2), parts[2].bias])
    assert torch.equal(join(parts).bias, expected)
    assert parts[1].bias is None
    assert join(linears(["dense"] * 3, [2, 2, 2], biases=(False,) * 3)).bias is None


def test_a_change_of_one_is_a_change_of_both():
    parts = linears(["dense"] * 3, [2, 3, 4])
    joined = join(parts)
    with torch.no_grad():
        parts[1].values.zero_()
        joined.w_scale[5:].fill_(2.0)
    assert not joined.values[2:5].any()
    assert (parts[2].w_scale == 2.0).all()


def test_sharing_again_after_a_move():
    parts = linears(["tall_blocks"] * 3, [128] * 3)
    joined = join(parts)
    for module in (joined, *parts):
        for name, buffer in list(module.named_buffers()):
            setattr(module, name, buffer.clone())  # as a move to another device does
    assert not any(shares(joined, part) for part in parts)
    share(joined, parts)
    assert all(shares(joined, part) for part in parts)
    ends = list(itertools.accumulate(len(part.values) for part in parts))
    assert ends[-1] == len(joined.values)
