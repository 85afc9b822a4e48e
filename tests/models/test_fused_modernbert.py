"""What ModernBERT has that BERT lacks: norms first, gates, rotations, windows, and no encoder of its own."""

import copy
import json
from dataclasses import replace

import pytest
import torch
from models.families import build
from models.packing import dequantized, inputs, packed, real, relative_error
from safetensors.torch import load_file
from transformers import (
    AutoModel,
    AutoModelForMaskedLM,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
    AutoTokenizer,
    ModernBertModel,
)

from lit_compress.errors import UserError
from lit_compress.export import pack, save_packed
from lit_compress.models import drop_layers, layer_linears, remove_heads, remove_neurons
from lit_compress.models.fused import fuse, fused_layers, unfuse, unfused_reasons
from lit_compress.models.fused_report import describe_fused
from lit_compress.ops.dispatch import forced

MEDIUM = {"hidden_size": 128, "num_attention_heads": 4, "intermediate_size": 256, "num_hidden_layers": 4}


def encoder(auto=AutoModel, **settings):
    return build("modernbert", auto, **({"initializer_range": 0.1} | MEDIUM | settings))


def long_inputs(length=100):
    """Two texts, longer than a window, with padding on the left and in between."""
    ids = torch.randint(3, 30, (2, length), generator=torch.Generator().manual_seed(0))
    mask = torch.ones_like(ids)
    mask[0, :30] = 0
    mask[1, 20:55] = 0
    return {"input_ids": ids, "attention_mask": mask}


def states(model, given):
    with torch.no_grad():
        return model(**given).last_hidden_state[given["attention_mask"].bool()]


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_windows_and_rotations_count_padding(attention):
    model = packed(encoder(local_attention=16, max_position_embeddings=200, attn_implementation=attention))
    expected = states(dequantized(model), long_inputs())
    assert relative_error(states(fuse(model), long_inputs()), expected) < 1e-5


@pytest.mark.parametrize(
    "rotations",
    [
        {"full_attention": {"rope_theta": 1e6}, "sliding_attention": {"rope_theta": 4.0}},
        {"full_attention": {"rope_theta": 1e4, "rope_type": "linear", "factor": 3.0}, "sliding_attention": {}},
    ],
    ids=["bases", "stretched"],
)
def test_each_kind_of_layer_has_its_rotation(rotations):
    default = {"rope_type": "default", "rope_theta": 1e4}
    settings = {"rope_parameters": {kind: default | given for kind, given in rotations.items()}}
    model = packed(encoder(local_attention=16, max_position_embeddings=200, **settings))
    expected = states(dequantized(model), long_inputs())
    assert relative_error(states(fuse(model), long_inputs()), expected) < 1e-5
    for layer in fused_layers(model):
        layer.steps = replace(layer.steps, rotation="full_attention")
    assert relative_error(states(model, long_inputs()), expected) > 1e-2


@pytest.mark.parametrize("choice", ["kernel", "reference"])
def test_windows_and_rotations_in_8_bit(choice):
    model = packed(encoder(local_attention=16))
    expected = states(dequantized(model), long_inputs())
    with forced(choice):
        assert 0 < relative_error(states(fuse(model), long_inputs()), expected) < 2e-2


def test_local_and_global_layers_differ_in_window_and_rotation():
    layers = [layer.steps for layer in fused_layers(fuse(packed(encoder(local_attention=16))))]
    assert [steps.window for steps in layers] == [None, 8, 8, None]
    assert [steps.rotation.split("_")[0] for steps in layers] == ["full", "sliding", "sliding", "full"]
    assert [steps.attention_norm is None for steps in layers] == [True, False, False, False]


@pytest.mark.parametrize("dtype", ["int8", "fp8"])
@pytest.mark.parametrize("format", ["dense", "tall_blocks"])
def test_formats_and_dtypes(format, dtype):
    model = packed(encoder(), format, dtype)
    expected = states(dequantized(model), inputs())
    fuse(model)
    for choice, limit in (("dense", 1e-5), ("kernel", 2e-2 if dtype == "int8" else 0.1)):
        with forced(choice):
            assert relative_error(states(model, inputs()), expected) < limit
    with forced("kernel"):
        ours = states(model, inputs())
    with forced("reference"):
        assert relative_error(ours, states(model, inputs())) < 1e-3


def test_biases_and_another_activation():
    settings = {"attention_bias": True, "mlp_bias": True, "norm_bias": True, "hidden_activation": "relu"}
    dense = encoder(**settings)
    with torch.no_grad():
        for name, parameter in dense.named_parameters():
            if name.endswith("bias"):
                parameter.normal_()
    model = packed(dense)
    expected = states(dequantized(model), inputs())
    for choice, limit in (("dense", 1e-5), ("kernel", 2e-2)):
        with forced(choice):
            got = states(fuse(model), inputs())
        assert relative_error(got, expected) < limit
    assert not fuse(model)(**inputs()).last_hidden_state[1, 3:].any()


@pytest.mark.parametrize("format", ["dense", "tall_blocks"])
def test_layers_of_different_shapes(format):
    dense = encoder()
    remove_heads(dense, 1, torch.tensor([True, False, False, True]))
    remove_heads(dense, 3, torch.tensor([True, False, False, False]))
    remove_neurons(dense, 2, torch.arange(256) < 96)
    model = packed(dense, format)
    expected = states(dequantized(model), inputs())
    assert [layer.steps.heads for layer in fused_layers(fuse(model))] == [4, 2, 4, 1]
    for choice, limit in (("dense", 1e-5), ("kernel", 2e-2)):
        with forced(choice):
            assert relative_error(states(model, inputs()), expected) < limit


def test_fewer_layers():
    dense = encoder()
    drop_layers(dense, [0, 2, 3])
    model = packed(dense)
    expected = states(dequantized(model), long_inputs(60))
    assert relative_error(states(fuse(model), long_inputs(60)), expected) < 1e-5


def test_static_scales():
    model = packed(encoder())
    expected = states(dequantized(model), inputs())
    largest = {}
    plain = dequantized(model)
    names = [name for name in layer_linears(plain) if name.endswith("Wo")]
    for name in names:
        plain.get_submodule(name).register_forward_pre_hook(
            lambda _, given, name=name: largest.__setitem__(name, given[0].abs().amax())
        )
    states(plain, inputs())
    for name in names:
        model.get_submodule(name).input_scale = (largest[name] / 127).reshape(1)
    fuse(model)
    assert [layer["launches"] for layer in describe_fused(model, device="h200")] == [9, 9, 9, 9]
    for choice in ("kernel", "reference"):
        with forced(choice):
            assert 0 < relative_error(states(model, inputs()), expected) < 2e-2


def test_launches_are_counted_as_documented():
    model = fuse(packed(encoder()))
    assert [layer["launches"] for layer in describe_fused(model, device="h200")] == [10, 10, 10, 10]
    # No rounding before the first layer; passes of their own for two residuals, the activation and the gate.
    assert [layer["launches"] for layer in describe_fused(model, device="cpu")] == [11, 12, 12, 12]


@pytest.mark.parametrize(
    ("auto", "settings"),
    [
        (AutoModelForSequenceClassification, {"classifier_pooling": "cls"}),
        (AutoModelForSequenceClassification, {"classifier_pooling": "mean"}),
        (AutoModelForTokenClassification, {}),
        (AutoModelForMaskedLM, {}),
        (AutoModelForMaskedLM, {"sparse_prediction": True}),
    ],
)
def test_heads_and_losses_are_those_of_transformers(auto, settings):
    model = packed(encoder(auto, **settings))
    labels = torch.tensor([0, 1, 1])
    if auto is not AutoModelForSequenceClassification:
        labels = (inputs()["input_ids"] % 2).where(inputs()["attention_mask"].bool(), -100)
    expected = dequantized(model)(**inputs(), labels=labels, output_hidden_states=True)
    got = fuse(model)(**inputs(), labels=labels, output_hidden_states=True)
    assert torch.allclose(got.loss, expected.loss, atol=1e-5)
    assert len(got.hidden_states) == len(expected.hidden_states) == 5
    if got.logits.shape[:2] == (3, 6):
        got.logits, expected.logits = real(got.logits), real(expected.logits)
    assert relative_error(got.logits, expected.logits) < 1e-5
    assert len(model(**inputs(), return_dict=False)) == 1


def test_outputs_as_tuples():
    model = packed(encoder())
    with torch.no_grad():
        expected = dequantized(model)(**inputs(), output_hidden_states=True, return_dict=False)
        got = fuse(model)(**inputs(), output_hidden_states=True, return_dict=False)
    assert len(got) == len(expected) == 2
    assert len(got[1]) == len(expected[1]) == 5
    assert all(relative_error(real(a), real(b)) < 1e-5 for a, b in zip(got[1], expected[1], strict=True))
    assert len(model(**inputs(), return_dict=False)) == 1


def test_positions_and_embeddings_can_be_given():
    model = packed(encoder())
    given = inputs()
    positions = torch.tensor([[0, 2, 4, 6, 8, 10], [3, 4, 5, 6, 7, 8], [0, 1, 2, 3, 4, 5]])
    expected = states(dequantized(model), given | {"position_ids": positions})
    assert relative_error(states(fuse(model), given | {"position_ids": positions}), expected) < 1e-5
    table = model.embeddings.tok_embeddings(given["input_ids"])
    embedded = {"inputs_embeds": table, "attention_mask": given["attention_mask"]}
    assert torch.equal(states(model, embedded), states(model, given))


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"output_attentions": True}, "output_attentions"),
        ({"attention_mask": {"full_attention": None, "sliding_attention": None}}, "a mask for each kind"),
        ({"attention_mask": torch.ones(3, 1, 6, 6)}, r"shape \(3, 1, 6, 6\)"),
        ({"inputs_embeds": torch.zeros(3, 6, 128)}, "exactly one"),
    ],
)
def test_what_is_refused(given, message):
    with pytest.raises(UserError, match=message):
        fuse(packed(encoder()))(**(inputs("none") | given))


def test_other_activations_stay_plain():
    model = fuse(packed(encoder(hidden_activation="silu")))
    assert not fused_layers(model)
    assert unfused_reasons(model) == ["no kernel computes the activation 'silu'"] * 4


def test_training_is_that_of_the_plain_model():
    model = packed(encoder(attn_implementation="eager"))
    fused = fuse(copy.deepcopy(model)).train()
    model.train()
    for each in (model, fused):
        each(**long_inputs(60)).last_hidden_state.square().sum().backward()
    ours, theirs = (each.embeddings.tok_embeddings.weight.grad for each in (fused, model))
    assert theirs.abs().sum() > 0
    assert torch.equal(ours, theirs)
    # Transformers finds what its class can be asked for.
    assert len(fused(**inputs(), output_hidden_states=True).hidden_states) == 5
    assert len(fused(**inputs(), output_attentions=True).attentions) == 4


HEADS = [AutoModel, AutoModelForSequenceClassification, AutoModelForTokenClassification, AutoModelForMaskedLM]


@pytest.mark.parametrize("auto", HEADS)
def test_a_folder_is_loaded_fused_and_saved_as_it_was(auto, tmp_path, tiny_teacher):
    model = pack(encoder(auto), "dense", "int8")
    save_packed(model, AutoTokenizer.from_pretrained(tiny_teacher), tmp_path / "packed")
    loaded = auto.from_pretrained(tmp_path / "packed")
    assert len(fused_layers(loaded)) == 4
    with torch.no_grad():
        expected, got = dequantized(model)(**inputs())[0], loaded(**inputs())[0]
    if got.shape[:2] == (3, 6):
        got, expected = real(got), real(expected)
    assert relative_error(got, expected) < 1e-5
    loaded.save_pretrained(tmp_path / "again")
    first, second = (load_file(tmp_path / name / "model.safetensors") for name in ("packed", "again"))
    assert list(first) == list(second)
    assert all(torch.equal(first[name], second[name]) for name in first)
    again = auto.from_pretrained(tmp_path / "again")
    assert torch.equal(again(**inputs())[0], loaded(**inputs())[0])
    assert type(unfuse(loaded)) is type(model)
    assert type(loaded.base_model) is ModernBertModel


def test_a_base_model_alone_has_the_class_of_transformers(tmp_path, tiny_teacher):
    model = pack(encoder(AutoModelForSequenceClassification), "dense", "int8")
    save_packed(model, AutoTokenizer.from_pretrained(tiny_teacher), tmp_path / "packed")
    base = AutoModel.from_pretrained(tmp_path / "packed")
    assert isinstance(base, ModernBertModel)
    base.save_pretrained(tmp_path / "base")
    assert json.loads((tmp_path / "base/config.json").read_text())["architectures"] == ["ModernBertModel"]
    again = AutoModel.from_pretrained(tmp_path / "base")
    assert torch.equal(states(again, inputs()), states(base, inputs()))
    assert torch.equal(states(again, inputs()), states(fuse(model.base_model), inputs()))
    # A new model of the class runs, too: none of its layers is fused.
    other = type(base)(copy.deepcopy(model.config)).eval()
    other.load_state_dict(dequantized(model).base_model.state_dict())
    assert relative_error(states(other, inputs()), states(base, inputs())) < 1e-5


def test_loading_weights_changes_what_runs():
    model, other = fuse(packed(encoder())), fuse(packed(encoder(initializer_range=0.2)))
    states(model, inputs())  # keeps dequantized weights
    model.load_state_dict(other.state_dict())
    for choice in ("kernel", "dense"):
        with forced(choice):
            assert torch.equal(states(model, inputs()), states(other, inputs()))
