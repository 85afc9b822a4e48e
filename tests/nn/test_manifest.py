import json

import pytest
import torch
from torch import nn

from lit_compress.errors import UserError
from lit_compress.nn import (
    CompressibleLinear,
    DynamicTokenQuantizer,
    MinMaxWeightQuantizer,
    MovingAverageQuantizer,
    compressible_layers,
    describe,
    make_compressible,
    rebuild,
)

PLAIN = {"mask": False, "weight_quantizer": None, "input_quantizer": None, "output_quantizer": None}


def network():
    return nn.Sequential(nn.Linear(6, 5), nn.GELU(), nn.Linear(5, 4), nn.Linear(4, 3), nn.Linear(3, 2))


def compressed():
    """One layer with everything, one with other kinds, one with empty slots, one untouched."""
    model = network()
    layers = make_compressible(model, ["0", "2", "3"])
    layers["0"].add_mask()
    layers["0"].weight_mask[:, ::2] = False
    layers["0"].weight_quantizer = MinMaxWeightQuantizer(5, bits=4, per_channel=False)
    layers["0"].input_quantizer = MovingAverageQuantizer(symmetric=True, momentum=0.5)
    layers["2"].weight_quantizer = MinMaxWeightQuantizer(4)
    layers["2"].input_quantizer = DynamicTokenQuantizer()
    return model


def through_json(manifest):
    return json.loads(json.dumps(manifest))


def test_describe():
    model = compressed()
    model[0].input_quantizer.observing = False
    model[2].weight_quantizer.enabled = False
    assert describe(model)["linears"] == {
        "0": {
            "mask": True,
            "weight_quantizer": {
                "kind": "MinMaxWeightQuantizer",
                "spec": {"out_features": 5, "bits": 4, "per_channel": False},
                "enabled": True,
                "observing": True,
            },
            "input_quantizer": {
                "kind": "MovingAverageQuantizer",
                "spec": {"bits": 8, "symmetric": True, "momentum": 0.5},
                "enabled": True,
                "observing": False,
            },
            "output_quantizer": None,
        },
        "2": {
            "mask": False,
            "weight_quantizer": {
                "kind": "MinMaxWeightQuantizer",
                "spec": {"out_features": 4, "bits": 8, "per_channel": True},
                "enabled": False,
                "observing": True,
            },
            "input_quantizer": {
                "kind": "DynamicTokenQuantizer",
                "spec": {"bits": 8},
                "enabled": True,
                "observing": True,
            },
            "output_quantizer": None,
        },
        "3": PLAIN,
    }


def test_a_plain_model_has_an_empty_manifest_and_gets_nothing_from_it():
    model = network()
    assert describe(model) == {}
    rebuild(model, {})
    assert not list(compressible_layers(model))


def test_rebuild_gives_the_structure_that_the_state_dict_needs():
    model, x = compressed(), torch.randn(3, 6)
    model(x)  # ranges that must come back
    for flags in (model[0].weight_quantizer, model[0].input_quantizer):
        flags.observing = False
    twin = network()
    rebuild(twin, through_json(describe(model)))
    twin.load_state_dict(model.state_dict(), strict=True)
    assert describe(twin) == describe(model)
    assert torch.equal(twin.eval()(x), model.eval()(x))


def test_rebuild_brings_scores_back():
    model, twin = network(), network()
    make_compressible(model, ["0", "2"])["2"].add_mask_scores()
    assert describe(model)["linears"] == {"0": PLAIN, "2": PLAIN | {"mask": True, "mask_scores": True}}
    for _ in range(2):
        rebuild(twin, through_json(describe(model)))
    twin.load_state_dict(model.state_dict(), strict=True)
    assert describe(twin) == describe(model)


def test_rebuild_brings_the_switches_back():
    model = compressed()
    model[0].weight_quantizer.enabled = model[2].weight_quantizer.observing = False
    twin = compressed()
    rebuild(twin, through_json(describe(model)))
    assert describe(twin) == describe(model)


def test_rebuild_twice_changes_nothing_more():
    model, x = compressed(), torch.randn(3, 6)
    model(x)
    manifest, layers = describe(model), dict(compressible_layers(model))
    state = {name: value.clone() for name, value in model.state_dict().items()}
    for _ in range(2):
        rebuild(model, manifest)
    assert all(layer is layers[name] for name, layer in compressible_layers(model))
    assert describe(model) == manifest
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())


def test_rebuild_replaces_a_quantizer_of_another_kind():
    # Otherwise the ranges of the checkpoint would be read by a grid that they were not made for.
    model, manifest = compressed(), describe(compressed())
    model[0].input_quantizer = MovingAverageQuantizer(symmetric=False)
    model[2].input_quantizer = MovingAverageQuantizer()
    rebuild(model, manifest)
    assert describe(model) == manifest


def test_rebuild_keeps_the_mode_of_the_layer():
    model = network().eval()
    rebuild(model, describe(compressed()))
    assert not any(module.training for module in model.modules())


@pytest.mark.parametrize("name", ["7", "1", "0.inner", ""])
def test_a_layer_that_is_no_linear_of_the_model(name):
    with pytest.raises(UserError, match=f"checkpoint: .*{name!r}") as caught:
        rebuild(network(), {"linears": {"0": PLAIN, name: PLAIN}})
    assert "\n" not in str(caught.value)


def test_an_unknown_kind_of_quantizer():
    entry = {"kind": "TernaryQuantizer", "spec": {}, "enabled": True, "observing": True}
    with pytest.raises(UserError, match=r"checkpoint: .*'TernaryQuantizer'.*MinMaxWeightQuantizer") as caught:
        rebuild(network(), {"linears": {"0": PLAIN | {"input_quantizer": entry}}})
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("kind", ["input_quantizer", "ActivationType", "FakeQuantizer"])
def test_what_stands_beside_the_quantizers_is_none(kind):
    entry = {"kind": kind, "spec": {"activations": "int8"}, "enabled": True, "observing": True}
    with pytest.raises(UserError, match=f"checkpoint: unknown quantizer '{kind}'"):
        rebuild(network(), {"linears": {"0": PLAIN | {"input_quantizer": entry}}})


def test_an_empty_entry_makes_a_layer_without_slots():
    model = network()
    rebuild(model, {"linears": {"4": PLAIN}})
    assert isinstance(model[4], CompressibleLinear)
    assert list(model.state_dict()) == list(network().state_dict())


def test_an_unknown_kind_of_part():
    with pytest.raises(UserError, match=r"checkpoint: .*'convolutions'.*linears"):
        rebuild(network(), {"convolutions": {"0": {}}})
