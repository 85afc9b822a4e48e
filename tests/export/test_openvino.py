import openvino
import pytest
import torch
from export.quantized import quantized, tiny_tokenizer
from models.families import batch, build
from transformers import AutoModelForQuestionAnswering, AutoModelForSequenceClassification

from lit_compress.export import from_student, write

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
