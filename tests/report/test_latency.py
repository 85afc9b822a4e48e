from types import SimpleNamespace

import pytest
import torch
from transformers import AutoModelForSequenceClassification

from lit_compress.report import latency
from lit_compress.report.latency import latencies


class Stopwatch:
    """A clock that only models move."""

    def __init__(self):
        self.now = 0.0

    def perf_counter(self):
        return self.now


class Model:
    """Takes the given seconds, one call after the other."""

    device = torch.device("cpu")
    config = SimpleNamespace(vocab_size=11)

    def __init__(self, name, clock, seconds, calls):
        self.name, self.clock, self.seconds, self.calls = name, clock, iter(seconds), calls

    def __call__(self, input_ids, attention_mask):
        self.calls.append((self.name, input_ids.clone(), attention_mask))
        self.clock.now += next(self.seconds)


@pytest.fixture
def measured(monkeypatch):
    clock, calls = Stopwatch(), []
    monkeypatch.setattr(latency, "time", clock)
    models = {
        "dense": Model("dense", clock, [99, 3.1, 3, 3.25], calls),
        "compressed": Model("compressed", clock, [99, 0.5, 0.5, 0.625], calls),
    }
    return latencies(models, batch_size=2, tokens=5, repetitions=3), calls


def test_milliseconds_of_each_call_without_the_warm_up(measured):
    times, busy = measured[0]
    assert list(times) == ["dense", "compressed"]
    assert times["dense"] == pytest.approx([3100, 3000, 3250])
    assert times["compressed"] == pytest.approx([500, 500, 625])
    assert busy == {}


def test_models_take_turns(measured):
    assert [name for name, *_ in measured[1]] == ["dense", "compressed"] * 4


def test_inputs_are_full_and_legal(measured):
    for _, ids, mask in measured[1]:
        assert ids.shape == mask.shape == (2, 5)
        assert mask.all()
        assert ids.min() >= 0
        assert ids.max() < 11


@pytest.mark.parametrize("repetitions", [1, 2])
def test_real_models(tiny_teacher, repetitions):
    model = AutoModelForSequenceClassification.from_pretrained(tiny_teacher).eval()
    got, _ = latencies({"a": model, "b": model, "c": model}, 1, 16, repetitions)
    assert list(got) == ["a", "b", "c"]
    assert all(0 < value < 60_000 for times in got.values() for value in times)
    assert all(len(times) == repetitions for times in got.values())
    assert not any(p.grad is not None for p in model.parameters())
