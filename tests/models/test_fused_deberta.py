"""What DeBERTa has that BERT lacks: products of queries and keys with positions, and all hidden states asked for."""

import pytest
import torch
from models import families
from models.packing import build, dequantized, inputs, packed, real, relative_error
from safetensors.torch import load_file
from transformers import AutoModel, AutoModelForMaskedLM, AutoModelForSequenceClassification, AutoTokenizer

from lit_compress.errors import UserError
from lit_compress.export import pack, save_packed
from lit_compress.models import layer_linears, remove_heads
from lit_compress.models.fused import fuse, fused_layers, unfuse, unfused_reasons
from lit_compress.models.fused_report import describe_fused
from lit_compress.ops.dispatch import forced

MEDIUM = {"hidden_size": 64, "num_attention_heads": 4, "intermediate_size": 128, "num_hidden_layers": 2}


def encoder(auto=AutoModel, **settings):
    return build("deberta-v2", auto, **({"initializer_range": 0.2, "max_position_embeddings": 200} | MEDIUM | settings))


def long_inputs(length=150):
    """Two texts with padding on the left and in between."""
    ids = torch.randint(3, 30, (2, length), generator=torch.Generator().manual_seed(0))
    mask = torch.ones_like(ids)
    mask[0, : length // 3] = 0
    mask[1, length // 5 : length // 2] = 0
    return {"input_ids": ids, "attention_mask": mask}


def states(model, given):
    with torch.no_grad():
        return model(**given).last_hidden_state[given["attention_mask"].bool()]


@pytest.mark.parametrize("length", [1, 9, 150])
@pytest.mark.parametrize(
    "settings",
    [
        {"position_buckets": 256, "max_relative_positions": -1, "position_biased_input": False, "type_vocab_size": 0},
        {"position_buckets": 16},
        {"position_buckets": 16, "max_relative_positions": 40},
        {"position_buckets": -1, "max_relative_positions": 30},
        {"position_buckets": 64, "pos_att_type": ["c2p"]},
        {"position_buckets": 64, "pos_att_type": "p2c"},
        {"position_buckets": 16, "norm_rel_ebd": "none"},
        {"relative_attention": False},
        {"pos_att_type": None},
    ],
    ids=["as v3", "buckets", "few", "no buckets", "c2p", "p2c", "no norm", "absolute", "neither"],
)
def test_relative_positions(settings, length):
    model = packed(encoder(**settings))
    given = long_inputs(length) if length > 1 else {"input_ids": torch.tensor([[5]])}
    given.setdefault("attention_mask", torch.ones(1, 1))
    expected = states(dequantized(model), given)
    fuse(model)
    assert len(fused_layers(model)) == 2
    for choice, limit in (("dense", 1e-5), ("kernel", 3e-2), ("reference", 3e-2)):
        with forced(choice):
            assert relative_error(states(model, given), expected) < limit


@pytest.mark.parametrize("kind", ["c2p", "p2c"])
def test_positions_make_a_difference(kind):
    model = fuse(packed(encoder(pos_att_type=[kind])))
    before = states(model, inputs("full"))
    with torch.no_grad():
        model.encoder.rel_embeddings.weight.copy_(torch.randn(16, 64))
    assert relative_error(states(model, inputs("full")), before) > 1e-2


def test_layers_with_different_numbers_of_heads():
    dense = encoder()
    remove_heads(dense, 1, torch.tensor([True, False, False, True]))
    model = packed(dense)
    expected = states(dequantized(model), long_inputs())
    assert [layer.steps.heads for layer in fused_layers(fuse(model))] == [4, 2]
    assert relative_error(states(model, long_inputs()), expected) < 1e-5


def test_static_scales():
    model = packed(encoder())
    expected = states(dequantized(model), long_inputs())
    for name, linear in layer_linears(dequantized(model)).items():
        if name.endswith(("attention.output.dense", "output.dense")):
            assert linear.weight.shape[0] == 64
            model.get_submodule(name).input_scale = torch.tensor([0.05])
    fuse(model)
    assert [layer["launches"] for layer in describe_fused(model, device="h200")] == [11, 11]
    for choice in ("kernel", "reference"):
        with forced(choice):
            assert 0 < relative_error(states(model, long_inputs()), expected) < 0.1


def test_launches_are_counted_as_documented():
    model = fuse(packed(encoder()))
    assert [layer["launches"] for layer in describe_fused(model, device="h200")] == [13, 13]
    assert [layer["launches"] for layer in describe_fused(model, device="cpu")] == [13, 13]
    one = fuse(packed(encoder(pos_att_type=["c2p"])))
    assert [layer["launches"] for layer in describe_fused(one, device="h200")] == [12, 12]


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        ({"conv_kernel_size": 3}, "a convolution after the first layer reads the tokens around each"),
        ({"share_att_key": False}, "positions have projections of their own (share_att_key is False)"),
    ],
)
def test_other_models_stay_plain_and_say_why(settings, reason):
    model = fuse(packed(encoder(**settings)))
    assert not fused_layers(model)
    assert unfused_reasons(model) == [reason] * 2
    assert model.config._attn_implementation == families.build("deberta-v2").config._attn_implementation


def test_what_is_refused():
    model = fuse(packed(encoder()))
    with pytest.raises(UserError, match="output_attentions"):
        model(**inputs("none"), output_attentions=True)
    with pytest.raises(UserError, match="query_states"):
        model.encoder(torch.zeros(1, 2, 64), torch.ones(1, 2), query_states=torch.zeros(1, 2, 64))


@pytest.mark.parametrize("auto", [AutoModelForSequenceClassification, AutoModelForMaskedLM])
def test_heads_and_losses_are_those_of_transformers(auto):
    model = packed(encoder(auto))
    labels = torch.tensor([0, 1, 1])
    if auto is AutoModelForMaskedLM:
        labels = inputs()["input_ids"].where(inputs()["attention_mask"].bool(), -100)
    expected = dequantized(model)(**inputs(), labels=labels)
    got = fuse(model)(**inputs(), labels=labels)
    assert torch.allclose(got.loss, expected.loss, atol=1e-5)
    assert len(model(**inputs(), return_dict=False)) == 1


def test_outputs_as_tuples():
    model = packed(encoder())
    with torch.no_grad():
        expected = dequantized(model)(**inputs(), output_hidden_states=True, return_dict=False)
        got = fuse(model)(**inputs(), output_hidden_states=True, return_dict=False)
    assert len(got) == len(expected) == 2
    assert len(got[1]) == len(expected[1]) == 3
    assert all(relative_error(real(a), real(b)) < 1e-5 for a, b in zip(got[1], expected[1], strict=True))


def test_a_model_that_was_moved_takes_the_columns_along():
    assert fuse(packed(encoder())).to("meta").encoder.columns.device.type == "meta"


def test_a_folder_is_loaded_fused(tmp_path, tiny_teacher):
    model = pack(encoder(AutoModelForSequenceClassification), "dense", "int8")
    save_packed(model, AutoTokenizer.from_pretrained(tiny_teacher), tmp_path / "packed")
    loaded = AutoModelForSequenceClassification.from_pretrained(tmp_path / "packed")
    assert len(fused_layers(loaded)) == 2
    assert torch.allclose(loaded(**inputs()).logits, dequantized(model)(**inputs()).logits, atol=1e-5)
    loaded.save_pretrained(tmp_path / "again")
    first, second = (load_file(tmp_path / name / "model.safetensors") for name in ("packed", "again"))
    assert list(first) == list(second)
    assert type(unfuse(loaded).base_model.encoder) is type(model.base_model.encoder)
