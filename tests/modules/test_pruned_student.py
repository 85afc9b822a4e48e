import pytest
import torch
from contracts.training import data, fit

from lit_compress.errors import UserError
from lit_compress.modules import L1Penalty, LitPrunedStudent, LogitDistillation, Penalty, ScorePenalty
from lit_compress.nn import make_compressible
from lit_compress.strategies import MagnitudePruning
from lit_compress.tasks import Batch

NAMES = [f"bert.encoder.layer.{i}.output.dense" for i in (0, 1)]


class Fixed(Penalty):
    weight = 4.0

    def forward(self, student):
        return torch.tensor(0.5)


@pytest.fixture
def make(tiny_teacher):
    def pruned_student(compressible=True, **kwargs):
        module = LitPrunedStudent(str(tiny_teacher), teacher=str(tiny_teacher), labels=["0", "1"], **kwargs).eval()
        if compressible:
            make_compressible(module.student, NAMES)
        return module

    return pruned_student


@pytest.fixture
def batch():
    ids = torch.randint(5, 40, (4, 6))
    return Batch({"input_ids": ids, "attention_mask": torch.ones_like(ids)}, {"labels": torch.tensor([0, 1, 1, 0])}, {})


def test_l1_is_the_mean_over_layers_of_the_mean_magnitude():
    model = torch.nn.Sequential(torch.nn.Linear(4, 2), torch.nn.Linear(2, 3), torch.nn.Linear(3, 1))
    make_compressible(model, ["0", "1"])
    expected = (model[0].weight.abs().sum() / 8 + model[1].weight.abs().sum() / 6) / 2
    assert L1Penalty()(model).item() == pytest.approx(expected.item())


def test_score_penalty_is_the_mean_over_the_layers_that_count():
    model = torch.nn.Sequential(torch.nn.Linear(4, 2), torch.nn.Linear(2, 3), torch.nn.Linear(3, 1))
    layers = make_compressible(model, ["0", "1", "2"])
    for layer in layers.values():  # the scores of the last one are those of another strategy
        layer.add_mask_scores()
        torch.nn.init.normal_(layer.mask_scores)
    first, second = (layers[name].mask_scores.sigmoid().mean() for name in ("0", "1"))
    penalty = ScorePenalty()(model, {"0": 0.25, "1": 0.5})
    assert penalty.item() == pytest.approx(((0.25 * first + 0.5 * second) / 2).item())


def test_a_score_penalty_without_scores(make, batch):
    with pytest.raises(UserError, match=r"model\.penalties: .*MovementPruning") as caught:
        make(penalties={"scores": ScorePenalty()}).losses(batch)
    assert "\n" not in str(caught.value)


def test_penalties_add_with_their_weights(make, batch):
    parts = make(penalties={"l1": L1Penalty(3.0), "fixed": Fixed()}).losses(batch)
    assert parts.keys() == {"task", "kd", "l1", "fixed", "loss"}
    expected = 0.5 * parts["task"] + 0.5 * parts["kd"] + 3 * parts["l1"] + 2
    assert parts["loss"].item() == pytest.approx(expected.item())


def test_by_default_there_is_an_l1_penalty(make, batch):
    parts = make().losses(batch)
    assert parts["l1"] > 0
    assert parts["loss"].item() == pytest.approx((0.5 * (parts["task"] + parts["kd"]) + parts["l1"]).item())


def test_no_penalties_when_none_are_wanted(make, batch):
    assert make(penalties={}, compressible=False).losses(batch).keys() == {"task", "kd", "loss"}


def test_the_penalty_pulls_every_compressible_weight_to_zero(make, batch):
    # A copy of the teacher at full hardness: the penalty is the only gradient.
    module = make(distillation={"kd": LogitDistillation(1.0)})
    module.losses(batch)["loss"].backward()
    for name in NAMES:
        weight = module.student.get_submodule(name).weight
        assert torch.allclose(weight.grad, weight.sign() / weight.numel() / 2, atol=1e-6)


def test_penalties_are_logged_and_shrink_weights(make, tiny_data, tiny_teacher, tmp_path):
    sums = []
    for name, weight in (("without", 0.0), ("with", 100.0)):
        module = make(compressible=False, penalties={"shrink": L1Penalty(weight)})
        strategies = [MagnitudePruning(sparsity=0.1, end="10%")]
        run = fit(module, data(tiny_data, tiny_teacher), strategies, tmp_path / name)
        assert float(run.callback_metrics["train/shrink"]) > 0
        sums.append(L1Penalty()(module.student).item())
    assert sums[1] < sums[0]


def test_a_student_without_compressible_layers(make, batch):
    with pytest.raises(UserError, match=r"model\.penalties.*add a strategy to compression") as caught:
        make(compressible=False).losses(batch)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["loss", "task", "kd", "a.b", "half"])
def test_a_name_that_is_taken_or_none(make, name):
    with pytest.raises(UserError, match=r"model\.penalties") as caught:
        make(penalties={name: L1Penalty()})
    assert repr(name) in str(caught.value)


def test_every_penalty_takes_a_weight():
    assert (Fixed().weight, Fixed(0.5).weight, Penalty().weight, Penalty(weight=2.0).weight) == (4.0, 0.5, 1.0, 2.0)


def test_a_penalty_without_forward_says_its_name():
    class Unfinished(Penalty):
        pass

    with pytest.raises(NotImplementedError, match="Unfinished"):
        Unfinished()(torch.nn.Linear(1, 1))
