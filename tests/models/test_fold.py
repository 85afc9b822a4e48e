import copy

import pytest
import torch
from torch import nn
from transformers import AutoModelForMaskedLM, AutoModelForSequenceClassification

from lit_compress.export import fold
from lit_compress.nn import CompressibleLinear, MinMaxWeightQuantizer, MovingAverageQuantizer, make_compressible

NAMES = ["bert.encoder.layer.0.output.dense", "bert.encoder.layer.1.attention.self.query"]


@pytest.fixture
def student(tiny_teacher):
    """One layer pruned, one pruned and quantized."""
    model = AutoModelForSequenceClassification.from_pretrained(tiny_teacher).eval()
    layers = make_compressible(model, NAMES)
    for layer in layers.values():
        layer.add_mask()
        layer.weight_mask[:, ::4] = False
    layers[NAMES[1]].weight_quantizer = MinMaxWeightQuantizer(32)
    return model


def test_each_layer_is_a_linear_with_its_effective_weight(student):
    folded = fold(student)
    assert not any(isinstance(module, CompressibleLinear) for module in folded.modules())
    for name in NAMES:
        layer, linear = student.get_submodule(name), folded.get_submodule(name)
        assert type(linear) is nn.Linear
        assert torch.equal(linear.weight, layer.effective_weight())
        assert not linear.weight[:, ::4].any()
        assert torch.equal(linear.bias, layer.bias)


def test_names_and_everything_else_are_those_of_the_plain_model(student, tiny_teacher):
    plain = AutoModelForSequenceClassification.from_pretrained(tiny_teacher).state_dict()
    folded = fold(student).state_dict()
    assert folded.keys() == plain.keys()
    assert {name for name in plain if not torch.equal(plain[name], folded[name])} == {
        f"{name}.weight" for name in NAMES
    }


def test_the_original_is_untouched(student):
    before = {name: value.clone() for name, value in student.state_dict().items()}
    modules = dict(student.named_modules())
    folded = fold(student)
    with torch.no_grad():
        for parameter in folded.parameters():
            parameter.fill_(7)
    assert dict(student.named_modules()) == modules
    assert student.state_dict().keys() == before.keys()
    assert all(torch.equal(value, before[name]) for name, value in student.state_dict().items())


def test_logits_stay_the_same(student):
    ids = torch.randint(5, 40, (3, 7))
    with torch.no_grad():
        assert torch.equal(fold(student)(ids).logits, student(ids).logits)


def test_a_range_of_inputs_is_left_out(student):
    student.get_submodule(NAMES[1]).input_quantizer = MovingAverageQuantizer()
    assert not any(isinstance(module, MovingAverageQuantizer) for module in fold(student).modules())


@pytest.mark.parametrize("training", [True, False])
def test_the_mode_is_kept(student, training):
    assert all(module.training == training for module in fold(student.train(training)).modules())


def test_a_frozen_weight_folds(student):
    student.requires_grad_(False)
    assert torch.equal(fold(student).get_submodule(NAMES[0]).weight, student.get_submodule(NAMES[0]).effective_weight())


def test_tied_weights_stay_tied(tiny_model):
    model = AutoModelForMaskedLM.from_pretrained(tiny_model)
    make_compressible(model, NAMES)
    folded = fold(model)
    assert folded.get_output_embeddings().weight is folded.get_input_embeddings().weight
    assert folded.get_input_embeddings().weight is not model.get_input_embeddings().weight


def test_a_plain_model_is_copied(tiny_teacher):
    model = AutoModelForSequenceClassification.from_pretrained(tiny_teacher)
    folded, same = fold(model), copy.deepcopy(model)
    assert folded is not model
    assert all(torch.equal(value, same.state_dict()[name]) for name, value in folded.state_dict().items())
