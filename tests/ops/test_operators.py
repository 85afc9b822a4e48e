"""What every operator promises as a torch operator, and what a CPU computes."""

import gc

import pytest
import torch
from torch.nn import functional as F

from lit_compress import ops
from lit_compress.errors import UserError
from lit_compress.ops import reference, weight_cache
from lit_compress.ops.kernels_available import INTERPRETED

pytestmark = pytest.mark.skipif(INTERPRETED, reason="kernels are interpreted, not what a CPU runs")

INT8, FP8 = torch.int8, torch.float8_e4m3fn
both_types = pytest.mark.parametrize("dtype", [INT8, FP8], ids=["int8", "fp8"])


def weight(outputs=12, inputs=32, dtype=INT8):
    return ops.quantize_rows(torch.randn(outputs, inputs), dtype)


def attend(**options):
    return ops.attention_varlen(torch.ones(1, 48), torch.tensor([0, 1]).int(), 1, 1, 1.0, **options)


def relate(**options):
    given = {"columns": torch.zeros(3).int(), "by_query": torch.ones(1, 1, 3)} | options
    return ops.attention_relative(torch.ones(1, 48), torch.tensor([0, 1]).int(), 1, 1, 1.0, **given)


def tiles(outputs=128, inputs=64):
    """Two tall blocks, both of zeros but for one row, in a chunk of four."""
    values = torch.zeros(1, 128, 128, dtype=torch.int8)
    values[0, 5, :64] = torch.arange(64)
    columns = torch.tensor([[1, 0, 0, 0], [0, 0, 0, 0]], dtype=torch.int32)
    return values, torch.ones(outputs), columns, torch.tensor([0, 1], dtype=torch.int32)


def calls():
    """Name to (public function, its torch operator, arguments)."""
    x, lengths = torch.randn(6, 32), torch.tensor([0, 2, 6], dtype=torch.int32)
    positions = torch.tensor([0, 3, 0, 1, 2, 5, 0], dtype=torch.int32)
    near = (lengths, 4, 2, 0.25, torch.tensor([2, 1, 0], dtype=torch.int32))
    q, scale = ops.quantize_rows(x, INT8)
    values, w_scale = weight()
    found = torch.ops.lit_compress
    rows = (q, scale, values, w_scale, None, None)
    packed = (ops.quantize_rows(torch.randn(6, 64), INT8)[0], scale, *tiles(), None, None, "none", torch.float32, None)
    return {
        "quantize_rows": (ops.quantize_rows, found.quantize_rows, (x, INT8)),
        "quantize_rows to fp8": (ops.quantize_rows, found.quantize_rows, (x.bfloat16(), FP8)),
        "layernorm_quantize": (
            ops.layernorm_quantize,
            found.layernorm_quantize,
            (x, x, torch.ones(32), torch.zeros(32), 1e-5, INT8),
        ),
        "quantized_linear": (
            ops.quantized_linear,
            found.quantized_linear,
            (*rows, torch.ones(12), torch.randn(6, 12), "gelu", torch.bfloat16, None),
        ),
        "quantized_linear to 8 bit": (
            ops.quantized_linear,
            found.quantized_linear,
            (*rows, None, None, "relu", torch.float32, torch.ones(1)),
        ),
        "quantized_linear in tiles": (ops.quantized_linear, found.quantized_linear, packed),
        "dynamic_linear": (
            ops.dynamic_linear,
            found.dynamic_linear,
            (torch.randn(2, 3, 32, requires_grad=True), values, w_scale, None, None, torch.ones(12)),
        ),
        "attention_varlen": (
            ops.attention_varlen,
            found.attention_varlen,
            (torch.randn(7, 96), lengths, 4, 2, 0.25, None, INT8),
        ),
        "attention_varlen to 8 bit": (
            ops.attention_varlen,
            found.attention_varlen,
            (torch.randn(7, 96), lengths, 4, 2, 0.25, torch.ones(1), FP8),
        ),
        "attention_varlen by distance": (
            ops.attention_varlen,
            found.attention_varlen,
            (torch.randn(7, 96), lengths, 4, 2, 0.25, None, INT8, torch.randn(2, 5), positions, 2),
        ),
        "attention_varlen in a window": (
            ops.attention_varlen,
            found.attention_varlen,
            (torch.randn(6, 96).bfloat16(), lengths, 4, 2, 0.25, None, INT8, None, None, 1),
        ),
        "attention_relative": (
            ops.attention_relative,
            found.attention_relative,
            (torch.randn(7, 96), *near, torch.randn(2, 7, 3), torch.randn(2, 7, 3), positions, None, INT8),
        ),
        "attention_relative of queries to 8 bit": (
            ops.attention_relative,
            found.attention_relative,
            (torch.randn(6, 96).bfloat16(), *near, torch.randn(2, 6, 3), None, None, torch.ones(1), FP8),
        ),
        "layernorm_quantize without bias": (
            ops.layernorm_quantize,
            found.layernorm_quantize,
            (x, None, torch.ones(32), None, 1e-5, INT8),
        ),
        "gate_quantize": (
            ops.gate_quantize,
            found.gate_quantize,
            (torch.randn(5, 24).bfloat16(), "gelu", INT8, None),
        ),
        "gate_quantize with a scale": (
            ops.gate_quantize,
            found.gate_quantize,
            (torch.randn(5, 24), "relu", FP8, torch.full((1,), 0.01)),
        ),
        "rotate_rows": (
            ops.rotate_rows,
            found.rotate_rows,
            (torch.randn(7, 96).bfloat16(), torch.randn(7, 16), torch.randn(7, 16), 2),
        ),
        "gather_rows": (
            ops.gather_rows,
            found.gather_rows,
            (torch.randn(3, 4, requires_grad=True), torch.tensor([2, -1, 0, 2], dtype=torch.int32)),
        ),
    }


every_operator = pytest.mark.parametrize("name", calls())


@every_operator
def test_torch_finds_nothing_to_object_to(name):
    _, operator, arguments = calls()[name]

    torch.library.opcheck(operator.default, arguments)


@every_operator
def test_a_compiled_and_an_exported_operator_give_the_same(name):
    function, _, arguments = calls()[name]
    tensors = [a.detach() if isinstance(a, torch.Tensor) else a for a in arguments]
    places = [at for at, argument in enumerate(tensors) if isinstance(argument, torch.Tensor)]

    class Module(torch.nn.Module):
        def forward(self, *given):
            merged = list(tensors)
            for at, argument in zip(places, given, strict=True):
                merged[at] = argument
            return function(*merged)

    given = tuple(tensors[at] for at in places)
    torch.compiler.reset()  # one function may be compiled only so many times
    expected = function(*tensors)
    compiled = torch.compile(Module(), fullgraph=True, backend="aot_eager")(*given)
    exported = torch.export.export(Module(), given).module()(*given)

    for got in (compiled, exported):
        _assert_same(got, expected)


@every_operator
def test_a_cpu_computes_what_the_reference_says(name):
    function, _, arguments = calls()[name]

    with torch.no_grad():
        got = function(*arguments)
        expected = getattr(reference, name.split()[0])(*arguments)

    # One step of the type, where fp32 and fp64 sums disagree about a tie.
    _assert_same(got, expected, eight_bits=1.0, sixteen_bits=1e-2, floats=1e-5)


def _assert_same(got, expected, eight_bits=0.0, sixteen_bits=0.0, floats=2e-6):
    got, expected = (pair if isinstance(pair, tuple) else (pair,) for pair in (got, expected))
    for a, b in zip(got, expected, strict=True):
        assert a.dtype == b.dtype
        loose = {1: eight_bits, 2: sixteen_bits}.get(a.element_size(), floats)
        torch.testing.assert_close(a.float(), b.float(), rtol=loose if a.dtype != INT8 else 0, atol=loose)


@both_types
def test_gradient_is_that_of_the_dequantized_weight(dtype):
    values, w_scale = weight(dtype=dtype)
    x = torch.randn(2, 3, 32, requires_grad=True)
    gradient = torch.randn(2, 3, 12)

    ops.dynamic_linear(x, values, w_scale, bias=torch.ones(12)).backward(gradient)

    assert x.grad is not None
    torch.testing.assert_close(x.grad, gradient @ (values.float() * w_scale.unsqueeze(1)))


def test_gradient_through_tiles():
    x = torch.randn(4, 64, requires_grad=True)

    ops.dynamic_linear(x, *tiles()).sum().backward()

    expected = torch.cat([torch.arange(32.0, 64.0), torch.arange(32.0)]).expand(4, 64)
    torch.testing.assert_close(x.grad, expected)


def test_gradient_of_gathered_rows_adds_up():
    x = torch.randn(3, 4, dtype=torch.float64, requires_grad=True)
    index = torch.tensor([2, -1, 0, 2], dtype=torch.int32)

    assert torch.autograd.gradcheck(lambda rows: ops.gather_rows(rows, index), x)


@both_types
def test_rounding_on_a_cpu_is_that_of_the_kernel(dtype):
    x, (values, w_scale) = torch.randn(5, 32), weight(dtype=dtype)
    x[1], x[2, 3] = 0, torch.inf

    y = ops.dynamic_linear(x, values, w_scale)

    q, scale = reference.quantize_rows(x, dtype)
    expected = (q.double() * scale.unsqueeze(1)) @ (values.double() * w_scale.unsqueeze(1)).T
    assert y[2].isnan().all()
    torch.testing.assert_close(y[[0, 1, 3, 4]], expected[[0, 1, 3, 4]].float(), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("change", ["values", "w_scale", "data"])
def test_a_changed_weight_is_unpacked_anew(change):
    values, w_scale = weight()
    x = torch.randn(2, 32)
    before = ops.dynamic_linear(x, values, w_scale)

    if change == "values":
        values.neg_()
    elif change == "w_scale":
        w_scale.neg_()
    else:
        values.data = values.neg()

    torch.testing.assert_close(ops.dynamic_linear(x, values, w_scale), -before)


def test_an_unpacked_weight_goes_with_the_packed_one():
    gc.collect()  # of other tests
    values, w_scale = weight()
    known = len(weight_cache._weights)
    ops.dynamic_linear(torch.randn(2, 32), values, w_scale)
    ops.dynamic_linear(torch.randn(2, 32), values, w_scale)
    assert len(weight_cache._weights) == known + 1

    del values
    gc.collect()

    assert len(weight_cache._weights) == known


def test_weights_made_in_inference_mode_work():
    with torch.inference_mode():
        values, w_scale = weight()
        inside = ops.dynamic_linear(torch.ones(1, 32), values, w_scale)

    torch.testing.assert_close(ops.dynamic_linear(torch.ones(1, 32), values, w_scale), inside)


def test_a_long_sum_stays_within_the_documented_bound():
    q, w = torch.full((1, 4096), 127, dtype=INT8), torch.full((1, 4096), 127, dtype=INT8)
    w[0, ::2] = -126

    y = ops.quantized_linear(q, torch.ones(1), w, torch.ones(1))

    exact = (q.long() @ w.long().T).item()
    assert abs(y.item() - exact) <= 4096 * 2**-24 * 4096 * 127 * 127


@pytest.mark.parametrize("length", [1, 3, 8])
def test_attention_is_that_of_torch(length):
    qkv = torch.randn(4 * length, 96)
    lengths = torch.arange(5, dtype=torch.int32) * length

    y = ops.attention_varlen(qkv, lengths, length, 2, 0.25)

    q, k, v = qkv.reshape(4, length, 3, 2, 16).permute(2, 0, 3, 1, 4)
    expected = F.scaled_dot_product_attention(q, k, v, scale=0.25).transpose(1, 2).reshape(4 * length, 32)
    torch.testing.assert_close(y, expected)


def test_padding_there_and_back():
    mask = torch.tensor([[False, True, True], [True, False, False]])
    hidden = torch.randn(2, 3, 5, requires_grad=True)

    sequences = ops.find_sequences(mask, 2, 3, mask.device)
    ops.pad(ops.unpad(hidden, sequences), sequences).sum().backward()

    assert sequences.place is not None
    assert sequences.place.tolist() == [-1, 0, 1, 2, -1, -1]
    assert hidden.grad is not None
    assert torch.equal(hidden.grad, mask.unsqueeze(-1).float().expand(2, 3, 5))


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: ops.quantize_rows(torch.ones(1, 1), torch.int16), "torch.int16"),
        (lambda: ops.dynamic_linear(torch.ones(1, 8), *weight()), "8 columns"),
        (lambda: ops.quantized_linear(torch.ones(1, 48).to(INT8), torch.ones(1), *tiles()), "48 columns"),
        (lambda: ops.dynamic_linear(torch.ones(1, 32), *weight(), offsets=torch.zeros(2).int()), "offsets"),
        (
            lambda: ops.quantized_linear(torch.ones(1, 32).to(INT8), torch.ones(1), *weight(), activation="silu"),  # type: ignore
            "'silu'",
        ),
        (lambda: ops.attention_varlen(torch.ones(1, 32), torch.tensor([0, 1]).int(), 1, 3, 1.0), "3 heads"),
        (lambda: attend(bias=torch.zeros(2, 5)), r"\(2, 5\); for 1 heads it must be \(1, 2 \* reach \+ 1\)"),
        (lambda: attend(bias=torch.zeros(1, 4)), r"\(1, 4\)"),
        (lambda: attend(window=-1), "window: -1"),
        (lambda: relate(columns=torch.zeros(4).int()), r"columns: shape \(4,\)"),
        (lambda: relate(by_key=torch.ones(1, 2, 3)), r"shapes \[\(1, 1, 3\), \(1, 2, 3\)\] for 1 heads and 1 tokens"),
        (lambda: ops.gate_quantize(torch.ones(1, 3), "gelu", INT8), "3 columns"),
        (lambda: ops.rotate_rows(torch.ones(2, 48), torch.ones(2, 8), torch.ones(2, 8), 1), r"shapes \(2, 8\)"),
    ],
)
def test_what_does_not_fit_is_refused(call, words):
    with pytest.raises(UserError, match=words):
        call()


@pytest.mark.parametrize("inference", [False, True])
def test_a_scale_that_is_new_or_changed_is_what_is_multiplied_with(inference):
    x = torch.randn(4, 32)
    values, w_scale = weight()
    with torch.inference_mode(inference):
        values, w_scale = values.clone(), w_scale.clone()
        for factor in (1.0, 2.0, 4.0):  # each scale is gone before the next is made, perhaps in the same place
            found = ops.dynamic_linear(x, values, w_scale * factor)
            torch.testing.assert_close(found, reference.dynamic_linear(x, values, w_scale * factor, None, None, None))
        before = ops.dynamic_linear(x, values, w_scale).clone()
        w_scale.mul_(3)
        torch.testing.assert_close(ops.dynamic_linear(x, values, w_scale), 3 * before)


def test_rows_of_no_token_are_rotated_to_none():
    nothing = torch.zeros(0, 16)
    assert ops.rotate_rows(torch.zeros(0, 96), nothing, nothing, 2).shape == (0, 96)
