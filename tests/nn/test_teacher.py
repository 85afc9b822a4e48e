import copy

import pytest
import torch
from torch import nn

from lit_compress.nn import FrozenTeacher


def network():
    return nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4), nn.Dropout(0.5), nn.Linear(4, 2))


class Parent(nn.Module):
    def __init__(self):
        super().__init__()
        self.student = network()
        self.teacher = FrozenTeacher(network())


def test_never_trains():
    parent = Parent().train()
    parent.teacher.train()
    assert parent.student.training
    assert not any(module.training for module in parent.teacher.model.modules())


def test_answers_the_same_twice_and_leaves_its_statistics():
    teacher, x = FrozenTeacher(network()).train(), torch.randn(8, 4)
    mean = teacher.model[1].running_mean.clone()
    assert torch.equal(teacher(x), teacher(x))
    assert torch.equal(teacher.model[1].running_mean, mean)


def test_has_no_gradient():
    parent, x = Parent(), torch.randn(8, 4, requires_grad=True)
    parent.requires_grad_(True)  # what unfreezing a student does
    assert not parent.teacher(x).requires_grad
    assert not any(parameter.requires_grad for parameter in parent.teacher.model.parameters())


def test_is_nothing_for_an_optimizer():
    parent = Parent()
    assert {id(p) for p in parent.parameters()} == {id(p) for p in parent.student.parameters()}


def test_gives_arguments_on():
    class Model(nn.Module):
        def forward(self, x, *, scale):
            return scale * x

    assert FrozenTeacher(Model())(torch.ones(1), scale=3).item() == 3.0


def test_has_no_keys_in_its_parents():
    outer = nn.ModuleDict({"inner": Parent(), "teacher": FrozenTeacher(network())})
    keys = list(outer.state_dict())
    assert keys
    assert all(key.startswith("inner.student.") for key in keys)
    assert list(outer.state_dict(prefix="x.", keep_vars=True)) == [f"x.{key}" for key in keys]


def test_alone_has_an_empty_state_and_takes_none():
    teacher = FrozenTeacher(network())
    assert len(teacher.state_dict()) == 0
    with pytest.raises(RuntimeError):
        teacher.load_state_dict(network().state_dict())


def test_parent_loads_strictly_and_the_teacher_keeps_its_weights():
    one, other, x = Parent().eval(), Parent().eval(), torch.randn(8, 4)
    taught = other.teacher(x)
    other.load_state_dict(one.state_dict(), strict=True)
    assert torch.equal(other.student(x), one.student(x))
    assert torch.equal(other.teacher(x), taught)


def test_parent_still_misses_its_own_keys():
    parent = Parent()
    state = parent.state_dict()
    del state["student.0.weight"]
    with pytest.raises(RuntimeError, match=r"student\.0\.weight"):
        parent.load_state_dict(state, strict=True)
    assert parent.load_state_dict(state, strict=False).missing_keys == ["student.0.weight"]


@pytest.mark.parametrize("move", [lambda m: m.to(torch.float64), lambda m: m.double()], ids=["to", "double"])
def test_follows_its_parent_to_another_dtype(move):
    parent = move(Parent())
    assert parent.teacher(torch.randn(8, 4, dtype=torch.float64)).dtype == torch.float64


def test_follows_its_parent_to_another_device():
    parent = Parent().to("meta")
    assert all(tensor.device.type == "meta" for tensor in parent.teacher.model.state_dict().values())


def test_a_copy_has_a_teacher_of_its_own():
    parent, x = Parent(), torch.randn(8, 4)
    twin, expected = copy.deepcopy(parent), parent.teacher(x)
    with torch.no_grad():
        twin.teacher.model[0].weight.zero_()
    assert torch.equal(parent.teacher(x), expected)
