import torch
from transformers import AutoModelForSequenceClassification

from lit_compress.auto.times import training_seconds


def test_a_step_is_timed_on_a_copy(tiny_teacher):
    model = AutoModelForSequenceClassification.from_pretrained(tiny_teacher).eval()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    seconds = training_seconds(model, 2, 8, repetitions=1)
    assert seconds["member"] == seconds["int8"] > seconds["teacher"] > 0  # which listen to the teacher
    assert not model.training
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert all(parameter.grad is None for parameter in model.parameters())
