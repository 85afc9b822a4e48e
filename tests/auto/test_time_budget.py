import pytest
import torch
from transformers import AutoModelForSequenceClassification

from lit_compress.auto.time_budget import START, steps_of, training_seconds

SECONDS = {"teacher": 0.1, "int8": 0.2, "member": 0.2}
KINDS = {"int8": "int8", "4x": "member", "8x": "member"}


def test_the_integers_alone_are_not_shortened_where_they_are_cheap():
    minutes = 10
    steps = steps_of(KINDS, 500, SECONDS, minutes)
    assert steps["int8"] == 100
    assert steps["4x"] == steps["8x"] < 2000
    taken = sum(SECONDS[kind] * steps[name] for name, kind in KINDS.items())
    assert 0.99 * 60 * minutes < taken + 3 * START <= 60 * minutes + 1


def test_the_integers_alone_are_shortened_with_the_others_where_time_is_short():
    assert steps_of(KINDS, 500, SECONDS, 1.0)["int8"] == 20


def test_a_teacher_that_is_begun_keeps_its_steps_and_the_others_share_the_time_it_leaves():
    kinds, seconds = {"teacher": "teacher", **KINDS}, SECONDS
    alone = steps_of(kinds, 500, seconds, 10.0)
    assert steps_of(kinds, 500, seconds, 10.0, begun=alone["teacher"]) == alone
    for begun in (100, 1500):
        steps = steps_of(kinds, 500, seconds, 10.0, begun=begun)
        assert list(steps) == list(kinds)
        assert steps["teacher"] == begun
        assert (steps["4x"] > alone["4x"]) is (begun < alone["teacher"])
        taken = sum(seconds[kind] * steps[name] for name, kind in kinds.items())
        assert 0.99 * 600 < taken + len(kinds) * START <= 601
    assert steps_of(kinds, 500, seconds, 1.0, begun=1500)["4x"] == 20  # nothing is left


def test_a_step_is_timed_on_a_copy(tiny_teacher):
    model = AutoModelForSequenceClassification.from_pretrained(tiny_teacher).eval()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    seconds = training_seconds(model, 2, 8, repetitions=1)
    assert seconds["member"] == seconds["int8"] > seconds["teacher"] > 0  # which listen to the teacher
    assert not model.training
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert all(parameter.grad is None for parameter in model.parameters())


@pytest.mark.parametrize(("precision", "dtype"), [("32-true", torch.float32), ("bf16-mixed", torch.bfloat16)])
def test_a_step_is_timed_in_the_precision_of_the_trainings(precision, dtype, tiny_teacher):
    model = AutoModelForSequenceClassification.from_pretrained(tiny_teacher)
    seen = set()  # of the copy that is timed, which has the hook, too
    model.classifier.register_forward_hook(lambda module, inputs, output: seen.add(output.dtype))
    training_seconds(model, 2, 8, precision, repetitions=1)
    assert seen == {dtype}
