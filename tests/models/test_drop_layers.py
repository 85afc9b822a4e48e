import copy
import os
from pathlib import Path

import pytest
import torch
from models.families import FAMILIES, LISTED, batch, build
from models.packing import packed
from transformers import AutoConfig, AutoModel, AutoModelForQuestionAnswering, AutoModelForSequenceClassification

from lit_compress.errors import UserError
from lit_compress.export import fold
from lit_compress.models import drop_layers, encoder_layers, kept_layers, layout_of, remove_heads
from lit_compress.models.drop_layers import depth, restore_layers
from lit_compress.models.shapes import update_config
from lit_compress.nn.gates import add_layer_gate, gated_layers, layer_gate


def hidden_states(model):
    with torch.inference_mode():
        return model(**batch(), output_hidden_states=True).hidden_states


def reloaded(model, folder, auto=AutoModel):
    model.save_pretrained(folder)
    again, info = auto.from_pretrained(folder, output_loading_info=True)
    assert not any(info.values())
    return again.eval()


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("left", [1, 2])
def test_without_its_top_the_model_ends_at_the_hidden_state_below(family, left):
    model = build(family, AutoModel)
    expected = hidden_states(model)[left]
    if family == "modernbert":  # what comes out of it is normalised after the last layer, whichever that is
        with torch.inference_mode():
            expected = model.final_norm(expected)
    drop_layers(model, range(left))
    assert torch.equal(hidden_states(model)[-1], expected)
    assert len(hidden_states(model)) == left + 1


@pytest.mark.parametrize("family", LISTED)
@pytest.mark.parametrize("keep", [[0, 2], [0, 1], [0]])
def test_the_layers_kept_are_the_same_modules(family, keep):
    model = build(family)
    layers = list(encoder_layers(model))
    rest = {id(p) for p in model.parameters()} - {id(p) for layer in layers for p in layer.parameters()}
    drop_layers(model, keep)
    assert list(encoder_layers(model)) == [layers[index] for index in keep]
    assert rest < {id(p) for p in model.parameters()}  # embeddings, pooler and head
    assert kept_layers(model) == keep
    for index, layer in enumerate(encoder_layers(model)):
        assert {module.layer_idx for module in layer.modules() if hasattr(module, "layer_idx")} <= {index}


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("auto", [AutoModel, AutoModelForSequenceClassification])
def test_stock_transformers_loads_what_is_left(family, auto, tmp_path):
    model = build(family, auto)
    drop_layers(model, [0, 1] if family == "albert" else [0, 2])
    again = reloaded(model, tmp_path, auto)
    assert getattr(again.config, layout_of(model).layers_key) == 2 == depth(again)
    assert kept_layers(again) is None  # a model of its own right
    with torch.inference_mode():
        assert torch.equal(again(**batch())[0], model(**batch())[0])


@pytest.mark.parametrize("family", [family for family in LISTED if family != "modernbert"])
def test_the_bottom_can_go(family, tmp_path):
    model = build(family, AutoModel)
    drop_layers(model, [1, 2])
    again = reloaded(model, tmp_path)
    assert torch.equal(hidden_states(again)[-1], hidden_states(model)[-1])


def test_modernbert_keeps_its_first_layer_and_each_layer_its_kind_of_attention(tmp_path):
    model = build("modernbert", num_hidden_layers=7)
    assert model.config.layer_types[3] == "full_attention" != model.config.layer_types[2]
    with pytest.raises(UserError, match=r"^LayerDropping\.which: .* leaves out layer 0: .*norm"):
        drop_layers(model, [1, 3], "LayerDropping.which")
    drop_layers(model, [0, 2, 3])
    kinds = ["full_attention", "sliding_attention", "full_attention"]
    assert model.config.layer_types == kinds
    again = reloaded(model, tmp_path, AutoModelForSequenceClassification)
    assert [layer.attention_type for layer in encoder_layers(again)] == kinds
    with torch.inference_mode():
        assert torch.equal(again(**batch(length=12)).logits, model(**batch(length=12)).logits)


def test_albert_repeats_its_layer_less_often():
    model = build("albert")
    parameters = sum(p.numel() for p in model.parameters())
    with pytest.raises(UserError, match=r"\[0, 2\] cannot be kept alone: ALBERT stores one layer.*from the top"):
        drop_layers(model, [0, 2])
    drop_layers(model, [0, 1])
    assert sum(p.numel() for p in model.parameters()) == parameters
    assert kept_layers(model) == [0, 1]
    groups = build("albert", num_hidden_groups=3)
    with pytest.raises(UserError, match="ALBERT"):
        drop_layers(groups, [0, 1])


@pytest.mark.parametrize("keep", [[], [2, 0], [0, 0], [-1, 0], [0, 3], [1, 5]])
def test_wrong_indices(keep):
    with pytest.raises(UserError, match="ascending 0-based indices of the 3 layers") as caught:
        drop_layers(build("bert"), keep)
    assert str(keep) in str(caught.value)


def test_all_layers_are_no_change():
    model = build("bert")
    drop_layers(model, [0, 1, 2])
    assert kept_layers(model) is None
    assert depth(model) == 3


def test_layers_dropped_twice_are_named_as_they_were_at_first():
    model = build("bert", num_hidden_layers=6)
    drop_layers(model, [0, 2, 3, 5])
    drop_layers(model, [0, 2, 3])
    assert kept_layers(model) == [0, 3, 5]
    assert kept_layers(copy.deepcopy(model)) == [0, 3, 5]


def test_restoring():
    model = build("bert")
    restore_layers(model, None)
    assert depth(model) == 3
    restore_layers(model, [0, 2])
    restore_layers(model, [0, 2])
    assert kept_layers(model) == [0, 2]
    for other in ([0, 1], None):
        with pytest.raises(UserError, match=r"ckpt_path: .*keeps \[0, 2\]"):
            restore_layers(model, other)
    with pytest.raises(UserError, match=r"ckpt_path: .* 3 layers"):
        restore_layers(build("bert"), [0, 7])


@pytest.mark.parametrize("family", LISTED)
@pytest.mark.parametrize("closed", [[2], [1, 2], [1]])
def test_a_closed_layer_can_be_removed_without_a_trace(family, closed, tmp_path):
    model = build(family)
    keys = set(model.state_dict())
    before = hidden_states(model)
    for layer in encoder_layers(model):
        add_layer_gate(layer)
    assert all(torch.equal(a, b) for a, b in zip(hidden_states(model), before, strict=True))  # open
    for index in closed:
        layer_gate(encoder_layers(model)[index]).fill_(False)
    states = hidden_states(model)
    for index in closed:
        if family != "modernbert" or index < 2:  # its last hidden state is normalised
            assert torch.equal(states[index + 1], states[index])
    with torch.inference_mode():
        logits = model(**batch()).logits
        folded = fold(model)
        assert torch.equal(folded(**batch()).logits, logits)
    assert depth(folded) == 3 - len(closed)
    assert depth(model) == 3
    assert not list(gated_layers(folded))
    assert set(folded.state_dict()) < keys
    again = reloaded(folded, tmp_path, AutoModelForSequenceClassification)
    with torch.inference_mode():
        assert torch.equal(again(**batch()).logits, logits)


def counts(config, keep, auto=AutoModelForQuestionAnswering):
    with torch.device("meta"):
        model = auto.from_config(config)
    drop_layers(model, keep)
    return sum(p.numel() for p in model.parameters())


# The counts that SparseML v0.3.0 printed for BERT-base with a question answering head.
@pytest.mark.parametrize(
    ("keep", "parameters"),
    [
        (range(12), 108_893_186),
        (range(9), 87_629_570),
        ([0, 2, 4, 6, 8, 11], 66_365_954),
        ([0, 6, 11], 45_102_338),
        ([0], 30_926_594),
    ],
)
def test_parameters_of_bert_base(keep, parameters):
    assert counts(AutoConfig.for_model("bert", num_labels=2), keep) == parameters


# Without any head; millions, rounded.
@pytest.mark.parametrize(
    ("family", "settings", "millions"),
    [
        ("bert", {}, [109.5, 95.3, 81.1, 67.0]),
        ("xlnet", {"d_model": 768, "n_layer": 12, "n_head": 12, "d_inner": 3072}, [116.7, 101.4, 86.0, 70.6]),
    ],
)
def test_parameters_of_base_encoders(family, settings, millions):
    config = AutoConfig.for_model(family, **settings)
    found = [counts(config, range(12 - drop), AutoModel) for drop in (0, 2, 4, 6)]
    assert [round(count / 1e6, 1) for count in found] == millions
    assert family != "bert" or found == [109_482_240 - drop * 7_087_872 for drop in (0, 2, 4, 6)]


ROOT = Path(os.environ.get("SHARED_MODELS", Path(__file__).parents[3] / "shared" / "models"))
RXNFP = ROOT / "rxnfp-bert-mlm"


@pytest.mark.skipif(not RXNFP.is_dir(), reason=f"no pretrained 12-layer BERT at {RXNFP}; set SHARED_MODELS")
def test_a_pretrained_model(tmp_path):
    model = AutoModel.from_pretrained(RXNFP).eval()
    ids = torch.randint(20, 200, (2, 12))
    with torch.inference_mode():
        states = model(input_ids=ids, output_hidden_states=True).hidden_states
        drop_layers(model, range(8))
        assert torch.equal(model(input_ids=ids).last_hidden_state, states[8])
        again = reloaded(model, tmp_path)
        assert torch.equal(again(input_ids=ids).last_hidden_state, states[8])


def test_a_packed_model_that_cannot_be_changed_is_as_it_was():
    model = build("bert")
    remove_heads(model, 0, torch.tensor([True] + [False] * (model.config.num_attention_heads - 1)))
    update_config(model)
    model = packed(model)
    count = depth(model)
    for change in (lambda: drop_layers(model, [0]), lambda: remove_heads(model, 0, torch.tensor([True]))):
        with pytest.raises(UserError, match="a packed model keeps its shape"):
            change()
    assert depth(model) == len(encoder_layers(model)) == count > 1
