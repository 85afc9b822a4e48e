import copy
import io
import pickle

import pytest
import torch
import torch._dynamo.testing
from models.families import LISTED, batch, build

from lit_compress.errors import UserError
from lit_compress.models import encoder_layers
from lit_compress.nn import describe, rebuild
from lit_compress.nn.gates import add_layer_gate, gated_layers, layer_gate, remove_layer_gate


def gated(family="bert", closed=()):
    model = build(family)
    for layer in encoder_layers(model):
        add_layer_gate(layer)
    for index in closed:
        layer_gate(encoder_layers(model)[index]).fill_(False)
    return model


def logits(model):
    with torch.no_grad():
        return model(**batch()).logits


@pytest.mark.parametrize("family", LISTED)
def test_an_open_gate_changes_nothing(family):
    assert torch.equal(logits(gated(family)), logits(build(family)))


def test_a_gate_is_one_entry_of_the_state_dict():
    plain, model = build("bert"), gated()
    assert set(model.state_dict()) - set(plain.state_dict()) == {f"bert.encoder.layer.{i}.layer_open" for i in range(3)}
    for layer in encoder_layers(model):
        add_layer_gate(layer)  # twice is once
        assert len(layer._forward_hooks) == 1


@pytest.mark.parametrize("family", LISTED)
def test_parameters_of_a_closed_layer_take_part_with_gradients_of_zero(family):
    model = gated(family, closed=[1])
    model(**batch()).logits.square().sum().backward()
    for index, layer in enumerate(encoder_layers(model)):
        gradients = [p.grad for p in layer.parameters()]
        if family != "xlnet":  # which has biases that never take part, gate or not
            assert all(gradient is not None for gradient in gradients)
        present = [gradient for gradient in gradients if gradient is not None]
        assert any(gradient.any() for gradient in present) == (index != 1)


@pytest.mark.parametrize("before", [True, False])
def test_hidden_states_are_what_comes_out_of_the_gate(before):
    # Transformers records them with hooks of its own, installed when first asked for.
    model = build("bert")
    if before:
        model(**batch(), output_hidden_states=True)
    add_layer_gate(encoder_layers(model)[1])
    layer_gate(encoder_layers(model)[1]).fill_(False)
    states = model(**batch(), output_hidden_states=True).hidden_states
    assert len(states) == 4
    assert torch.equal(states[2], states[1])
    assert not torch.equal(states[3], states[2])


def _pickled(model):
    return pickle.loads(pickle.dumps(model))


def _saved(model):
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


@pytest.mark.parametrize("again", [copy.deepcopy, _pickled, _saved])
def test_a_copy_has_gates_of_its_own(again):
    model = gated(closed=[2])
    other = again(model)
    expected = logits(model)
    assert torch.equal(logits(other), expected)
    layer_gate(encoder_layers(model)[0]).fill_(False)
    assert torch.equal(logits(other), expected)
    layer_gate(encoder_layers(other)[0]).fill_(False)
    assert torch.equal(logits(other), logits(model))


def test_a_gate_can_be_removed():
    model = gated(closed=[0, 2])
    for layer in encoder_layers(model):
        remove_layer_gate(layer)
        remove_layer_gate(layer)
        assert layer_gate(layer) is None
        assert not layer._forward_hooks
    assert not list(gated_layers(model))
    assert torch.equal(logits(model), logits(build("bert")))


def test_the_manifest_brings_gates_back():
    model = gated(closed=[1])
    manifest = describe(model)
    assert manifest == {"gates": {f"bert.encoder.layer.{i}": {} for i in range(3)}}
    again = build("bert")
    rebuild(again, manifest)
    rebuild(again, manifest)
    assert describe(again) == manifest
    again.load_state_dict(model.state_dict(), strict=True)
    assert torch.equal(logits(again), logits(model))
    with pytest.raises(UserError, match=r"'bert\.encoder\.layer\.9', which is not among the layer"):
        rebuild(again, {"gates": {"bert.encoder.layer.9": {}}})


def test_nothing_is_compiled_again_when_a_gate_closes():
    model = gated()
    torch._dynamo.reset()
    counter = torch._dynamo.testing.CompileCounterWithBackend("aot_eager")
    model.compile(backend=counter, fullgraph=True)
    before = logits(model)
    assert counter.frame_count == 1
    layer_gate(encoder_layers(model)[2]).fill_(False)
    after = logits(model)
    assert counter.frame_count == 1
    assert not torch.equal(before, after)
