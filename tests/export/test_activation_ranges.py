import pytest
import torch
from contracts.training import data, fit, student
from models.families import LISTED, batch, build
from torch import nn
from transformers import BertConfig, BertModel

from lit_compress.errors import UserError
from lit_compress.export.activation_ranges import calibrate, layers_of_static_inputs
from lit_compress.models.manifest_file import manifest_with_scales
from lit_compress.models.pack import Ranges, ranges_of
from lit_compress.strategies import QuantAwareTraining


def entry(scale=0.1, zero_point=0, bits=8, symmetric=False, slot="input"):
    return {
        "scales": {slot: {"scale": scale, "zero_point": zero_point}},
        f"{slot}_quantizer": {"spec": {"bits": bits, "symmetric": symmetric, "momentum": 0.01}},
    }


@pytest.mark.parametrize(
    ("given", "largest"),
    [
        (entry(0.1, 100), 15.5),  # -10 .. 15.5
        (entry(0.1, 200), 20.0),  # -20 .. 5.5
        (entry(0.1, 0), 25.5),
        (entry(0.1, symmetric=True), 12.7),
        (entry(1.0, 7, bits=4), 8.0),
        (entry(float("inf")), None),
        (entry(float("nan")), None),
    ],
)
def test_an_affine_range_becomes_the_symmetric_one_that_holds_it(given, largest):
    (found,) = ranges_of({"linears": {"x": given}}).values()
    assert found.largest_input == (None if largest is None else pytest.approx(largest))


def test_outputs_and_nothing():
    assert ranges_of({}) == {}
    found = ranges_of(
        {"linears": {"x": entry(0.1, 0, slot="output"), "y": {"scales": {"weight": [0.1, 0.2]}}, "z": {}}}
    )
    assert found["x"].largest_output == pytest.approx(25.5)
    assert found["x"].largest_input is None
    assert found["y"] == found["z"] == Ranges()


@pytest.mark.parametrize(
    "wrong", [{"linears": {"x": 1}}, {"linears": []}, {"linears": {"x": {"scales": {"input": 1}}}}]
)
def test_a_damaged_manifest_is_refused(wrong):
    with pytest.raises(UserError, match=r"compression.json: damaged"):
        ranges_of(wrong)


@pytest.mark.parametrize("activations", ["uint8", "int8"])
def test_ranges_of_a_student_hold_what_its_observers_saw(activations, tiny_teacher, tiny_data, tmp_path):
    module = student(tiny_teacher)
    strategy = QuantAwareTraining(start="0%", activations=activations)
    fit(module, data(tiny_data, tiny_teacher), [strategy], tmp_path, max_epochs=1)
    found = ranges_of(manifest_with_scales(module.student))
    assert len(found) == 12
    for name, known in found.items():
        quantizer = module.student.get_submodule(name).input_quantizer
        largest = max(-quantizer.low.item(), quantizer.high.item())
        # The affine grid moves by up to half a step, so that 0 is on it.
        step = 0 if activations == "int8" else quantizer.qparams()[0].item()
        assert known.largest_input == pytest.approx(largest, abs=step * 0.51 + 1e-5)


@pytest.mark.parametrize("family", LISTED)
def test_linears_after_attention_and_activation(family):
    model = build(family)
    names = layers_of_static_inputs(model)
    assert len(names) in (3, 6)  # XLNet's attention has no linear
    assert all(isinstance(model.get_submodule(name), nn.Linear) for name in names)


def encoder():
    torch.manual_seed(0)
    size = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 24}
    return BertModel(BertConfig(vocab_size=30, max_position_embeddings=20, **size)).eval()


def test_ranges_are_those_of_real_tokens():
    model = encoder()
    names = layers_of_static_inputs(model)
    inputs = batch(rows=3, length=7)
    short = inputs | {"attention_mask": torch.tensor([[1] * 7, [1] * 4 + [0] * 3, [1] + [0] * 6])}
    seen = {}
    for name in names:
        model.get_submodule(name).register_forward_pre_hook(lambda _, x, name=name: seen.update({name: x[0].detach()}))
    found = calibrate(model, [short], names, share=1.0)
    real = short["attention_mask"].bool()
    assert found == {name: seen[name][real].abs().max().item() for name in names}
    model.get_submodule(names[0])._forward_pre_hooks.clear()
    assert calibrate(model, [short], names[:1], share=0.5)[names[0]] < found[names[0]]


def test_of_several_batches_the_largest_range_counts():
    model = encoder()
    names = layers_of_static_inputs(model)
    batches = [batch(), {"input_ids": torch.full((1, 3), 5)}]
    single = [calibrate(model, [one], names) for one in batches]
    assert calibrate(model, batches, names) == {name: max(one[name] for one in single) for name in names}
    assert not any(module._forward_hooks for module in model.modules())


def test_a_layer_that_is_repeated_counts_every_time():
    model = build("albert")
    (name,) = [name for name in layers_of_static_inputs(model) if name.endswith("ffn_output")]
    seen = []
    handle = model.get_submodule(name).register_forward_hook(lambda _, x, __: seen.append(x[0].abs().max().item()))
    found = calibrate(model, [batch()], [name], share=1.0)
    assert len(seen) == 3
    assert found[name] == max(seen)
    handle.remove()


def test_inputs_without_a_range_are_refused():
    model = encoder()
    with torch.no_grad():
        model.encoder.layer[0].intermediate.dense.weight.fill_(torch.nan)
    with pytest.raises(
        UserError, match=r"--calibration_batches: inputs of 'encoder.layer.0.output.dense' are all 0, or"
    ):
        calibrate(model, [batch()], ["encoder.layer.0.output.dense"])
