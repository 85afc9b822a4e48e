"""Exports on their engines give what PyTorch gives; a damaged file or a missing package is one line."""

import json
import shutil

import numpy as np
import pytest
import torch
from models.families import build
from transformers import AutoModelForSequenceClassification

from lit_compress.errors import UserError
from lit_compress.export.command import write
from lit_compress.export.source import from_source
from lit_compress.runtimes import engines
from lit_compress.runtimes.engines import Variant, local_folder, open_engine, variants
from lit_compress.runtimes.worker import batch_of

BATCH = batch_of(3, 9, 40, padded=True)


@pytest.fixture(scope="module")
def exported(tmp_path_factory, tiny_teacher):
    """The tiny teacher in the formats whose runtimes are installed, by name."""
    folders = {"hf": tiny_teacher}
    for to, package in (("onnx", "onnxruntime"), ("openvino", "openvino")):
        if engines.find_spec(package) and engines.find_spec("onnx"):
            folders[to] = write(from_source(model=str(tiny_teacher)), tmp_path_factory.mktemp("export") / to, to)
    return folders


@pytest.mark.parametrize(("name", "engine"), [("hf", "eager"), ("onnx", "onnxruntime"), ("openvino", "openvino")])
def test_outputs_are_those_of_pytorch(exported, tiny_teacher, name, engine):
    if name not in exported:
        pytest.skip(f"{engine} is not installed")
    variant = next(variant for variant in variants(exported[name]) if variant.engine == engine)
    found = open_engine(variant, threads=1)(BATCH)
    model = AutoModelForSequenceClassification.from_pretrained(tiny_teacher).eval()
    with torch.inference_mode():
        expected = model(**{key: torch.tensor(value) for key, value in BATCH.items()}).logits
    torch.testing.assert_close(torch.tensor(found["logits"]), expected, rtol=1e-4, atol=1e-5)
    assert variant.bytes > 10_000


def test_a_family_that_does_not_say_how_many_types_it_has_is_given_them(tmp_path):
    model = build("xlnet", initializer_range=0.3)
    model.save_pretrained(tmp_path)
    first = batch_of(2, 9, 30)
    second = first | {"token_type_ids": np.arange(18).reshape(2, 9) % 2}
    with torch.inference_mode():
        expected, other = (
            model(**{key: torch.tensor(value) for key, value in batch.items()}).logits for batch in (second, first)
        )
    assert not torch.allclose(expected, other, atol=1e-3)
    found = open_engine(variants(tmp_path)[0], threads=1)(second)
    torch.testing.assert_close(torch.tensor(found["logits"]), expected, rtol=1e-4, atol=1e-5)


def test_every_form_of_a_folder(tmp_path, tiny_teacher):
    shutil.copytree(tiny_teacher, tmp_path / "all")
    for name, text in {
        "onnx/model.onnx": "1234",
        "onnx/model.onnx_data": "56",
        "openvino/a.xml": "7",
        "openvino/a.bin": "89",
    }.items():
        (tmp_path / "all" / name).parent.mkdir(exist_ok=True)
        (tmp_path / "all" / name).write_text(text)
    found = variants(tmp_path / "all", packed=True)
    assert [variant.engine for variant in found] == ["eager", "compile", "onnxruntime", "openvino"]
    assert [variant.bytes for variant in found[2:]] == [6, 3]
    assert [variant.packed for variant in found] == [True, True, False, False]
    assert variants(tmp_path) == []


@pytest.mark.parametrize("engine", ["onnxruntime", "openvino"])
def test_a_damaged_file_is_one_line(tmp_path, engine):
    pytest.importorskip(engine)
    file = tmp_path / "model.xml"
    file.write_bytes(b"no model")
    with pytest.raises(UserError, match="cannot be loaded") as caught:
        open_engine(Variant(engine=engine, file=file, bytes=8))
    assert "\n" not in str(caught.value)


def test_sources(tmp_path, tiny_teacher):
    assert local_folder(str(tiny_teacher), "models") == tiny_teacher
    (tmp_path / "file").write_text("")
    for source in (str(tmp_path / "file"), "nobody/has-this-model", "/nowhere/at/all"):
        with pytest.raises(UserError, match=r"^models: "):
            local_folder(source, "models")


def test_batches_repeat_and_are_padded_where_asked():
    again = batch_of(3, 9, 40, padded=True)
    assert all(np.array_equal(BATCH[name], again[name]) for name in BATCH)
    assert BATCH["attention_mask"].sum(1).tolist() == [9, 6, 3]
    assert batch_of(3, 9, 40)["attention_mask"].all()
    assert BATCH["input_ids"].max() < 40
    assert json.dumps(BATCH["input_ids"].tolist())


def test_an_input_that_nobody_gives_is_named():
    given = {"input_ids": np.ones((2, 3), dtype=np.int64)}
    assert not engines._given(given, "token_type_ids").any()
    with pytest.raises(UserError, match=r"the model has the input 'position_ids', and is given input_ids"):
        engines._given(given, "position_ids")
