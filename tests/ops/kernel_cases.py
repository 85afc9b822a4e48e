"""Kernels against int64 and fp64 oracles: run by test_interpreted.py on a CPU, and by test_gpu.py on a GPU."""

from itertools import pairwise

import pytest
import torch

from lit_compress import ops
from lit_compress.ops import kernels_available, launch
from lit_compress.ops.kernels.quantized_linear import quantized_linear as kernel
from lit_compress.ops.linear import LinearArguments

DEVICE = "cpu" if kernels_available.INTERPRETED else "cuda"
INT8, FP8 = torch.int8, torch.float8_e4m3fn
LARGEST = {INT8: 127.0, FP8: 448.0}
both_types = pytest.mark.parametrize("dtype", [INT8, FP8], ids=["int8", "fp8"])

# The interpreter's arithmetic is NumPy's, which remarks on NaN and overflow.
pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning")


@pytest.fixture(autouse=True)
def _poisoned_outputs(monkeypatch):
    """Whatever a kernel does not write is NaN, or a number that no oracle gives."""
    empty = torch.empty

    def poisoned(*size, **settings):
        out = empty(*size, **settings)
        out.view(torch.uint8).fill_(0x7F)
        return out

    monkeypatch.setattr(torch, "empty", poisoned)


def draw(*shape, dtype=torch.float32):
    return torch.randn(*shape, device=DEVICE).to(dtype)


def draw_eight(*shape, dtype=INT8):
    if dtype == INT8:
        return torch.randint(-127, 128, shape, device=DEVICE).to(INT8)
    return (torch.randn(*shape, device=DEVICE) * 60).clamp(-448, 448).to(FP8)


def assert_on_grid(q, exact, dtype):
    """Eight bits are the nearest number, or its neighbour when fp32 and fp64 disagree about a tie."""
    if dtype == INT8:
        difference = (q.double() - exact.clamp(-127, 127).round()).abs()
        assert difference.max() <= 1
        assert (difference == 0).double().mean() > 0.995
        assert (q != -128).all()
    else:
        exact = exact.clamp(-448, 448)
        # Half a step of three bits behind the leading one, and of the smallest steps near zero.
        assert ((q.double() - exact).abs() <= exact.abs() / 16 * 1.0001 + 2**-10).all()


@both_types
@pytest.mark.parametrize("shape", [(1, 1), (3, 7), (5, 1023), (17, 256), (2, 3072)])
@pytest.mark.parametrize("source", [torch.float32, torch.float16, torch.bfloat16], ids=["fp32", "fp16", "bf16"])
def test_rows(shape, source, dtype):
    x = draw(*shape, dtype=source)

    q, scale = ops.quantize_rows(x, dtype)

    exact = x.double().abs().amax(1) / LARGEST[dtype]
    torch.testing.assert_close(scale.double(), exact, rtol=1e-6, atol=0)
    assert_on_grid(q, x.double() / exact.unsqueeze(1), dtype)


@both_types
def test_rows_that_are_special(dtype):
    x = draw(7, 33)
    x[1], x[2, 5], x[3, 0], x[4, 32] = 0, torch.nan, torch.inf, -torch.inf
    x[5] = 3e38 * x[5].sign()
    x[6] *= 1e-42

    q, scale = ops.quantize_rows(x, dtype)

    assert scale.isnan().tolist() == [False, False, True, True, True, False, False]
    assert (q[1:5].float() == 0).all()
    assert scale[1] > 0
    assert (q[5].float().abs() == LARGEST[dtype]).all()
    assert_on_grid(q[0], x[0].double() / scale[0].double(), dtype)
    assert (q[6].float() * scale[6]).isfinite().all()


@both_types
def test_rows_of_a_view(dtype):
    x = draw(12, 10)

    for view in (x.T, x[:, ::2], x[3:4].expand(5, 10)):
        for got, expected in zip(
            ops.quantize_rows(view, dtype), ops.quantize_rows(view.contiguous(), dtype), strict=True
        ):
            torch.testing.assert_close(got.float(), expected.float(), rtol=0, atol=0)


def test_no_rows():
    q, scale = ops.quantize_rows(draw(0, 8), INT8)
    y = ops.quantized_linear(q, scale, draw_eight(4, 8), draw(4))

    assert q.shape == (0, 8)
    assert scale.shape == (0,)
    assert y.shape == (0, 4)
    assert ops.layernorm_quantize(draw(0, 8), None, draw(8), draw(8), 1e-5, INT8)[0].shape == (0, 8)
    assert ops.attention_varlen(draw(0, 48), torch.zeros(1, dtype=torch.int32, device=DEVICE), 0, 1, 1).shape == (0, 16)
    with pytest.raises(Exception, match="65536"):
        ops.quantize_rows(draw(1, 65537), INT8)


@both_types
@pytest.mark.parametrize("shape", [(1, 2), (3, 7), (5, 768), (2, 1023)])
@pytest.mark.parametrize("residual", [True, False])
def test_layernorm(shape, residual, dtype):
    x, other, weight = draw(*shape), draw(*shape) * 3 if residual else None, draw(shape[1])
    bias = draw(shape[1]) if residual else None

    y, q, scale = ops.layernorm_quantize(x, other, weight, bias, 1e-5, dtype)

    total = x.double() if other is None else x.double() + other.double()
    exact = torch.nn.functional.layer_norm(
        total, shape[1:], weight.double(), None if bias is None else bias.double(), 1e-5
    )
    torch.testing.assert_close(y.double(), exact, rtol=1e-5, atol=1e-5)
    assert_on_grid(q, exact / scale.double().unsqueeze(1), dtype)


def test_layernorm_of_a_constant_a_far_and_a_broken_row():
    x = draw(4, 64, dtype=torch.float32)
    x[0], x[1], x[2, 3] = 5, x[1] + 1e4, torch.nan
    ones = torch.ones(64, device=DEVICE)

    y, q, scale = ops.layernorm_quantize(x.half(), None, ones, ones, 1e-5, INT8)

    exact = torch.nn.functional.layer_norm(x.half().double(), (64,), ones.double(), ones.double(), 1e-5)
    assert y.dtype == torch.float16
    assert scale.isnan().tolist() == [False, False, True, False]
    assert (q[2] == 0).all()
    torch.testing.assert_close(y[[0, 1, 3]].double(), exact[[0, 1, 3]], rtol=2e-3, atol=2e-3)


@pytest.mark.parametrize(
    ("rows", "outputs", "inputs"),
    [(1, 1, 1), (3, 7, 5), (1, 70, 130), (17, 33, 65), (33, 70, 257), (65, 129, 48), (64, 64, 256), (2, 5, 1100)],
)
def test_sums_are_exact(rows, outputs, inputs):
    q, w = draw_eight(rows, inputs), draw_eight(outputs, inputs)
    q[0], w[0] = 127, -127

    y = ops.quantized_linear(q, torch.ones(rows, device=DEVICE), w, torch.ones(outputs, device=DEVICE))

    assert torch.equal(y.cpu(), (q.cpu().long() @ w.cpu().long().T).float())


@pytest.mark.parametrize(
    "shape",
    [
        launch.Product(16, 64, 32, 4, 2, swap=True),
        launch.Product(32, 64, 64, 4, 3, swap=True, group=1),
        launch.Product(16, 256, 32, 4, 2),
        launch.Product(32, 32, 128, 4, 2, group=2),
    ],
    ids=str,
)
def test_every_shape_of_tile_gives_the_same(shape):
    q, w = draw_eight(37, 200), draw_eight(301, 200)
    scale, w_scale, bias, residual = draw(37).abs(), draw(301).abs(), draw(301), draw(37, 301)

    given = LinearArguments(q, scale, w, w_scale, None, None, bias, residual, "relu", torch.float32, None)
    y = kernel(given, launch=shape)

    total = (q.double() @ w.double().T) * scale.double().unsqueeze(1) * w_scale.double() + bias.double()
    torch.testing.assert_close(y.double(), total.relu() + residual.double(), rtol=1e-5, atol=1e-3)


def in_tiles(weight, used, rows, width, per_chunk):
    """Tiles of a weight of which the blocks ``used[tile]`` are stored; written apart from the library's packing."""
    values, columns, offsets = [], [], [0]
    for tile, blocks in enumerate(used):
        blocks = list(blocks)
        parts = [weight[tile * rows : (tile + 1) * rows, at * width : (at + 1) * width] for at in blocks]
        while len(parts) % per_chunk:
            parts.append(torch.zeros(rows, width, device=DEVICE).to(weight.dtype))
            blocks.append(0)
        for first in range(0, len(parts), per_chunk):
            values.append(torch.cat(parts[first : first + per_chunk], 1))
            columns.append(blocks[first : first + per_chunk])
        offsets.append(len(values))
    values = torch.stack(values) if values else weight.new_zeros(0, rows, width * per_chunk)
    return (
        values,
        torch.tensor([*columns, [0] * per_chunk], dtype=torch.int32, device=DEVICE),
        torch.tensor(offsets, dtype=torch.int32, device=DEVICE),
    )


@pytest.mark.parametrize(("height", "width", "per_chunk"), [(128, 32, 4), (64, 64, 1)], ids=["tall", "blocks"])
@pytest.mark.parametrize("used", ["some", "none", "all", "one tile"])
@pytest.mark.parametrize("rows", [1, 50])
def test_weights_in_tiles(height, width, per_chunk, used, rows):
    outputs, inputs = 2 * height - 3, 192
    blocks = inputs // width
    some = [sorted(torch.randperm(blocks)[: blocks // 2 + 1].tolist()) for _ in range(2)]
    kept = {"some": some, "none": [[], []], "all": [range(blocks)] * 2, "one tile": [[], range(blocks)]}[used]
    weight = draw_eight(2 * height, inputs)
    weight[outputs:] = 0
    dense = torch.zeros_like(weight)
    for tile, columns in enumerate(kept):
        for at in columns:
            place = (slice(tile * height, (tile + 1) * height), slice(at * width, (at + 1) * width))
            dense[place] = weight[place]
    q, ones = draw_eight(rows, inputs), torch.ones(rows, device=DEVICE)

    y = ops.quantized_linear(
        q, ones, *_values_and_scale(weight, kept, height, width, per_chunk, outputs), bias=draw(outputs) * 0
    )

    assert torch.equal(y.cpu(), (q.cpu().long() @ dense[:outputs].cpu().long().T).float())


def _values_and_scale(weight, kept, height, width, per_chunk, outputs):
    values, columns, offsets = in_tiles(weight, kept, height, width, per_chunk)
    return values, torch.ones(outputs, device=DEVICE), columns, offsets


def test_fp8_products():
    q, w = draw_eight(19, 130, dtype=FP8), draw_eight(40, 130, dtype=FP8)
    scale, w_scale = draw(19).abs(), draw(40).abs()

    y = ops.quantized_linear(q, scale, w, w_scale)

    exact = (q.double() @ w.double().T) * scale.double().unsqueeze(1) * w_scale.double()
    # Tensor cores of compute capability 9.0 keep fewer bits of fp8 sums than fp32 has.
    tolerance = 1e-5 if DEVICE == "cpu" else 1e-3
    assert (y.double() - exact).norm() <= tolerance * exact.norm()


ACTIVATIONS = {
    "none": lambda x: x,
    "relu": torch.relu,
    "gelu": torch.nn.functional.gelu,
    "gelu_tanh": lambda x: torch.nn.functional.gelu(x, approximate="tanh"),
}


def lost_by_tensor_cores(q, w):
    """How far a product of fp8 numbers may be off, ``(rows, outputs)``, in the unit of the product itself.

    Hopper's fp8 tensor cores align the numbers that they add to the largest and keep about 14 bits of it (DeepSeek-V3,
    arXiv 2412.19437, section 3.3.2; an H100 was off by up to 6e-5 here, where fp32 sums are by 1e-6): each of the
    summands loses less than the last of those bits.
    """
    largest = torch.stack([(row * w.double()).abs().amax(1) for row in q.double()])
    return q.shape[1] * 2.0**-13 * largest


def test_what_fourteen_bits_lose_is_within_what_is_allowed():
    q, w = (draw_eight(rows, 32, dtype=FP8).double().cpu() for rows in (64, 64))
    products = q[:, None] * w
    unit = torch.exp2(products.abs().amax(2, keepdim=True).log2().floor() - 13)
    error = ((products / unit).trunc() * unit).sum(2) - products.sum(2)
    allowed = lost_by_tensor_cores(q, w)
    assert (error.abs() <= allowed).all()
    # And not by much: what is allowed is not a licence for faults, a scale that is off by a hundredth for one.
    assert error.abs().max() > 0.1 * allowed.mean()
    assert ((0.01 * products.sum(2)).abs() > allowed).double().mean() > 0.5


@both_types
@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("out", [torch.float32, torch.float16, "8 bit"], ids=str)
@pytest.mark.parametrize("residual", [True, False])
@pytest.mark.parametrize("per_row", [True, False])
def test_what_follows_the_product(dtype, activation, out, residual, per_row):
    q, w = draw_eight(9, 32, dtype=dtype), draw_eight(21, 32, dtype=dtype)
    size = LARGEST[dtype] ** 2
    scale, w_scale = (draw(9 if per_row else 1).abs() + 0.1) / size, draw(21).abs() + 0.1
    bias, other = draw(21), draw(9, 21) if residual else None
    step = None if out != "8 bit" else torch.tensor([0.02 if dtype == INT8 else 0.005], device=DEVICE)

    y = ops.quantized_linear(
        q, scale, w, w_scale, None, None, bias, other, activation, torch.float32 if out == "8 bit" else out, step
    )

    exact = (q.double() @ w.double().T) * scale.double().unsqueeze(1) * w_scale.double() + bias.double()
    exact = ACTIVATIONS[activation](exact) + (0 if other is None else other.double())
    if step is not None:
        assert y.dtype == dtype
        assert_on_grid(y, exact / step.double(), dtype)
    else:
        assert y.dtype == out
        tolerance = 2e-3 if out == torch.float16 else 1e-5
        allowed = tolerance + tolerance * exact.abs()
        if dtype == FP8 and DEVICE == "cuda" and torch.cuda.get_device_capability() == (9, 0):
            steepest = 1.13  # slope of GELU; that of the others is 1
            allowed += steepest * lost_by_tensor_cores(q, w) * scale.double().unsqueeze(1) * w_scale.double()
        assert ((y.double() - exact).abs() <= allowed).all()


@pytest.mark.parametrize("out", [torch.float16, torch.bfloat16], ids=["fp16", "bf16"])
def test_gelu_in_sixteen_bits_is_the_one_with_the_error_function(out):
    x = torch.linspace(-12, 12, 4001, device=DEVICE)
    q, w = torch.ones(4001, 16, dtype=INT8, device=DEVICE), torch.zeros(1, 16, dtype=INT8, device=DEVICE)
    w[0, 0] = 1

    y = ops.quantized_linear(q, x, w, torch.ones(1, device=DEVICE), activation="gelu", out_dtype=out)

    exact = torch.nn.functional.gelu(x.double()).unsqueeze(1)
    # The interpreter cuts bf16 off where a GPU rounds.
    rounding = (
        torch.finfo(out).eps / (2 if out == torch.float16 else 1) * exact.abs() + torch.finfo(out).smallest_normal
    )
    assert ((y.double() - exact).abs() <= 2.6e-5 + 1.001 * rounding).all()


@both_types
def test_a_broken_row_stays_alone(dtype):
    q, w = draw_eight(5, 64, dtype=dtype), draw_eight(10, 64, dtype=dtype)
    scale, w_scale = torch.full((5,), 0.01, device=DEVICE), torch.full((10,), 0.01, device=DEVICE)
    whole = ops.quantized_linear(q, scale, w, w_scale)
    scale[3] = torch.nan
    q[3] = 0

    y = ops.quantized_linear(q, scale, w, w_scale, activation="relu")
    eight = ops.quantized_linear(q, scale, w, w_scale, out_scale=torch.tensor([1e-4], device=DEVICE))

    assert y[3].isnan().all()
    torch.testing.assert_close(y[[0, 1, 2, 4]], whole[[0, 1, 2, 4]].relu(), rtol=0, atol=0)
    assert (eight[3].float() == 0).all()
    # The step is far too small for these numbers: they saturate.
    large = whole[0].abs() > 0.1
    assert large.any()
    assert (eight[0].float().abs()[large] == LARGEST[dtype]).all()


def test_thousands_of_rows():
    q, w = draw_eight(4096, 16), draw_eight(8, 16)

    y = ops.quantized_linear(q, torch.ones(4096, device=DEVICE), w, torch.ones(8, device=DEVICE))

    assert torch.equal(y.cpu(), (q.cpu().long() @ w.cpu().long().T).float())


def test_operands_that_are_views():
    q, w, residual = draw_eight(40, 9).T, draw_eight(13, 80)[:, ::2], draw(13, 9).T
    ones = torch.ones(26, device=DEVICE)[::2]

    y = ops.quantized_linear(q, ones[:9], w, ones, residual=residual)

    exact = q.double() @ w.double().T + residual.double()
    torch.testing.assert_close(y.double(), exact, rtol=1e-6, atol=1e-6)


@both_types
def test_from_floats_to_floats(dtype):
    x, w = draw(2, 3, 64), draw(20, 64)
    values, w_scale = ops.quantize_rows(w, dtype)

    y = ops.dynamic_linear(x, values, w_scale, bias=torch.ones(20, device=DEVICE))

    exact = x.double() @ w.double().T + 1
    error = (y.double() - exact).norm() / exact.norm()
    assert error < (0.02 if dtype == INT8 else 0.06)


@pytest.mark.parametrize("head_dim", [16, 24, 64, 128])
@pytest.mark.parametrize("source", [torch.float32, torch.float16], ids=["fp32", "fp16"])
def test_attention(head_dim, source):
    starts, heads = [0, 1, 1, 38, 45], 2
    qkv = draw(50, 3 * heads * head_dim, dtype=source)
    lengths = torch.tensor(starts, dtype=torch.int32, device=DEVICE)

    y = ops.attention_varlen(qkv, lengths, 37, heads, head_dim**-0.5)

    exact = oracle(qkv, starts, heads, head_dim**-0.5)
    tolerance = 1e-5 if source == torch.float32 else 2e-3
    torch.testing.assert_close(y.double(), exact, rtol=tolerance, atol=tolerance)
    assert (y[45:] == 0).all()


def oracle(qkv, starts, heads, scale, bias=None, positions=None, window=None):
    width = qkv.shape[1] // 3
    out = torch.zeros(qkv.shape[0], width, dtype=torch.float64, device=DEVICE)
    for start, end in pairwise(starts):
        for head in range(heads):
            at = [slice(part * width + head * width // heads, part * width + (head + 1) * width // heads)
                  for part in range(3)]  # fmt: skip
            q, k, v = (qkv[start:end, columns].double() for columns in at)
            score = q @ k.T * scale
            place = (torch.arange(start, end) if positions is None else positions[start:end].cpu()).tolist()
            for row, mine in enumerate(place):
                for column, its in enumerate(place):
                    if bias is not None:
                        middle = bias.shape[1] // 2
                        score[row, column] += bias[head, middle + max(-middle, min(middle, its - mine))]
                    if window is not None and abs(its - mine) > window:
                        score[row, column] = -torch.inf
            out[start:end, at[0]] = torch.softmax(score, 1) @ v
    return out


# The last: positions with gaps, as padding between tokens leaves them.
RELATIVE = {
    "bias": (9, None, False),
    "one bias for all distances": (0, None, False),
    "window": (None, 3, False),
    "window of one": (None, 1, False),
    "itself alone": (None, 0, False),
    "window longer than all": (None, 500, False),
    "bias, window and gaps": (40, 7, True),
}


@pytest.mark.parametrize("name", RELATIVE)
def test_attention_by_distance(name):
    reach, window, gaps = RELATIVE[name]
    starts, heads = [0, 1, 1, 75, 80], 2
    qkv, lengths = draw(83, 96), torch.tensor(starts, dtype=torch.int32, device=DEVICE)
    bias = None if reach is None else draw(heads, 2 * reach + 1) * 3
    positions = None
    if gaps:
        positions = torch.cat([torch.randperm(150)[: end - start].sort()[0] for start, end in pairwise([*starts, 83])])
        positions = positions.to(torch.int32).to(DEVICE)

    y = ops.attention_varlen(qkv, lengths, 74, heads, 0.25, bias=bias, positions=positions, window=window)

    exact = oracle(qkv, starts, heads, 0.25, bias, positions, window)
    torch.testing.assert_close(y.double(), exact, rtol=1e-5, atol=1e-5)
    assert (y[80:] == 0).all()


def test_attention_in_a_window_passes_blocks_without_a_key():
    # Blocks of 128 queries and 64 keys: the first block of keys holds none that the last queries see.
    qkv, lengths = draw(300, 48), torch.tensor([0, 300], dtype=torch.int32, device=DEVICE)

    y = ops.attention_varlen(qkv, lengths, 300, 1, 0.25, window=5)

    torch.testing.assert_close(y.double(), oracle(qkv, [0, 300], 1, 0.25, window=5), rtol=1e-5, atol=1e-5)


@both_types
def test_attention_longer_than_a_block_to_eight_bits(dtype):
    qkv, lengths = draw(150, 48), torch.tensor([0, 150], dtype=torch.int32, device=DEVICE)
    qkv[0, 0] = 90.0  # scores that overflow without the maximum taken off

    y = ops.attention_varlen(qkv, lengths, 150, 1, 0.25, torch.tensor([0.01], device=DEVICE), dtype)

    assert y.dtype == dtype
    assert_on_grid(y, oracle(qkv, [0, 150], 1, 0.25) / 0.01, dtype)


def test_attention_keeps_a_broken_sequence_to_itself():
    qkv, lengths = draw(30, 48), torch.tensor([0, 10, 20, 30], dtype=torch.int32, device=DEVICE)
    whole = ops.attention_varlen(qkv, lengths, 10, 1, 0.25)
    qkv[12] = torch.nan

    y = ops.attention_varlen(qkv, lengths, 10, 1, 0.25)

    assert y[10:20].isnan().all()
    assert torch.equal(y[:10], whole[:10])
    assert torch.equal(y[20:], whole[20:])
    assert (ops.attention_varlen(qkv, lengths, 10, 1, 0.25, torch.ones(1, device=DEVICE))[10:20] == 0).all()


def test_padding_there_and_back():
    mask = torch.tensor([[1, 1, 0, 0], [0, 0, 0, 0], [0, 1, 0, 1], [1, 1, 1, 1]], device=DEVICE)
    hidden = draw(4, 4, 1100)

    sequences = ops.find_sequences(mask, 4, 4, mask.device)
    rows = ops.unpad(hidden, sequences)

    assert sequences.starts.tolist() == [0, 2, 2, 4, 8]
    assert sequences.longest == 4
    assert torch.equal(rows, hidden[mask.bool()])
    assert torch.equal(ops.pad(rows, sequences), hidden * mask.unsqueeze(-1))
