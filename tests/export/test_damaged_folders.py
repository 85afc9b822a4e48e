"""Folders with one byte changed: refused in one line, or the model answers as before."""

import json
import random
import shutil
from pathlib import Path

import pytest
import torch
from export.quantized import quantized, tiny_tokenizer
from models.families import batch, build
from safetensors.torch import load_file

from lit_compress.errors import UserError
from lit_compress.export import from_student, write
from lit_compress.models.folder import load_whole_model
from lit_compress.models.heads_and_neurons import removable_groups, remove_groups
from lit_compress.models.shapes import update_config


def uneven():
    model = build("bert")
    for number, groups in enumerate(removable_groups(model, "neurons")):
        remove_groups(model, groups, torch.arange(groups.count) > number)
    update_config(model)
    return model


FORMATS = {"hf": uneven, "sparse": lambda: quantized("bert"), "packed": lambda: quantized("bert")}
FILES = ("config.json", "model.safetensors")
FAST = 200 // len(FORMATS)


@pytest.fixture(scope="session")
def folders(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("damaged")
    for to, make in FORMATS.items():
        torch.manual_seed(0)
        write(from_student(make().eval(), tiny_tokenizer(root)), root / to, to)
    return root


def answer(folder: Path) -> torch.Tensor:
    with torch.no_grad():
        return load_whole_model(str(folder), "--model")(**batch(2, 7)).logits


def changed_silently(folder: Path, draw: random.Random, times: int) -> list[str]:
    """What was changed, and the folder gave another answer."""
    expected, found = answer(folder), []
    for _ in range(times):
        file = folder / draw.choice(FILES)
        content = file.read_bytes()
        position = draw.randrange(len(content))
        value = bytes([draw.choice([content[position] ^ 1 << draw.randrange(8), draw.randrange(256)])])
        file.write_bytes(content[:position] + value + content[position + 1 :])
        try:
            same = torch.equal(answer(folder), expected)
        except UserError as error:
            assert "\n" not in str(error)  # noqa: PT017
            same = True
        finally:
            file.write_bytes(content)
        if not same:
            around = content[max(position - 30, 0) : position + 5]
            found.append(f"{file.name}: byte {position} is {value!r}, after {around!r}")
    return found


@pytest.mark.parametrize("to", FORMATS)
def test_no_changed_byte_changes_an_answer(to, folders, tmp_path):
    folder = shutil.copytree(folders / to, tmp_path / to)
    assert changed_silently(folder, random.Random(to), FAST) == []


def test_a_folder_of_a_version_without_checksums_loads(folders, tmp_path):
    folder = shutil.copytree(folders / "hf", tmp_path / "hf")
    config = json.loads((folder / "config.json").read_text())
    assert len(config["quantization_config"].pop("checksums")) == len(load_file(folder / "model.safetensors"))
    (folder / "config.json").write_text(json.dumps(config))
    assert torch.equal(answer(folder), answer(folders / "hf"))


def test_a_model_that_is_changed_and_saved_again_loads(folders, tmp_path):
    model = load_whole_model(str(folders / "hf"), "--model")
    with torch.no_grad():
        model.classifier.weight.zero_()
    model.save_pretrained(tmp_path / "again")
    assert torch.equal(load_whole_model(str(tmp_path / "again"), "--model").classifier.weight, model.classifier.weight)


@pytest.mark.slow
@pytest.mark.parametrize("to", FORMATS)
def test_no_changed_byte_of_many_changes_an_answer(to, folders, tmp_path):
    folder = shutil.copytree(folders / to, tmp_path / to)
    assert changed_silently(folder, random.Random(f"many {to}"), 2000) == []
