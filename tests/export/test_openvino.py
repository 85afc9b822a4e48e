import json

import numpy as np
import openvino
import pytest
import torch
from export.quantized import quantized, tiny_tokenizer
from models.families import batch, build
from transformers import AutoModelForQuestionAnswering, AutoModelForSequenceClassification

from lit_compress.export import from_student, write
from lit_compress.export.onnx import IntegerOptions
from lit_compress.export.openvino import write_openvino_int8
from lit_compress.models.layout import layer_linears

FILES = {"openvino": "openvino_model", "openvino-int8": "openvino_model_qint8_quantized"}


def run(folder, name, inputs):
    settings = {"INFERENCE_PRECISION_HINT": "f32"}
    model = openvino.Core().compile_model(folder / "openvino" / f"{name}.xml", "CPU", settings)
    inputs = inputs | {"token_type_ids": torch.zeros_like(inputs["input_ids"])}
    given = {each.get_any_name() for each in model.inputs}
    results = model({name: value.numpy() for name, value in inputs.items() if name in given})
    names = {name for each in model.outputs for name in each.get_names() if name.endswith("logits")}
    return {name: torch.tensor(results[name]) for name in names}


@pytest.mark.parametrize("to", FILES)
@pytest.mark.parametrize("head", [AutoModelForSequenceClassification, AutoModelForQuestionAnswering])
def test_outputs_at_any_batch_and_length(to, head, tmp_path):
    model = build("bert", head, initializer_range=0.3)
    folded = from_student(model, tiny_tokenizer(tmp_path))
    write(folded, tmp_path / "out", to)
    assert {path.name for path in (tmp_path / "out/openvino").iterdir()} == {f"{FILES[to]}.xml", f"{FILES[to]}.bin"}
    for rows, length in ((1, 1), (3, 20)):
        with torch.no_grad():
            expected = model(**batch(rows, length))
        for name, found in run(tmp_path / "out", FILES[to], batch(rows, length)).items():
            most = (1e-4 if to == "openvino" else 0.2) * expected[name].abs().max()
            assert (found - expected[name]).abs().max() <= most


@pytest.mark.parametrize("family", ["bert", "modernbert"])
def test_integers_of_the_training_compute_as_the_training_form(family, tmp_path):
    model = quantized(family, tables="row", attention=True)
    write(from_student(model, tiny_tokenizer(tmp_path)), tmp_path / "out", "openvino-int8")
    with torch.no_grad():
        expected = model(**batch(3, 8)).logits
    found = run(tmp_path / "out", FILES["openvino-int8"], batch(3, 8))["logits"]
    assert (found - expected).abs().max() <= 0.1 * expected.abs().max()
    assert b'element_type="i8"' in (tmp_path / "out/openvino" / f"{FILES['openvino-int8']}.xml").read_bytes()


def scales_and_constants(model, processor, folder):
    """Scales of linears in the manifest, and the constants of a file by their type."""
    options = IntegerOptions(processor=processor, tables="float")
    folded = from_student(model, tiny_tokenizer(folder))
    write(folded, folder / processor, lambda *given: write_openvino_int8(*given, options))
    entries = json.loads((folder / processor / "compression.json").read_text())["linears"]
    file = folder / processor / "openvino" / f"{FILES['openvino-int8']}.xml"
    found = {"i8": [], "f32": []}
    for node in openvino.Core().read_model(file).get_ops():
        if node.get_type_name() == "Constant" and (kind := node.get_element_type().get_type_name()) in found:
            found[kind].append(node.data)
    scales = {name: np.float32(entry["scales"]["weight"]) for name, entry in entries.items() if entry.get("scales")}
    return scales, found["i8"], [values.flatten() for values in found["f32"]]


@pytest.mark.parametrize("processor", ["any", "vnni"])
def test_a_model_that_was_not_quantized_keeps_8_bits_on_every_processor(processor, tmp_path):
    """OpenVINO multiplies its inputs in floating point where products of bytes could overflow."""
    model = build("bert")
    expected = {name: linear.weight.detach().abs().amax(1) / 127 for name, linear in layer_linears(model).items()}
    scales, weights, _ = scales_and_constants(model, processor, tmp_path)
    assert scales.keys() == expected.keys()
    for name, scale in expected.items():
        np.testing.assert_allclose(scales[name], scale, rtol=1e-6)
    assert [np.abs(weight.astype(int)).max() for weight in weights] == [127] * len(expected)


def test_the_manifest_has_the_scales_of_rows_that_lost_their_last_bit(tmp_path):
    trained, _, _ = scales_and_constants(quantized("bert"), "vnni", tmp_path)
    scales, weights, constants = scales_and_constants(quantized("bert"), "any", tmp_path)
    assert max(np.abs(weight.astype(int)).max() for weight in weights) <= 64
    assert scales.keys() == trained.keys()
    for name, found in scales.items():
        assert set(found / trained[name]) <= {1, 2}
        assert (found != trained[name]).any()
        assert any(np.array_equal(found, values) for values in constants), name
