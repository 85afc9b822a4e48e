"""Kernels that one family of encoders needs, against fp64 oracles; run where kernel_cases.py is."""

from itertools import pairwise

import pytest
import torch
from ops.kernel_cases import (
    ACTIVATIONS,
    DEVICE,
    LARGEST,
    _poisoned_outputs,  # noqa: F401
    assert_on_grid,
    both_types,
    draw,
)

from lit_compress import ops

# The interpreter's arithmetic is NumPy's, which remarks on NaN and overflow.
pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning")


@both_types
@pytest.mark.parametrize("static", [False, True], ids=["scales of rows", "one scale"])
@pytest.mark.parametrize("activation", ["relu", "gelu", "gelu_tanh"])
@pytest.mark.parametrize("columns", [1, 24, 1152])
def test_gated_rows(columns, activation, static, dtype):
    x = draw(4, 2 * columns)
    x[1, columns] = torch.nan
    scale = torch.tensor([0.02], device=DEVICE) if static else None

    q, scales = ops.gate_quantize(x, activation, dtype, scale)

    numbers, gates = x.double().chunk(2, 1)
    exact = ACTIVATIONS[activation](numbers) * gates
    whole = [0, 2, 3]
    steps = exact[whole].abs().amax(1) / LARGEST[dtype]
    expected = torch.full_like(steps, 0.02) if static else steps
    torch.testing.assert_close(scales[whole].double(), expected, rtol=1e-5, atol=1e-30)
    assert_on_grid(q[whole], exact[whole] / scales[whole].double().unsqueeze(1), dtype)
    assert q[1, 0].float() == 0
    assert scales[1].isnan() != static


@pytest.mark.parametrize("source", [torch.float32, torch.float16], ids=["fp32", "fp16"])
@pytest.mark.parametrize(("heads", "head_dim"), [(1, 2), (3, 6), (2, 64), (12, 64)])
def test_rotated_rows(heads, head_dim, source):
    qkv, angle = draw(5, 3 * heads * head_dim, dtype=source), draw(5, head_dim)
    cos, sin = angle.cos().to(source), angle.sin().to(source)

    y = ops.rotate_rows(qkv, cos, sin, heads)

    expected = qkv.double().reshape(5, 3, heads, head_dim).clone()
    for d in range(head_dim):
        other = d + head_dim // 2 if d < head_dim // 2 else d - head_dim // 2
        sign = -1 if d < head_dim // 2 else 1
        turned = qkv.double().reshape(5, 3, heads, head_dim)[:, :2]
        expected[:, :2, :, d] = (
            turned[..., d] * cos.double()[:, d, None, None] + sign * turned[..., other] * sin.double()[:, d, None, None]
        )
    tolerance = 1e-6 if source == torch.float32 else 2e-3
    torch.testing.assert_close(y.double(), expected.reshape(qkv.shape), rtol=tolerance, atol=tolerance)
    assert torch.equal(y[:, 2 * heads * head_dim :], qkv[:, 2 * heads * head_dim :])


def test_rotation_leaves_broken_rows_alone():
    qkv, angles = draw(3, 48), draw(3, 16)
    whole = ops.rotate_rows(qkv, angles.cos(), angles.sin(), 1)
    qkv[1, :16] = torch.nan

    y = ops.rotate_rows(qkv, angles.cos(), angles.sin(), 1)

    assert y[1, :16].isnan().all()
    assert torch.equal(y[[0, 2]], whole[[0, 2]])
    assert torch.equal(y[1, 16:], whole[1, 16:])


def relative(tokens, heads, reach, width, dtype=torch.float32):
    """Columns of distances, as a table of buckets has them, and both tables."""
    columns = torch.randint(0, width, (2 * reach + 1,), device=DEVICE).to(torch.int32)
    return columns, draw(heads, tokens, width, dtype=dtype) * 2, draw(heads, tokens, width, dtype=dtype) * 2


def disentangled(qkv, starts, heads, scale, columns, by_query, by_key, positions=None):
    width = qkv.shape[1] // 3
    out = torch.zeros(qkv.shape[0], width, dtype=torch.float64, device=DEVICE)
    reach = len(columns) // 2
    for start, end in pairwise(starts):
        place = (torch.arange(start, end) if positions is None else positions[start:end].cpu()).tolist()
        for head in range(heads):
            at = [slice(part * width + head * width // heads, part * width + (head + 1) * width // heads)
                  for part in range(3)]  # fmt: skip
            q, k, v = (qkv[start:end, part].double() for part in at)
            score = q @ k.T
            for m, mine in enumerate(place):
                for n, its in enumerate(place):
                    column = columns[max(-reach, min(reach, its - mine)) + reach]
                    score[m, n] += 0 if by_query is None else by_query[head, start + m, column]
                    score[m, n] += 0 if by_key is None else by_key[head, start + n, column]
            out[start:end, at[0]] = torch.softmax(score * scale, 1) @ v
    return out


@pytest.mark.parametrize("gaps", [False, True], ids=["rows are positions", "gaps"])
@pytest.mark.parametrize("tables", ["both", "queries", "keys"])
def test_disentangled_attention(tables, gaps):
    starts, heads = [0, 1, 1, 75, 80], 2
    qkv, lengths = draw(83, 96), torch.tensor(starts, dtype=torch.int32, device=DEVICE)
    columns, by_query, by_key = relative(83, heads, 20, 7)
    by_query, by_key = None if tables == "keys" else by_query, None if tables == "queries" else by_key
    positions = None
    if gaps:
        positions = torch.cat([torch.randperm(150)[: end - start].sort()[0] for start, end in pairwise([*starts, 83])])
        positions = positions.to(torch.int32).to(DEVICE)

    y = ops.attention_relative(qkv, lengths, 74, heads, 0.25, columns, by_query, by_key, positions)

    exact = disentangled(qkv, starts, heads, 0.25, columns, by_query, by_key, positions)
    torch.testing.assert_close(y.double(), exact, rtol=1e-5, atol=1e-5)
    assert (y[80:] == 0).all()


@both_types
def test_disentangled_attention_longer_than_a_block_to_eight_bits(dtype):
    qkv, lengths = draw(150, 48, dtype=torch.float16), torch.tensor([0, 150], dtype=torch.int32, device=DEVICE)
    tables = relative(150, 1, 100, 9, torch.float16)

    y = ops.attention_relative(
        qkv, lengths, 150, 1, 0.2, *tables, out_scale=torch.tensor([0.02], device=DEVICE), dtype=dtype
    )

    exact = disentangled(qkv, [0, 150], 1, 0.2, *tables) / 0.02
    assert y.dtype == dtype
    # Probabilities are multiplied in 16 bit.
    assert (y.double() - exact).abs().max() < (1.2 if dtype == torch.int8 else 0.07 * exact.abs().max())


def test_disentangled_attention_keeps_a_broken_sequence_to_itself():
    qkv, lengths = draw(30, 48), torch.tensor([0, 10, 20, 30], dtype=torch.int32, device=DEVICE)
    columns, by_query, by_key = relative(30, 1, 5, 4)
    whole = ops.attention_relative(qkv, lengths, 10, 1, 0.25, columns, by_query, by_key)
    for table in (by_query, by_key):
        table[0, 12] = torch.nan

    y = ops.attention_relative(qkv, lengths, 10, 1, 0.25, columns, by_query, by_key)

    assert y[10:20].isnan().all()
    assert torch.equal(y[:10], whole[:10])
    assert torch.equal(y[20:], whole[20:])
