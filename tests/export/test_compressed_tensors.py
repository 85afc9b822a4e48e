import json

import pytest
import torch
from export.quantized import quantized, tiny_tokenizer
from models.families import batch, build
from safetensors.torch import load_file
from transformers import AutoModelForMaskedLM, AutoModelForSequenceClassification

from lit_compress.errors import UserError
from lit_compress.export import fold, from_student, write
from lit_compress.models.layout import layer_linears
from lit_compress.nn import make_compressible
from lit_compress.nn.factorized import FactorizedEmbedding


@pytest.fixture
def tokenizer(tmp_path):
    return tiny_tokenizer(tmp_path)


def load(folder, head=AutoModelForSequenceClassification):
    model = head.from_pretrained(folder)
    with torch.no_grad():
        return model, model(**batch())[0]


@pytest.mark.parametrize("family", ["bert", "roberta", "modernbert", "deberta-v2", "distilbert", "albert"])
@pytest.mark.parametrize("inputs", ["uint8", "int8", "dynamic"])
def test_weights_come_back_exactly_and_outputs_are_those_of_the_training_form(family, inputs, tokenizer, tmp_path):
    model = quantized(family, inputs)
    write(from_student(model, tokenizer), tmp_path / "out", "compressed-tensors")
    loaded, found = load(tmp_path / "out")
    folded = fold(model)
    for name in layer_linears(folded):
        assert torch.equal(loaded.get_submodule(name).weight, folded.get_submodule(name).weight), name
        assert load_file(tmp_path / "out/model.safetensors")[f"{name}.weight"].dtype == torch.int8
    with torch.no_grad():
        expected, plain = model(**batch()).logits, folded(**batch()).logits
    # The package divides where this one multiplies, and its dynamic grids are 127.5 steps wide instead of 127.
    assert (found - expected).abs().max() <= 0.1 * expected.abs().max()
    assert not torch.equal(found, plain)  # inputs really are quantized


def test_without_quantized_inputs_outputs_are_equal_bit_for_bit(tokenizer, tmp_path):
    for bits, kind in ((8, "int-quantized"), (4, "pack-quantized")):
        model = quantized("bert", "none", bits=bits)
        write(from_student(model, tokenizer), tmp_path / kind, "compressed-tensors")
        assert json.loads((tmp_path / kind / "config.json").read_text())["quantization_config"]["format"] == kind
        with torch.no_grad():
            torch.testing.assert_close(load(tmp_path / kind)[1], fold(model)(**batch()).logits, atol=1e-6, rtol=0)


def test_what_was_not_quantized_is_rounded_with_a_range_per_token(tokenizer, tmp_path):
    model = build("bert", AutoModelForMaskedLM)
    write(from_student(model, tokenizer), tmp_path / "out", "compressed-tensors")
    config = json.loads((tmp_path / "out/config.json").read_text())["quantization_config"]
    assert config["config_groups"]["group_0"]["input_activations"]["strategy"] == "token"
    assert config["config_groups"]["group_0"]["targets"] == ["Linear"]
    assert set(config["ignore"]) == {"cls.predictions.transform.dense", "cls.predictions.decoder"}
    with torch.no_grad():
        expected = model(**batch()).logits
    assert (load(tmp_path / "out", AutoModelForMaskedLM)[1] - expected).abs().max() <= 0.1 * expected.abs().max()


def test_layers_of_several_kinds(tokenizer, tmp_path):
    model = quantized("bert", "uint8")
    layers = make_compressible(model, list(layer_linears(model)))
    first = next(iter(layers))
    layers[first].input_quantizer = layers[first].weight_quantizer = None
    layers[list(layers)[1]].input_quantizer = None
    write(from_student(model, tokenizer), tmp_path / "out", "compressed-tensors")
    config = json.loads((tmp_path / "out/config.json").read_text())["quantization_config"]
    assert len(config["config_groups"]) == 2
    assert first in config["ignore"]
    expected = fold(model)
    assert torch.equal(load(tmp_path / "out")[0].get_submodule(first).weight, expected.get_submodule(first).weight)


def test_shapes_that_it_cannot_say_are_refused(tokenizer, tmp_path):
    model = build("bert")
    model.bert.embeddings.word_embeddings = FactorizedEmbedding.from_embedding(model.bert.embeddings.word_embeddings, 5)
    with pytest.raises(UserError, match="ranks") as caught:
        write(from_student(model, tokenizer), tmp_path / "out", "compressed-tensors")
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "out").exists()
