"""Pruning and quantization of a model as it stands, of every family."""

import pytest
import torch
from models.families import FAMILIES, batch, build
from torch import nn

from lit_compress import UserError, fold, pack, prune_, quantize_
from lit_compress.models.layout import LAYOUTS
from lit_compress.models.packed import packed_linears
from lit_compress.models.targets import match_linears


def zeros(weights) -> float:
    weights = list(weights)
    return sum(int((weight == 0).sum()) for weight in weights) / sum(weight.numel() for weight in weights)


@pytest.mark.parametrize("family", [name for name in FAMILIES if "attention_masks" not in LAYOUTS[name].unsupported])
def test_every_family_is_pruned_quantized_trained_and_folded(family):
    model = build(family).train()
    names = list(match_linears(model, None))
    parameters = dict(model.named_parameters())
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2, weight_decay=0.1)
    assert prune_(model, 0.25) is model
    prune_(model, 0.5)
    assert quantize_(model) is model
    assert all(dict(model.named_parameters())[name] is parameter for name, parameter in parameters.items())
    for _ in range(3):
        model(**batch()).logits.square().sum().backward()
        optimizer.step()
        optimizer.zero_grad()
    folded = fold(model.eval())
    weights = [folded.get_submodule(name).weight for name in names]
    assert all(type(folded.get_submodule(name)) is nn.Linear for name in names)
    assert zeros(weights) >= 0.5
    assert max(len(weight[0].unique()) for weight in weights) < 256
    with torch.no_grad():
        assert folded(**batch()).logits.isfinite().all()
    assert len(packed_linears(pack(model))) == len(names)


def test_what_is_left_are_the_largest():
    model = build("bert")
    weight = model.bert.encoder.layer[0].output.dense.weight.detach().clone()
    prune_(model, 0.75)
    kept = weight.abs() > weight.abs().flatten().kthvalue(weight.numel() * 3 // 4).values
    assert torch.equal(model.bert.encoder.layer[0].output.dense.weight.detach(), weight * kept)
    assert zeros([model.classifier.weight]) == 0


@pytest.mark.parametrize("pattern", ["2:4", "1x4", "4x1"])
def test_patterns(pattern):
    model = prune_(build("bert"), pattern=pattern)
    weight = model.bert.encoder.layer[0].intermediate.dense.weight
    assert zeros([weight]) == 0.5
    groups = weight.reshape(-1, 4) if pattern != "4x1" else weight.T.reshape(-1, 4)
    counts = set((groups != 0).sum(1).tolist())
    assert counts == ({2} if pattern == "2:4" else {0, 4})


def test_one_threshold_for_all_and_an_importance_of_ones_own():
    model = build("bert")
    layer = model.bert.encoder.layer
    with torch.no_grad():
        layer[0].output.dense.weight.mul_(100)
    prune_(model, 0.5, scope="global")
    assert zeros([layer[0].output.dense.weight]) < 0.1
    model = build("bert")
    before = model.bert.encoder.layer[0].output.dense.weight.detach().clone()
    prune_(model, 0.5, importance=lambda weight: weight, targets=["*.output.dense"])
    left = model.bert.encoder.layer[0].output.dense.weight
    assert before[left == 0].max() <= before[left != 0].min()


@pytest.mark.parametrize(
    ("call", "line"),
    [
        (lambda model: prune_(model, 1.0), r"^prune_: sparsity 1\.0 must be in \[0, 1\)$"),
        (lambda model: prune_(model, 0.6, "2:4"), r"does not go with '2:4'; it must be 0\.5$"),
        (lambda model: prune_(model, pattern="diagonal"), "'diagonal' is not a pattern"),
        (lambda model: prune_(model, pattern="1x5"), "'1x5' does not divide .* of 'bert"),
        (lambda model: prune_(model, pattern="2:4", scope="global"), "no meaning for '2:4'; use 'layer'$"),
        (lambda model: prune_(model, scope="gloabl"), "^prune_: scope 'gloabl' must be one of layer, global, output$"),
        (
            lambda model: prune_(model, importance=lambda weight: weight.abs().sum(1, keepdim=True)),
            r"^prune_: importance gives scores of shape \(16, 1\) for 'bert.*' of \(16, 16\); give one for each",
        ),
        (lambda model: prune_(model, importance=lambda weight: weight.sum()), r"gives scores of shape \(\) for"),
        (lambda model: prune_(model, importance=lambda weight: 0 / (0 * weight)), "gives NaN for 'bert"),
        (lambda model: prune_(model, targets=["nothing"]), "^prune_: targets: 'nothing' matches no Linear"),
        (lambda model: quantize_(model, bits=9), "^quantize_: bits 9 must be from 2 to 8$"),
        (lambda model: quantize_(model, activations="fp4"), "'fp4' must be one of uint8, int8, dynamic, none$"),
        (lambda model: quantize_(quantize_(model)), "is quantized already"),
    ],
)
def test_a_mistake_is_one_line(call, line):
    with pytest.raises(UserError, match=line) as error:
        call(build("bert"))
    assert "\n" not in str(error.value)


def fails(weight):
    raise RuntimeError


@pytest.mark.parametrize("importance", [fails, lambda weight: weight[:, :1], torch.abs])
def test_a_model_that_cannot_be_pruned_stays_as_it_is(importance):
    model = build("bert")
    output = model.bert.encoder.layer[-1].output.dense
    if importance is torch.abs:  # the last linear cannot be masked: another module has its weight
        model.tied = nn.Linear(output.in_features, output.out_features)
        model.tied.weight = output.weight
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with pytest.raises((UserError, RuntimeError)):
        prune_(model, importance=importance)
    assert {type(module) for module in model.modules() if isinstance(module, nn.Linear)} == {nn.Linear}
    assert model.state_dict().keys() == before.keys()
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_ranges_are_measured_without_training():
    model = quantize_(build("bert"), activations="int8").train()
    with torch.no_grad():
        model(**batch())
    quantizer = model.eval().bert.encoder.layer[0].output.dense.input_quantizer
    before = quantizer.high.clone()
    with torch.no_grad():
        model(**{"input_ids": torch.full((1, 4), 7)})
    assert before.isfinite()
    assert quantizer.high == before
