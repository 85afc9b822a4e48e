import contextlib
import json
import struct

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save_file

from lit_compress.errors import UserError
from lit_compress.storage.file import checksums, verify_checksums, verify_header
from lit_compress.storage.parts import check_parts, decode, encode
from lit_compress.storage.weight import QuantizedWeight

SHAPE = (6, 20)


@given(st.integers(1, 9), st.integers(1, 40), st.floats(0, 1), st.sampled_from(["float", "row", "tensor", "affine"]))
def test_a_weight_comes_back_bit_for_bit(rows, columns, share, kind):
    torch.manual_seed(rows * columns)
    if kind == "float":
        weight = stored = torch.randn(rows, columns)
        weight[torch.rand(rows, columns) < share] = 0
    else:
        zero_point = 7 if kind == "affine" else 0
        values = torch.randint(0, 255, (rows, columns)).to(torch.uint8 if kind == "affine" else torch.int8)
        if kind != "affine":
            values[torch.rand(rows, columns) < share] = 0
        scale = torch.rand(rows if kind == "row" else 1, 1) + 0.1
        stored = QuantizedWeight(values=values, scale=scale, zero_point=zero_point)
        weight = stored.weight()
    parts = encode(stored)
    if parts is None:
        assert kind == "float"
        return
    assert parts[""].ndim == 1  # whoever does not know the form finds another shape
    assert torch.equal(decode(parts, (rows, columns)), weight)
    size = sum(part.numel() * part.element_size() for part in parts.values())
    most = 4 * weight.numel() if kind == "float" else weight.numel() + 4 * scale.numel() + 1
    assert size <= most


def test_size_follows_density():
    torch.manual_seed(0)
    sizes = []
    for density in (0.1, 0.2, 0.4):
        weight = torch.randn(64, 256) * (torch.rand(64, 256) < density)
        parts = encode(weight)
        sizes.append(sum(part.numel() * part.element_size() for part in parts.values()) - 64 * 32)
    assert sizes[1] / sizes[0] == pytest.approx(2, rel=0.1)
    assert sizes[2] / sizes[0] == pytest.approx(4, rel=0.1)


def sparse_parts():
    torch.manual_seed(0)
    values = torch.randint(-127, 128, SHAPE, dtype=torch.int8) * (torch.rand(SHAPE) < 0.3)
    scale = torch.rand(SHAPE[0], 1) + 0.1
    return encode(QuantizedWeight(values=values.to(torch.int8), scale=scale))


def write(path, tensors):
    """A file, and the checksums that are written beside it."""
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, path, {"format": "pt"})
    return checksums([path])


def check(path, expected):
    verify_checksums([path], expected, "here")
    check_parts(path, {"a.weight": SHAPE})


def test_what_was_written_is_accepted(tmp_path):
    tensors = {f"a.weight{end}": part for end, part in sparse_parts().items()} | {"a.bias": torch.ones(6)}
    expected = write(tmp_path / "f", tensors)
    check(tmp_path / "f", expected)
    check_parts(tmp_path / "f", {"a.weight": SHAPE, "a.bias": (6,)})


@given(st.data())
def test_a_changed_byte_is_found(tmp_path_factory, data):
    path = tmp_path_factory.getbasetemp() / "flipped.safetensors"
    expected = write(path, {f"a.weight{end}": part for end, part in sparse_parts().items()})
    content = bytearray(path.read_bytes())
    (length,) = struct.unpack("<Q", content[:8])
    place = data.draw(st.integers(8 + length, len(content) - 1))
    content[place] ^= data.draw(st.integers(1, 255))
    path.write_bytes(content)
    with pytest.raises(UserError, match="not what was written"):
        check(path, expected)


@given(st.binary(max_size=400) | st.integers(0, 600).map(lambda n: ("cut", n)))
def test_bytes_that_are_no_file_are_refused(tmp_path_factory, content):
    path = tmp_path_factory.getbasetemp() / "random.safetensors"
    if isinstance(content, tuple):
        write(path, {f"a.weight{end}": part for end, part in sparse_parts().items()})
        whole = path.read_bytes()
        content = whole[: min(content[1], len(whole) - 1)]
    path.write_bytes(content)
    with pytest.raises(UserError) as caught:
        check_parts(path, {"a.weight": SHAPE})
    assert "\n" not in str(caught.value)


NUMBERS = st.integers(-(2**70), 2**70)


@given(
    st.dictionaries(
        st.sampled_from(["shape", "dtype", "data_offsets"]), st.lists(NUMBERS, max_size=4) | NUMBERS, min_size=1
    )
)
def test_a_hostile_header_is_refused(tmp_path_factory, change):
    """Huge and negative shapes, wrong types, offsets outside of the file."""
    path = tmp_path_factory.getbasetemp() / "header.safetensors"
    write(path, {f"a.weight{end}": part for end, part in sparse_parts().items()})
    content = path.read_bytes()
    (length,) = struct.unpack("<Q", content[:8])
    header = json.loads(content[8 : 8 + length])
    before = dict(header["a.weight"])
    header["a.weight"] |= change
    if header["a.weight"] == before:
        return
    text = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + content[8 + length :])
    with pytest.raises(UserError) as caught:
        check_parts(path, {"a.weight": SHAPE})
    assert "\n" not in str(caught.value)


KINDS = st.sampled_from([torch.float32, torch.int8, torch.uint8, torch.int64, torch.float16])
PARTS = st.dictionaries(
    st.sampled_from(["", "_bitmap", "_scale", "_zero_point"]),
    st.tuples(KINDS, st.lists(st.integers(0, 8), min_size=1, max_size=3), st.integers(0, 255)),
)


@given(PARTS, st.lists(st.integers(0, 10**9), min_size=0, max_size=3))
def test_parts_that_do_not_fit_are_an_error_and_no_allocation(parts, shape):
    built = {end: torch.full(size, value).to(kind) for end, (kind, size, value) in parts.items()}
    with contextlib.suppress(ValueError):
        weight = decode(built, tuple(shape))
        assert tuple(weight.shape) == tuple(shape)
        assert weight.numel() <= 8**3 * 8


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda p: p | {"": p[""][:-1]}, "positions"),
        (lambda p: p | {"_bitmap": p["_bitmap"][:, :-1]}, "bytes"),
        (lambda p: p | {"_bitmap": p["_bitmap"][:-1]}, "rows"),
        (lambda p: p | {"_scale": p["_scale"][:-1]}, "scales"),
        (lambda p: p | {"_scale": p["_scale"] * -1}, "above 0"),
        (lambda p: p | {"_scale": p["_scale"] / 0}, "finite"),
        (lambda p: p | {"_zero_point": torch.tensor([3], dtype=torch.uint8)}, "zero point"),
        (lambda p: {end: part for end, part in p.items() if end != "_scale"}, "float32"),
        (lambda p: {end: part for end, part in p.items() if end != "_bitmap"}, "values"),
    ],
)
def test_a_file_with_right_digests_and_wrong_parts_is_refused(change, words, tmp_path):
    write(tmp_path / "f", {f"a.weight{end}": part for end, part in change(sparse_parts()).items()})
    with pytest.raises(UserError, match=words) as caught:
        check_parts(tmp_path / "f", {"a.weight": SHAPE})
    assert "a.weight" in str(caught.value)


@pytest.mark.parametrize("digests", [None, {}, {"a.weight": "0"}, [], 3])
def test_a_file_of_0_1_without_digests_is_refused(digests, tmp_path):
    tensors = {f"a.weight{end}": part for end, part in sparse_parts().items()}
    save_file(tensors, tmp_path / "f", None if digests is None else {"sha256": json.dumps(digests)})
    with pytest.raises(UserError, match=r"digest|SHA"):
        verify_header(tmp_path / "f")
