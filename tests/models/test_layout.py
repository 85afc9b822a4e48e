import pytest
import torch
from models.families import BESIDE, FAMILIES, LISTED, batch, build
from torch import nn
from transformers import AutoConfig, AutoModel, AutoModelForSequenceClassification

from lit_compress.errors import UserError
from lit_compress.models import embedding_tables, encoder_layers, layer_linears, layer_parts, layout_of
from lit_compress.models.layout import LAYOUTS

HIDDEN, HEADS, HEAD_SIZE, WIDTH = 16, 2, 8, 24


def test_every_family_is_tested():
    assert set(LAYOUTS) == set(FAMILIES | BESIDE)
    assert {*LISTED, *BESIDE} == {family for family, layout in LAYOUTS.items() if not layout.shared}


@pytest.mark.parametrize("family", LISTED)
@pytest.mark.parametrize("auto", [AutoModel, AutoModelForSequenceClassification])
def test_layers_are_all_found_in_order(family, auto):
    model = build(family, auto)
    layers = encoder_layers(model)
    assert isinstance(layers, nn.ModuleList)
    assert len(layers) == 3
    assert len({type(layer) for layer in layers}) == 1
    assert layers is model.base_model.get_submodule(layout_of(model).layers)


@pytest.mark.parametrize("family", LISTED)
def test_each_layer_runs_once(family):
    model = build(family)
    ran = []
    for index, layer in enumerate(encoder_layers(model)):
        layer.register_forward_hook(lambda *_, index=index: ran.append(index))
    model(**batch())
    assert ran == [0, 1, 2]


def test_the_one_layer_of_albert_runs_again_and_again():
    model = build("albert")
    (layer,) = encoder_layers(model)
    ran = []
    layer.register_forward_hook(lambda *_: ran.append(True))
    model(**batch())
    assert len(ran) == 3


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("auto", [AutoModel, AutoModelForSequenceClassification])
def test_the_parts_of_a_layer_have_the_shapes_of_the_family(family, auto):
    model = build(family, auto)
    layout = layout_of(model)
    parts = layer_parts(model, 0)
    for linear in (parts.query, parts.key, parts.value, *parts.head_linears):
        if linear is not None:
            assert linear.weight.shape == (HEADS * HEAD_SIZE, HIDDEN)
    if parts.attention_output is not None:
        assert parts.attention_output.weight.shape == (HIDDEN, HEADS * HEAD_SIZE)
    gated = 2 if family == "modernbert" else 1
    assert parts.feed_forward_in.weight.shape == (gated * WIDTH, HIDDEN)
    assert parts.feed_forward_out.weight.shape == (HIDDEN, WIDTH)
    assert layout.head_count is None or getattr(parts.attention, layout.head_count) == HEADS
    assert getattr(parts.attention, layout.head_size) == HEAD_SIZE


@pytest.mark.parametrize("family", FAMILIES)
def test_configuration_keys_are_those_of_the_family(family):
    model = build(family)
    layout, config = layout_of(model), model.config.to_dict()
    assert [config[key] for key in (layout.layers_key, layout.heads_key, layout.width_key)] == [3, HEADS, WIDTH]


@pytest.mark.parametrize("family", FAMILIES)
def test_a_linear_missing_from_the_table_is_one_that_the_family_does_not_have(family):
    model = build(family)
    parts = layer_parts(model, 0)
    named = [parts.query, parts.key, parts.value, parts.attention_output, *parts.head_linears]
    named += [parts.feed_forward_in, parts.feed_forward_out]
    linears = {id(module) for module in parts.layer.modules() if isinstance(module, nn.Linear)}
    rest = linears - {id(module) for module in named}
    assert len(rest) == (1 if family == "modernbert" else 0)  # Wqkv


@pytest.mark.parametrize("family", FAMILIES)
def test_every_embedding_table_is_listed(family):
    model = build(family, AutoModel)
    tables = embedding_tables(model)
    assert set(tables.values()) == {module for module in model.modules() if isinstance(module, nn.Embedding)}
    assert layout_of(model).word_embeddings in tables
    assert tables[layout_of(model).word_embeddings].num_embeddings == 30


@pytest.mark.parametrize("family", FAMILIES)
def test_the_pooler_is_where_the_table_says(family):
    model = build(family, AutoModel)
    pooler = layout_of(model).pooler
    assert (pooler is not None) == any("pooler" in name for name, _ in model.named_modules())
    assert pooler is None or isinstance(model.get_submodule(pooler), nn.Linear)


@pytest.mark.parametrize("family", FAMILIES)
def test_the_linears_of_the_layers_are_all_but_embeddings_pooler_and_head(family):
    model = build(family)
    names = layer_linears(model)
    per_layer = {"xlnet": 2, "modernbert": 4, "deberta-v2": 8}.get(family, 6)
    assert len(names) == per_layer * (1 if family == "albert" else 3)
    for name, linear in names.items():
        assert model.get_submodule(name) is linear
        assert not any(word in name for word in ("pooler", "classifier", "embedding", "proj_out", "summary"))


@pytest.mark.parametrize("family", [family for family in FAMILIES if LAYOUTS[family].unsupported])
def test_what_a_family_cannot_do_is_refused_with_the_reason(family):
    layout = layout_of(build(family))
    for ability, reason in layout.unsupported.items():
        with pytest.raises(UserError, match=f"^Some.option: {reason[:20]}"):
            layout.require(ability, "Some.option")
    for ability in {"layers", "heads", "neurons", "attention_masks"} - set(layout.unsupported):
        layout.require(ability, "Some.option")


def test_an_unknown_family_is_a_one_line_error_that_names_the_known():
    model = AutoModel.from_config(
        AutoConfig.for_model("gpt2", n_embd=8, n_layer=1, n_head=1, vocab_size=9, n_positions=8)
    )
    with pytest.raises(UserError, match=r"^model.pretrained: 'gpt2' .*bert, roberta.*deberta-v2") as caught:
        layout_of(model)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("model", [nn.Linear(2, 2), nn.Sequential(nn.Linear(2, 2))])
def test_a_model_without_layers_is_a_one_line_error(model):
    with pytest.raises(UserError, match="no layer list") as caught:
        encoder_layers(model)
    assert "\n" not in str(caught.value)


def test_the_layers_of_a_family_outside_the_table_are_found_at_the_usual_places():
    model = AutoModel.from_config(
        AutoConfig.for_model("deberta", hidden_size=16, num_hidden_layers=2, num_attention_heads=2, vocab_size=30)
    )
    assert len(encoder_layers(model)) == 2


def test_head_rows_are_where_the_layout_says():
    # Zeroing the rows of head 1 in Q, K and V and its columns in the output leaves exactly head 0's contribution.
    model = build("bert")
    parts = layer_parts(model, 0)
    captured = []
    assert parts.attention_output is not None
    assert parts.value is not None
    parts.attention_output.register_forward_hook(lambda module, inputs, output: captured.append(inputs[0]))
    with torch.no_grad():
        parts.value.weight[HEAD_SIZE:] = 0
        parts.value.bias[HEAD_SIZE:] = 0
        model(**batch())
    assert captured[0][..., :HEAD_SIZE].abs().min() > 0
    assert not captured[0][..., HEAD_SIZE:].any()
