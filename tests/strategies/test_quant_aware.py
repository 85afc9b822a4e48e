import pytest
import torch
from contracts.training import STEPS, data, fit, student
from lightning.pytorch import Callback

from lit_compress.errors import UserError
from lit_compress.nn import DynamicTokenQuantizer, MovingAverageQuantizer, compressible_layers
from lit_compress.strategies import QuantAwareTraining


class Watch(Callback):
    """Whether weights and inputs are quantized, and observed, in the forward pass of each step."""

    def __init__(self):
        self.states, self.scales = [], []

    def on_before_backward(self, run, module, loss):
        layers = [layer for _, layer in compressible_layers(module.student)]
        quantizers = [q for layer in layers for q in (layer.weight_quantizer, layer.input_quantizer) if q is not None]
        (state,) = {(q.enabled, q.observing) for q in quantizers}
        self.states.append(state)
        self.scales.append(torch.cat([layer.weight_quantizer.scale.reshape(-1).clone() for layer in layers]))


@pytest.fixture
def quantize(tiny_teacher, tiny_data, tmp_path):
    def run(**arguments):
        module, watch = student(tiny_teacher), Watch()
        fit(module, data(tiny_data, tiny_teacher), [QuantAwareTraining(**arguments), watch], tmp_path)
        return module, watch

    return run


OFF, OBSERVING, FROZEN = (False, False), (True, True), (True, False)
WINDOWS = {
    "from the start": ({"start": "0%", "freeze_observers": None}, [OBSERVING] * 8),
    "later": ({"start": "50%", "freeze_observers": None}, [OFF] * 4 + [OBSERVING] * 4),
    "frozen": ({"start": "2 steps", "freeze_observers": "5 steps"}, [OFF] * 2 + [OBSERVING] * 3 + [FROZEN] * 3),
    "epochs": ({"start": "0.5 epochs", "freeze_observers": "1 epochs"}, [OFF] * 2 + [OBSERVING] * 2 + [FROZEN] * 4),
    "other units": ({"start": "25%", "freeze_observers": "1.5 epochs"}, [OFF] * 2 + [OBSERVING] * 4 + [FROZEN] * 2),
    "frozen at the end": ({"start": "0%", "freeze_observers": "100%"}, [OBSERVING] * 8),
}


@pytest.mark.parametrize(("arguments", "expected"), WINDOWS.values(), ids=WINDOWS)
def test_switches_follow_the_step(arguments, expected, quantize):
    _, watch = quantize(**arguments)
    assert watch.states == expected


def test_scales_follow_the_weights_until_they_are_frozen(quantize):
    _, watch = quantize(start="2 steps", freeze_observers="5 steps")
    assert not watch.scales[1].any()
    moved = [not torch.equal(watch.scales[step - 1], watch.scales[step]) for step in range(1, STEPS)]
    assert moved == [False, True, True, True, False, False, False]


@pytest.mark.parametrize(
    ("activations", "kind", "symmetric"),
    [
        ("uint8", MovingAverageQuantizer, False),
        ("int8", MovingAverageQuantizer, True),
        ("dynamic", DynamicTokenQuantizer, None),
        ("none", type(None), None),
    ],
)
@pytest.mark.parametrize("per_channel", [True, False])
def test_arguments_choose_the_quantizers(activations, kind, symmetric, per_channel, quantize):
    module, _ = quantize(start="0%", activations=activations, per_channel=per_channel, weight_bits=4, momentum=0.5)
    for _, layer in compressible_layers(module.student):
        spec = {"out_features": layer.out_features, "bits": 4, "per_channel": per_channel}
        assert layer.weight_quantizer.spec() == spec
        assert type(layer.input_quantizer) is kind
        if symmetric is not None:
            assert layer.input_quantizer.spec() == {"bits": 8, "symmetric": symmetric, "momentum": 0.5}


WRONG = {
    "frozen before it starts": (
        {"start": "50%", "freeze_observers": "20%"},
        ["QuantAwareTraining.freeze_observers", "'20%'", "'50%'"],
    ),
    "no unit": ({"start": "5"}, ["QuantAwareTraining.start", "'5'", "steps"]),
    "no unit to freeze": ({"freeze_observers": "90"}, ["QuantAwareTraining.freeze_observers", "'90'"]),
    "one bit": ({"weight_bits": 1}, ["QuantAwareTraining.weight_bits", "1"]),
    "sixteen bits": ({"weight_bits": 16}, ["QuantAwareTraining.weight_bits", "16", "8"]),
    "no momentum": ({"momentum": 0.0}, ["QuantAwareTraining.momentum", "0.0"]),
    "momentum above one": ({"momentum": 1.5}, ["QuantAwareTraining.momentum", "1.5"]),
    "unknown activations": ({"activations": "int4"}, ["QuantAwareTraining.activations", "'int4'", "uint8"]),
}


@pytest.mark.parametrize(("arguments", "words"), WRONG.values(), ids=WRONG)
def test_wrong_arguments_are_one_line(arguments, words):
    with pytest.raises(UserError) as caught:
        QuantAwareTraining(**arguments)
    assert "\n" not in str(caught.value)
    assert [word for word in words if word not in str(caught.value)] == []


WRONG_IN_A_RUN = {
    "starts at the end": ({"start": "100%", "freeze_observers": None}, ["QuantAwareTraining.start", "step 8"]),
    "starts after it": ({"start": "3 epochs", "freeze_observers": None}, ["QuantAwareTraining.start", "step 12"]),
    "frozen at once": ({"start": "2 steps", "freeze_observers": "2 steps"}, ["freeze_observers", "step 2"]),
    "frozen before it starts": ({"start": "6 steps", "freeze_observers": "1 epochs"}, ["step 4", "step 6"]),
    "no target": ({"targets": ["*.nothing"]}, ["QuantAwareTraining.targets", "'*.nothing'"]),
}


@pytest.mark.parametrize(("arguments", "words"), WRONG_IN_A_RUN.values(), ids=WRONG_IN_A_RUN)
def test_what_does_not_fit_the_run_is_an_error_before_the_first_step(arguments, words, quantize, tmp_path):
    with pytest.raises(UserError) as caught:
        quantize(**arguments)
    assert "\n" not in str(caught.value)
    assert [word for word in words if word not in str(caught.value)] == []
    assert not list(tmp_path.rglob("*.ckpt"))


def test_two_of_a_kind_on_the_same_layers_are_an_error(tiny_teacher, tiny_data, tmp_path):
    """The second would do nothing, or undo what the first does."""
    strategies = [QuantAwareTraining(start="0%", weight_bits=4), QuantAwareTraining(start="50%", weight_bits=8)]
    with pytest.raises(UserError, match="QuantAwareTraining"):
        fit(student(tiny_teacher), data(tiny_data, tiny_teacher), strategies, tmp_path)


def test_two_of_a_kind_on_different_layers(tiny_teacher, tiny_data, tmp_path):
    module = student(tiny_teacher)
    strategies = [
        QuantAwareTraining(start="0%", weight_bits=4, activations="none", targets=["*.attention.*"]),
        QuantAwareTraining(start="50%", freeze_observers=None, ignore=["*.attention.*"]),
    ]
    fit(module, data(tiny_data, tiny_teacher), strategies, tmp_path)
    bits = {name: layer.weight_quantizer.bits for name, layer in compressible_layers(module.student)}
    assert all(width == (4 if ".attention." in name else 8) for name, width in bits.items())
    assert set(bits.values()) == {4, 8}
