import hashlib

import pytest
import torch
from safetensors.torch import save_file

from lit_compress.errors import UserError
from lit_compress.storage.file import checksums, stored_tensors, verify_checksums

TENSORS = {
    "a": torch.arange(6, dtype=torch.int32).reshape(2, 3),
    "b.values": torch.ones(5, dtype=torch.float8_e4m3fn),
    "empty": torch.zeros(0, 4),
}


@pytest.fixture
def path(tmp_path):
    save_file(TENSORS, tmp_path / "model.safetensors", metadata={"format": "pt"})
    return tmp_path / "model.safetensors"


def test_what_a_file_holds(path):
    stored = stored_tensors(path)
    assert {name: (tensor.dtype, tensor.shape) for name, tensor in stored.items()} == {
        "a": ("I32", (2, 3)),
        "b.values": ("F8_E4M3", (5,)),
        "empty": ("F32", (0, 4)),
    }


def test_checksums_are_those_of_the_bytes(path):
    expected = {name: hashlib.sha256(value.view(torch.uint8).numpy().tobytes()).hexdigest()
                for name, value in TENSORS.items() if value.numel()}  # fmt: skip
    found = checksums([path])
    assert found == expected | {"empty": hashlib.sha256(b"").hexdigest()}
    verify_checksums([path], found, "here")


def test_every_flipped_byte_is_seen(path):
    expected, content = checksums([path]), path.read_bytes()
    begin = 8 + int.from_bytes(content[:8], "little")
    for position in range(begin, len(content)):
        path.write_bytes(content[:position] + bytes([content[position] ^ 1]) + content[position + 1 :])
        with pytest.raises(UserError, match=r"here: tensor '[ab.values]+' is not what was written"):
            verify_checksums([path], expected, "here")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda sums: sums.pop("a"), "'a' has no checksum"),
        (lambda sums: sums.update(c="0"), "'c' is missing"),
        (lambda sums: sums.update(a="0"), "'a' is not what was written"),
        (lambda sums: sums.update(a=None), "'a' is not what was written"),
    ],
)
def test_other_names_and_sums_are_refused(change, words, path):
    expected = checksums([path])
    change(expected)
    with pytest.raises(UserError, match=f"here: tensor {words}"):
        verify_checksums([path], expected, "here")


def test_no_mapping_is_refused(path):
    with pytest.raises(UserError, match="here: is list and must be a mapping"):
        verify_checksums([path], [], "here")


@pytest.mark.parametrize(
    "damage",
    [
        lambda c: b"",
        lambda c: c[:4],
        lambda c: c[:40],
        lambda c: b"\xff" * 8 + c[8:],
        lambda c: c[:-1],
        lambda c: c[:8] + b"[" + c[9:],
        lambda c: (2).to_bytes(8, "little") + b"[]",
        lambda c: (8).to_bytes(8, "little") + b'{"a": 1}',
        lambda c: c.replace(b'"data_offsets"', b'"data_offset_"', 1),
    ],
)
def test_a_damaged_file_is_one_line(damage, path):
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(UserError, match="is damaged or no safetensors file") as caught:
        stored_tensors(path)
    assert "\n" not in str(caught.value)


def test_a_file_that_is_gone(tmp_path):
    with pytest.raises(UserError, match="No such file"):
        stored_tensors(tmp_path / "none")
