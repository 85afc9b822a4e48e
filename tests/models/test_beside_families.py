"""Families whose layers are BERT's with names of their own: cut, folded, and loaded again by stock Transformers."""

import copy

import pytest
import torch
from models.families import BESIDE, SMALL, build
from transformers import AutoConfig, AutoModelForSequenceClassification

from lit_compress.errors import UserError
from lit_compress.models import drop_layers, embedding_tables, encoder_layers, layer_linears, layer_parts
from lit_compress.models.fold import fold
from lit_compress.models.heads_and_neurons import column_mask, removable_groups, remove_heads, remove_neurons
from lit_compress.models.in_place import quantize_
from lit_compress.models.layout import LAYOUTS

# Not in the table, with the number of linears that strategies find.
OTHERS = {
    "mobilebert": ({"intra_bottleneck_size": 8, "embedding_size": 8, "true_hidden_size": 8}, 45),
    "convbert": ({"embedding_size": 16, "head_ratio": 2, "conv_kernel_size": 3}, 24),
    "deberta": ({}, 12),
    "eurobert": ({"num_key_value_heads": 2, "bos_token_id": 1, "eos_token_id": 2, "mask_token_id": 3}, 21),
    "nomic_bert": ({}, 21),
    "rembert": ({"input_embedding_size": 8, "output_embedding_size": 8, "bos_token_id": 1, "eos_token_id": 2}, 18),
    "megatron-bert": ({}, 18),
    "xlm-roberta-xl": ({}, 18),
}
# Whose layers are in no list.
UNKNOWN = {
    "funnel": {"d_model": 16, "n_head": 2, "d_head": 8, "d_inner": 24, "block_sizes": [1, 1, 1]},
    "squeezebert": {"embedding_size": 16, "q_groups": 1, "k_groups": 1, "v_groups": 1},
}
HEADS = torch.tensor([False, True])
NEURONS = torch.arange(24) % 3 > 0


def other(family, settings):
    torch.manual_seed(0)
    given = {**SMALL, **settings}
    if family == "funnel":
        del given["num_hidden_layers"]
    return AutoModelForSequenceClassification.from_config(AutoConfig.for_model(family, **given)).eval()


def varied(family):
    """Biases and norms are random, too, so that whatever goes has something to say."""
    model = build(family)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.2)
    return model


@torch.inference_mode()
def logits(model):
    ids = torch.tensor([[1, 7, 8, 9, 2], [1, 5, 2, 0, 0]])
    return model(input_ids=ids, attention_mask=(ids > 0).long()).logits


def again(model, folder):
    folded = fold(copy.deepcopy(model))
    folded.save_pretrained(folder)
    loaded, info = AutoModelForSequenceClassification.from_pretrained(folder, output_loading_info=True)
    assert not any(info.values())
    return loaded.eval()


@pytest.mark.parametrize("family", BESIDE)
def test_its_parts_are_where_the_table_says(family):
    model = build(family)
    parts, layout = layer_parts(model, 1), LAYOUTS[family]
    assert parts.query.weight.shape == (16, 16)
    assert parts.feed_forward_in.out_features == parts.feed_forward_out.in_features == 24
    assert len(parts.head_linears) == len(layout.head_linears)
    assert getattr(parts.attention, layout.head_count) == 2
    assert getattr(parts.attention, layout.head_size) == 8
    assert layout.word_embeddings in {name.partition(".")[2] for name in embedding_tables(model)}
    assert len(layer_linears(model)) == 3 * (6 + len(layout.head_linears))
    # Every table that is trained is known.
    tables = {name for name, each in model.named_modules() if isinstance(each, torch.nn.Embedding)}
    assert {name for name in tables if "embed_positions" not in name} == {*embedding_tables(model)}


@pytest.mark.parametrize("family", BESIDE)
def test_layers_can_be_dropped(family, tmp_path):
    model = varied(family)
    dense = logits(model)
    kept = list(encoder_layers(model))[::2]
    drop_layers(model, [0, 2])
    assert list(encoder_layers(model)) == kept
    found = logits(model)
    assert (found - dense).abs().max() > 1e-2
    assert torch.allclose(logits(again(model, tmp_path)), found, atol=1e-5)


@pytest.mark.parametrize("kind", ["heads", "neurons"])
@pytest.mark.parametrize("family", BESIDE)
def test_heads_and_neurons_can_be_removed(family, kind, tmp_path):
    model, remove = varied(family), {"heads": remove_heads, "neurons": remove_neurons}[kind]
    if kind in LAYOUTS[family].unsupported:
        with pytest.raises(UserError, match="heads"):
            remove(model, 1, HEADS)
        return
    kept, smaller = {"heads": HEADS, "neurons": NEURONS}[kind], copy.deepcopy(model)
    groups = removable_groups(model, kind)[1]
    with torch.no_grad():
        model.get_submodule(groups.consumer).weight[:, ~column_mask(groups, kept)] = 0
    remove(smaller, 1, kept)
    expected = logits(model)
    assert torch.allclose(logits(smaller), expected, atol=1e-5)
    assert torch.allclose(logits(again(smaller, tmp_path)), expected, atol=1e-5)


@pytest.mark.parametrize("family", OTHERS)
def test_one_outside_the_table_takes_integers_and_refuses_the_rest(family, tmp_path):
    settings, linears = OTHERS[family]
    model = other(family, settings)
    assert len(layer_linears(model)) == linears
    with pytest.raises(UserError, match=rf"^model.pretrained: '{family}' is not one of bert, roberta"):
        drop_layers(model, [0])
    quantize_(model, bits=8, targets=list(layer_linears(model)))
    model.eval()
    assert torch.allclose(logits(again(model, tmp_path)), logits(model), atol=1e-5)


@pytest.mark.parametrize("family", UNKNOWN)
def test_one_whose_layers_are_in_no_list_is_refused(family):
    with pytest.raises(UserError, match="has no layer list at any of encoder"):
        layer_linears(other(family, UNKNOWN[family]))
