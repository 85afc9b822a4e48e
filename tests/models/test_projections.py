import pytest
import torch
from transformers import (
    AlbertConfig,
    AutoModelForSequenceClassification,
    BertConfig,
    DebertaV2Config,
    DistilBertConfig,
    FNetConfig,
    LongformerConfig,
    ModernBertConfig,
    MPNetConfig,
    RobertaConfig,
    XLNetConfig,
)

from lit_compress.errors import UserError
from lit_compress.models.projections import read_projections

SIZES = {
    "vocab_size": 50,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 64,
    "max_position_embeddings": 64,
}
TOKENS = {"pad_token_id": 0, "cls_token_id": 1, "sep_token_id": 2, "bos_token_id": 1, "eos_token_id": 2}
CONFIGS = [
    BertConfig(**SIZES),
    RobertaConfig(**SIZES),
    DistilBertConfig(vocab_size=50, dim=32, n_layers=2, n_heads=2, hidden_dim=64),
    DebertaV2Config(**SIZES),
    DebertaV2Config(
        **SIZES, relative_attention=True, position_buckets=8, pos_att_type=["p2c", "c2p"], share_att_key=True
    ),
    LongformerConfig(**SIZES, attention_window=[4, 4], pad_token_id=0),
    MPNetConfig(**SIZES),
    ModernBertConfig(**SIZES, **TOKENS),
]


@pytest.fixture
def ids():
    return torch.randint(5, 40, (2, 9))


@pytest.mark.parametrize("config", CONFIGS, ids=lambda config: config.model_type)
def test_every_family_shows_its_projections(config, ids):
    model = AutoModelForSequenceClassification.from_config(config).eval()
    with torch.no_grad():
        plain = model(input_ids=ids).logits
        with read_projections(model, {1, -1}) as projections:
            read = model(input_ids=ids).logits
    assert torch.equal(plain, read)
    assert projections.keys() == {1, -1}
    for layer in projections.values():
        tokens = 12 if config.model_type == "longformer" else 9  # windows of four
        assert {name: tuple(tensor.shape) for name, tensor in layer.items()} == dict.fromkeys(
            ("query", "key", "value"), (2, tokens, 32)
        )
    assert not any(module._forward_hooks for module in model.modules())


def test_the_last_layer_of_two_is_the_second(ids):
    model = AutoModelForSequenceClassification.from_config(CONFIGS[0]).eval()
    with read_projections(model, {2, -1}) as projections:
        model(input_ids=ids)
    assert torch.equal(projections[2]["key"], projections[-1]["key"])


def test_a_fused_module_is_cut_as_its_family_cuts_it(ids):
    model = AutoModelForSequenceClassification.from_config(CONFIGS[-1]).eval()
    attention = model.base_model.layers[0].attn
    seen = {}
    handle = attention.Wqkv.register_forward_hook(lambda _, __, output: seen.update(whole=output))
    with read_projections(model, {1}) as projections:
        model(input_ids=ids)
    handle.remove()
    # modeling_modernbert: qkv.view(batch, tokens, 3, heads, head size), unbound at the three.
    query, key, value = seen["whole"].view(2, 9, 3, 32).unbind(2)
    assert torch.equal(projections[1]["query"], query)
    assert torch.equal(projections[1]["key"], key)
    assert torch.equal(projections[1]["value"], value)


def test_nothing_is_read_when_nothing_is_wanted(ids):
    model = AutoModelForSequenceClassification.from_config(CONFIGS[0])
    with read_projections(model, set()) as projections:
        assert not any(module._forward_hooks for module in model.modules())
        model(input_ids=ids)
    assert projections == {}


def test_hooks_go_even_when_the_forward_fails(ids):
    model = AutoModelForSequenceClassification.from_config(CONFIGS[0])
    with pytest.raises(IndexError), read_projections(model, {1}):
        model(input_ids=ids + 1000)
    assert not any(module._forward_hooks for module in model.modules())


@pytest.mark.parametrize("index", [0, 3, -3])
def test_a_layer_that_does_not_exist(index):
    model = AutoModelForSequenceClassification.from_config(CONFIGS[0])
    with pytest.raises(UserError, match=f"no layer {index}; it has 1 to 2"), read_projections(model, {index}):
        pass


def test_the_last_run_of_a_shared_layer_is_the_last_layer(ids):
    model = AutoModelForSequenceClassification.from_config(AlbertConfig(**SIZES, embedding_size=16)).eval()
    with read_projections(model, {-1}) as projections:
        states = model(input_ids=ids, output_hidden_states=True).hidden_states
    layer = model.base_model.encoder.albert_layer_groups[0].albert_layers[0]
    assert torch.equal(projections[-1]["value"], layer.attention.value(states[1]))
    with pytest.raises(UserError, match="one stored layer as all"), read_projections(model, {1}):
        pass


def test_a_family_that_is_not_in_the_table():
    model = AutoModelForSequenceClassification.from_config(
        FNetConfig(vocab_size=50, hidden_size=32, num_hidden_layers=2, intermediate_size=64)
    )
    with pytest.raises(UserError, match="'fnet' is not one of bert"), read_projections(model, {1}):
        pass


def test_a_family_without_such_modules():
    config = XLNetConfig(vocab_size=50, d_model=32, n_layer=2, n_head=2, d_inner=64)
    model = AutoModelForSequenceClassification.from_config(config)
    with pytest.raises(UserError, match=r"XLNet.* not modules of their own"), read_projections(model, {1}):
        pass
