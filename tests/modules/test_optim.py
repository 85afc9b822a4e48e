import math

import pytest
import torch
from transformers import AutoModelForSequenceClassification

from lit_compress.errors import UserError
from lit_compress.modules import Optimization
from lit_compress.modules.optim import parameter_groups
from lit_compress.nn import make_compressible


@pytest.fixture
def model(tiny_teacher):
    return AutoModelForSequenceClassification.from_pretrained(tiny_teacher)


def rates(optimization, total, steps_per_epoch=10.0):
    """The learning rate that each optimizer step is taken with."""
    built = optimization.build(torch.nn.Linear(2, 2), total, steps_per_epoch)
    optimizer, scheduler = built["optimizer"], built["lr_scheduler"]["scheduler"]
    taken = []
    for _ in range(total + 1):
        taken.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    return taken


def test_biases_and_normalisations_do_not_decay(model):
    names = {parameter: name for name, parameter in model.named_parameters()}
    decayed, spared = parameter_groups(model, 0.3)
    assert (decayed["weight_decay"], spared["weight_decay"]) == (0.3, 0.0)
    plain = {name for name in names.values() if name.endswith("bias") or "LayerNorm" in name}
    assert {names[p] for p in spared["params"]} == plain
    assert {names[p] for p in decayed["params"]} == set(names.values()) - plain


def test_each_trainable_parameter_is_there_once_and_no_frozen_one(model):
    model.get_input_embeddings().requires_grad_(False)
    model.classifier.bias.requires_grad_(False)
    listed = [id(p) for group in parameter_groups(model, 0.1) for p in group["params"]]
    assert sorted(listed) == sorted(id(p) for p in model.parameters() if p.requires_grad)


def test_a_shared_parameter_is_there_once():
    first, second = torch.nn.Linear(3, 3, bias=False), torch.nn.Linear(3, 3, bias=False)
    second.weight = first.weight
    listed = [p for group in parameter_groups(torch.nn.Sequential(first, second), 0.1) for p in group["params"]]
    assert listed == [first.weight]


def test_settings_reach_adamw(model):
    optimization = Optimization(learning_rate=3e-4, weight_decay=0.2, betas=(0.8, 0.95), epsilon=1e-6, warmup="0%")
    optimizer = optimization.build(model, 10, 5)["optimizer"]
    assert isinstance(optimizer, torch.optim.AdamW)
    for group, decay in zip(optimizer.param_groups, (0.2, 0.0), strict=True):
        assert (group["lr"], group["betas"], group["eps"]) == (3e-4, (0.8, 0.95), 1e-6)
        assert group["weight_decay"] == decay


def test_the_schedule_follows_steps_and_not_epochs(model):
    assert Optimization().build(model, 10, 5)["lr_scheduler"]["interval"] == "step"


def test_scores_have_a_group_of_their_own(model):
    layers = make_compressible(model, [name for name, m in model.named_modules() if name.endswith("query")])
    for layer in layers.values():
        layer.add_mask_scores()
    optimizer = Optimization(learning_rate=1e-4, score_learning_rate=0.5, warmup="0%").build(model, 10, 5)["optimizer"]
    *_, last = optimizer.param_groups
    assert (last["lr"], last["weight_decay"]) == (0.5, 0.0)
    assert {id(p) for p in last["params"]} == {id(layer.mask_scores) for layer in layers.values()}
    listed = [id(p) for group in optimizer.param_groups for p in group["params"]]
    assert sorted(listed) == sorted(id(p) for p in model.parameters())


def test_a_rate_for_scores_that_are_not_there(model):
    with pytest.raises(UserError, match=r"optimization\.score_learning_rate: 0\.5 .*MovementPruning") as caught:
        Optimization(score_learning_rate=0.5).build(model, 10, 5)
    assert "\n" not in str(caught.value)


LINEAR = [1 - step / 8 for step in range(9)]
COSINE = [(1 + math.cos(math.pi * step / 8)) / 2 for step in range(9)]
SHAPES = {"linear": LINEAR, "cosine": COSINE, "constant": [1.0] * 9}


@pytest.mark.parametrize("decay", SHAPES)
def test_decay_without_warmup(decay):
    taken = rates(Optimization(learning_rate=2.0, warmup="0%", decay=decay), 8)
    assert taken == pytest.approx([2 * share for share in SHAPES[decay]], abs=1e-12)


@pytest.mark.parametrize("warmup", ["20%", "2 steps", "0.5 epochs"])
@pytest.mark.parametrize("decay", SHAPES)
def test_warmup_then_decay(warmup, decay):
    # 10 steps in epochs of 4: each spelling is 2 steps of warm-up and leaves 8 of decay.
    taken = rates(Optimization(learning_rate=1.0, warmup=warmup, decay=decay), 10, steps_per_epoch=4)
    assert taken == pytest.approx([0, 0.5, *SHAPES[decay]], abs=1e-12)


def test_linear_decay_follows_the_recipe():
    # SST-2 sparse transfer: 1.5e-4 to 0 over 13 epochs, here of 100 steps.
    taken = rates(Optimization(learning_rate=1.5e-4, warmup="0 steps"), 1300, 100)
    assert [taken[step] for step in (0, 650, 1200, 1300)] == pytest.approx([1.5e-4, 7.5e-5, 1.5e-4 / 13, 0])


@pytest.mark.parametrize("decay", SHAPES)
@pytest.mark.parametrize(("warmup", "length"), [("100%", 5), ("50 steps", 50)])
def test_a_warmup_as_long_as_the_run_only_rises(warmup, length, decay):
    taken = rates(Optimization(learning_rate=1.0, warmup=warmup, decay=decay), 5)
    assert taken == pytest.approx([step / length for step in range(6)])


def test_a_warmup_in_epochs_of_data_without_an_end():
    with pytest.raises(UserError, match=r"optimization\.warmup.*epochs") as caught:
        Optimization(warmup="0.1 epochs").build(torch.nn.Linear(2, 2), 10, float("inf"))
    assert "\n" not in str(caught.value)
    assert rates(Optimization(learning_rate=1.0, warmup="20%"), 10, float("inf"))[1] == 0.5


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"learning_rate": 0.0}, ["optimization.learning_rate", "0.0"]),
        ({"learning_rate": -1e-5}, ["optimization.learning_rate", "-1e-05"]),
        ({"learning_rate": float("nan")}, ["optimization.learning_rate", "nan"]),
        ({"score_learning_rate": 0.0}, ["optimization.score_learning_rate", "0.0"]),
        ({"warmup": "10"}, ["optimization.warmup", "'10'", "steps"]),
        ({"warmup": "-5%"}, ["optimization.warmup", "-5%"]),
        ({"warmup": "two epochs"}, ["optimization.warmup", "two epochs"]),
        ({"decay": "square"}, ["optimization.decay", "'square'", "cosine"]),
        ({"weight_decay": -0.1}, ["optimization.weight_decay", "-0.1"]),
        ({"betas": (0.9, 1.0)}, ["optimization.betas", "1.0"]),
        ({"epsilon": -1e-8}, ["optimization.epsilon", "-1e-08"]),
    ],
)
def test_wrong_values_are_one_line(arguments, words):
    with pytest.raises(UserError) as caught:
        Optimization(**arguments)
    assert "\n" not in str(caught.value)
    assert [word for word in words if word not in str(caught.value)] == []
