import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lit_compress.storage.bitmap import pack_bitmap, unpack_bitmap
from lit_compress.storage.tiles import pack_tiles, unpack_tiles
from lit_compress.storage.two_four import pack_two_four, unpack_two_four

dtypes = st.sampled_from([torch.int8, torch.float8_e4m3fn])
densities = st.sampled_from([0.0, 0.1, 0.5, 0.9, 1.0])
layouts = st.sampled_from([(128, 32, 4), (64, 64, 1), (4, 2, 4), (3, 5, 1), (1, 1, 1), (2, 3, 2)])


def numbers(shape, dtype, seed=0):
    """Any 8-bit number but those that no packed weight holds, -128 and NaN."""
    generator = torch.Generator().manual_seed(seed)
    if dtype == torch.int8:
        return torch.randint(-127, 128, shape, generator=generator).to(torch.int8)
    raw = torch.randint(0, 127, shape, generator=generator) | torch.randint(0, 2, shape, generator=generator) << 7
    return raw.to(torch.uint8).view(torch.float8_e4m3fn)


def masked(weight, mask):
    return torch.where(mask, weight.view(torch.uint8), 0).view(weight.dtype)


def same(one, other):
    """Equal bit for bit, except that -0 counts as 0."""
    assert (one.dtype, one.shape, one.device) == (other.dtype, other.shape, other.device)
    if one.dtype == torch.int8:
        return torch.equal(one, other)
    # One zero of each sign is the only pair of equal numbers with different bits.
    return torch.equal(one.float(), other.float())


def block_sparse(shape, dtype, rows, width, density, seed):
    """A weight with whole blocks of zeros, and single zeros inside the others; some rows of tiles are empty."""
    generator = torch.Generator().manual_seed(seed)
    kept = torch.rand(-(-shape[0] // rows), shape[1] // width, generator=generator) < density
    kept &= torch.rand(len(kept), 1, generator=generator) < 0.8
    mask = kept.repeat_interleave(rows, 0)[: shape[0]].repeat_interleave(width, 1)
    return masked(numbers(shape, dtype, seed), mask)


@given(layouts, st.integers(1, 300), st.integers(1, 4), dtypes, densities, st.integers(0, 1000))
def test_tiles_are_an_exact_inverse(layout, out_features, across, dtype, density, seed):
    rows, width, per_chunk = layout
    weight = block_sparse((out_features, across * width), dtype, rows, width, density, seed)
    tiles = pack_tiles(weight, rows, width, per_chunk)
    assert same(unpack_tiles(tiles, tuple(weight.shape)), weight)


@given(layouts, st.integers(1, 40), st.integers(1, 9), densities, st.integers(0, 1000))
def test_tiles_hold_what_they_say(layout, out_features, across, density, seed):
    rows, width, per_chunk = layout
    weight = block_sparse((out_features, across * width), torch.int8, rows, width, density, seed)
    tiles = pack_tiles(weight, rows, width, per_chunk)
    padded = torch.nn.functional.pad(weight, (0, 0, 0, -out_features % rows))
    used = padded.reshape(-1, rows, across, width).ne(0).any(dim=3).any(dim=1)
    chunks = int(tiles.offsets[-1])
    assert tiles.values.shape == (chunks, rows, per_chunk * width)
    assert tiles.columns.shape == (chunks + 1, per_chunk)
    assert tiles.values.is_contiguous()
    assert {tiles.columns.dtype, tiles.offsets.dtype} == {torch.int32}
    assert tiles.columns[-1].tolist() == [0] * per_chunk
    assert (tiles.offsets.diff() * per_chunk).tolist() == [-(-int(n) // per_chunk) * per_chunk for n in used.sum(1)]
    for tile, columns in enumerate(used):
        expected = columns.nonzero().flatten().tolist()
        found = tiles.columns[tiles.offsets[tile] : tiles.offsets[tile + 1]].flatten().tolist()
        assert found == expected + [0] * (len(found) - len(expected))


def multiplied(tiles, x, out_features):
    """What a kernel does: gather columns of the input by the index, multiply, add up chunk by chunk."""
    rows, per_chunk = tiles.values.shape[1], tiles.columns.shape[1]
    width = tiles.values.shape[2] // per_chunk
    parts = []
    for first, last in zip(tiles.offsets[:-1], tiles.offsets[1:], strict=True):
        total = torch.zeros(len(x), rows)
        for chunk in range(first, last):
            columns = (tiles.columns[chunk].unsqueeze(1) * width + torch.arange(width)).flatten()
            total += x[:, columns] @ tiles.values[chunk].float().t()
        parts.append(total)
    return torch.cat(parts, dim=1)[:, :out_features]


@pytest.mark.parametrize(("rows", "width"), [(128, 32), (64, 64)])
def test_tiles_multiply_like_the_dense_weight(rows, width):
    weight = block_sparse((200, 256), torch.int8, rows, width, 0.5, seed=3)
    x = torch.randint(-127, 128, (5, 256)).float()
    assert torch.equal(multiplied(pack_tiles(weight, rows, width), x, 200), x @ weight.float().t())


@pytest.mark.parametrize(("rows", "width", "per_chunk"), [(128, 32, 4), (64, 64, 1)])
@pytest.mark.parametrize("dtype", [torch.int8, torch.float8_e4m3fn])
def test_all_zero_and_all_dense(rows, width, per_chunk, dtype):
    zero = torch.zeros(rows * 2, width * per_chunk * 2, dtype=torch.int8).view(dtype)
    tiles = pack_tiles(zero, rows, width)
    assert tiles.values.shape == (0, rows, width * per_chunk)
    assert tiles.offsets.tolist() == [0, 0, 0]
    assert same(unpack_tiles(tiles, tuple(zero.shape)), zero)
    dense = torch.full(zero.shape, -3, dtype=torch.int8).view(dtype)
    tiles = pack_tiles(dense, rows, width)
    assert tiles.values.numel() == dense.numel()
    assert same(unpack_tiles(tiles, tuple(dense.shape)), dense)


def test_a_width_that_does_not_divide_the_inputs_is_refused():
    with pytest.raises(ValueError, match="blocks of 32 columns do not divide 50 inputs"):
        pack_tiles(torch.zeros(128, 50, dtype=torch.int8), 128, 32)


def test_a_negative_zero_is_zero():
    weight = torch.full((64, 64), -0.0).to(torch.float8_e4m3fn)
    assert len(pack_tiles(weight, 64, 64).values) == 0
    assert len(pack_bitmap(weight)[1]) == 0


def test_a_weight_in_any_memory_layout():
    weight = block_sparse((64, 128), torch.int8, 64, 64, 0.9, seed=1)
    transposed = weight.t().contiguous().t()
    for one, other in zip(pack_bitmap(weight), pack_bitmap(transposed), strict=True):
        assert torch.equal(one, other)
    assert torch.equal(pack_tiles(weight, 64, 64).values, pack_tiles(transposed, 64, 64).values)
    assert pack_tiles(transposed.view(torch.float8_e4m3fn), 64, 64).values.is_contiguous()


@given(st.integers(1, 30), st.integers(1, 40), dtypes, densities, st.integers(0, 1000))
def test_bitmaps_are_an_exact_inverse(rows, columns, dtype, density, seed):
    mask = torch.rand(rows, columns, generator=torch.Generator().manual_seed(seed)) < density
    weight = masked(numbers((rows, columns), dtype, seed), mask)
    bits, values, starts = pack_bitmap(weight)
    assert bits.shape == (rows, -(-columns // 8))
    assert starts[-1] == len(values) == int(weight.float().ne(0).sum())
    assert (bits.dtype, values.dtype, starts.dtype) == (torch.uint8, dtype, torch.int32)
    assert same(unpack_bitmap(bits, values, starts, columns), weight)


def test_bits_that_are_more_than_values_are_refused():
    bits, values, starts = pack_bitmap(torch.tensor([[0, 7, 0], [5, 0, 6]], dtype=torch.int8))
    for wrong in [(bits ^ 1, values, starts), (bits, values[:-1], starts), (bits, values, starts.flip(0))]:
        with pytest.raises(ValueError, match=r"more or fewer than its values|positions and it has"):
            unpack_bitmap(*wrong, columns=3)


@given(st.integers(1, 12), st.integers(1, 6), dtypes, densities, st.integers(0, 1000))
def test_two_four_is_an_exact_inverse(rows, eights, dtype, density, seed):
    generator = torch.Generator().manual_seed(seed)
    order = torch.rand(rows, eights * 2, 4, generator=generator).argsort(2)
    mask = (order < 2) & (torch.rand(rows, eights * 2, 4, generator=generator) < density)
    weight = masked(numbers((rows, eights * 8), dtype, seed), mask.reshape(rows, -1))
    values, index = pack_two_four(weight)
    assert values.shape == (rows, eights * 4)
    assert index.shape == (rows, eights)
    assert (values.dtype, index.dtype) == (dtype, torch.uint8)
    assert same(unpack_two_four(values, index), weight)


def test_two_four_refuses_what_it_cannot_say():
    with pytest.raises(ValueError, match="hold more than two values"):
        pack_two_four(torch.ones(1, 8, dtype=torch.int8))
    with pytest.raises(ValueError, match="12 inputs are not a multiple of 8"):
        pack_two_four(torch.zeros(1, 12, dtype=torch.int8))
    values, index = pack_two_four(torch.zeros(1, 8, dtype=torch.int8))
    with pytest.raises(ValueError, match="no first and second position"):
        unpack_two_four(values, torch.zeros_like(index))
