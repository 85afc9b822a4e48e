import json
from functools import partial

import onnx
import onnxruntime
import pytest
import torch
from export.quantized import quantized, tiny_tokenizer
from models.families import FAMILIES, batch, build
from transformers import (
    AutoModelForMaskedLM,
    AutoModelForQuestionAnswering,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
)

import lit_compress.export.onnx
from lit_compress.errors import UserError
from lit_compress.export import from_student, write
from lit_compress.export.onnx import IntegerOptions, write_onnx_int8
from lit_compress.nn.factorized import FactorizedEmbedding

HEADS = {
    AutoModelForSequenceClassification: ["logits"],
    AutoModelForTokenClassification: ["logits"],
    AutoModelForQuestionAnswering: ["start_logits", "end_logits"],
    AutoModelForMaskedLM: ["logits"],
}

# What training left in floating point stays as it is.
EXACT = partial(write_onnx_int8, options=IntegerOptions(tables="float"))

LIKE_BERT = ("roberta", "xlm-roberta", "camembert", "electra")


@pytest.fixture
def tokenizer(tmp_path):
    return tiny_tokenizer(tmp_path)


def run(folder, name, inputs, optimized=True):
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    levels = onnxruntime.GraphOptimizationLevel
    options.graph_optimization_level = levels.ORT_ENABLE_ALL if optimized else levels.ORT_ENABLE_BASIC
    session = onnxruntime.InferenceSession(str(folder / "onnx" / name), options)
    given = {each.name for each in session.get_inputs()}
    inputs = inputs | {"token_type_ids": torch.zeros_like(inputs["input_ids"])}
    outputs = session.run(None, {name: value.numpy() for name, value in inputs.items() if name in given})
    return dict(zip([each.name for each in session.get_outputs()], map(torch.tensor, outputs), strict=True))


def close(found, expected, tolerance):
    assert found.shape == expected.shape
    return float((found - expected).abs().max()) <= tolerance * float(expected.abs().max())


def mostly_equal(found, expected):
    """In half of the rows no value lies so near the middle of two steps that the order of a sum decides."""
    differences = (found - expected).abs().amax(1) / expected.abs().max()
    return found.shape == expected.shape and float(differences.median()) <= 1e-4 and float(differences.max()) <= 0.2


@pytest.mark.parametrize("head", HEADS, ids=lambda head: head.__name__)
def test_every_head_at_any_batch_and_length(head, tokenizer, tmp_path):
    model = build("bert", head, initializer_range=0.3)
    write(from_student(model, tokenizer), tmp_path / "out", "onnx")
    for rows, length in ((1, 1), (2, 9), (5, 20)):
        found = run(tmp_path / "out", "model.onnx", batch(rows, length))
        assert list(found) == HEADS[head]
        with torch.no_grad():
            expected = model(**batch(rows, length))
        assert all(close(found[name], expected[name], 1e-4) for name in found)


@pytest.mark.parametrize(
    "family", [pytest.param(family, marks=[pytest.mark.slow] if family in LIKE_BERT else []) for family in FAMILIES]
)
def test_integers_of_the_training_compute_as_the_training_form(family, tokenizer, tmp_path):
    # DeBERTa-v2 uses a table without looking anything up in it, which training does not round.
    model = quantized(family, tables=None if family == "deberta-v2" else "table", attention=True)
    write(from_student(model, tokenizer), tmp_path / "out", EXACT)
    with torch.no_grad():
        expected = model(**batch(16, 3)).logits
    assert mostly_equal(run(tmp_path / "out", "model_quantized.onnx", batch(16, 3), False)["logits"], expected)
    assert close(run(tmp_path / "out", "model_quantized.onnx", batch(16, 3))["logits"], expected, 0.2)


@pytest.mark.parametrize(
    "settings",
    [
        {"inputs": "int8", "per_channel": False, "tables": "row", "outputs": True},
        {"inputs": "dynamic"},
        {"inputs": "uint8", "bits": 4},
    ],
)
def test_every_kind_of_grid(settings, tokenizer, tmp_path):
    model = quantized("bert", **settings)
    write(from_student(model, tokenizer), tmp_path / "out", EXACT)
    with torch.no_grad():
        expected = model(**batch(16, 3)).logits
    assert mostly_equal(run(tmp_path / "out", "model_quantized.onnx", batch(16, 3), False)["logits"], expected)


def test_what_was_not_quantized_is_rounded(tokenizer, tmp_path):
    model = build("bert", hidden_size=64, intermediate_size=256)
    for to in ("onnx", "onnx-int8"):
        write(from_student(model, tokenizer), tmp_path / to, to)
    with torch.no_grad():
        expected = model(**batch(3, 8)).logits
    assert close(run(tmp_path / "onnx-int8", "model_quantized.onnx", batch(3, 8))["logits"], expected, 0.2)
    sizes = [(tmp_path / to / "onnx" / name).stat().st_size
             for to, name in (("onnx", "model.onnx"), ("onnx-int8", "model_quantized.onnx"))]  # fmt: skip
    linears = sum(p.numel() for n, p in model.named_parameters() if ".layer." in n and p.ndim == 2)
    assert sizes[0] - sizes[1] > 2.5 * linears
    graph = onnx.load(tmp_path / "onnx-int8/onnx/model_quantized.onnx").graph
    assert sum(node.op_type == "MatMulInteger" for node in graph.node) == 18
    assert len(json.loads((tmp_path / "onnx-int8/compression.json").read_text())["linears"]) == 18


def test_the_file_is_valid_and_has_the_names_that_libraries_look_for(tokenizer, tmp_path):
    write(from_student(quantized("bert"), tokenizer), tmp_path / "out", "onnx-int8")
    onnx.checker.check_model(onnx.load(tmp_path / "out/onnx/model_quantized.onnx"), full_check=True)
    assert {str(p.relative_to(tmp_path / "out")) for p in (tmp_path / "out").rglob("*") if p.is_file()} == {
        *("config.json", "tokenizer.json", "tokenizer_config.json", "compression.json", "README.md"),
        *("onnx/model_quantized.onnx", ".lit_compress.json"),
    }
    values = {
        each.name: each.data_type for each in onnx.load(tmp_path / "out/onnx/model_quantized.onnx").graph.initializer
    }
    kinds = [
        kind for name, kind in values.items() if ".layer." in name and name.endswith(".weight") and "Norm" not in name
    ]
    assert kinds == [onnx.TensorProto.UINT8] * 18  # of 8 bits, for any processor


def test_low_rank_tables_and_shared_decoders(tokenizer, tmp_path):
    model = build("bert")
    model.bert.embeddings.word_embeddings = FactorizedEmbedding.from_embedding(model.bert.embeddings.word_embeddings, 5)
    write(from_student(model, tokenizer), tmp_path / "low", "onnx")
    with torch.no_grad():
        assert close(run(tmp_path / "low", "model.onnx", batch())["logits"], model(**batch()).logits, 1e-4)
    model = build("bert", AutoModelForMaskedLM, vocab_size=5000)
    write(from_student(model, tokenizer), tmp_path / "tied", "onnx")
    assert (tmp_path / "tied/onnx/model.onnx").stat().st_size < 1.5 * 5000 * 16 * 4


def test_outputs_that_differ_are_refused_and_nothing_is_left(tokenizer, tmp_path, monkeypatch):
    structure = lit_compress.export.onnx.structure
    monkeypatch.setattr(
        lit_compress.export.onnx,
        "structure",
        lambda form: [tuple(output * 1.01 for output in outputs) for outputs in structure(form)],
    )
    with pytest.raises(UserError, match="differs from PyTorch") as caught:
        write(from_student(build("bert"), tokenizer), tmp_path / "new/out", "onnx")
    assert "\n" not in str(caught.value)
    assert list((tmp_path / "new").iterdir()) == []
