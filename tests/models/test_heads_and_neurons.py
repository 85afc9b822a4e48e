import copy

import pytest
import torch
from transformers import (
    AlbertConfig,
    AutoModelForSequenceClassification,
    BertConfig,
    BertForSequenceClassification,
    DebertaV2Config,
    DistilBertConfig,
    ElectraConfig,
    ModernBertConfig,
    MPNetConfig,
    RobertaConfig,
    XLNetConfig,
)

from lit_compress.errors import UserError
from lit_compress.export import fold
from lit_compress.models import load_classifier, remove_heads, remove_neurons
from lit_compress.models.heads_and_neurons import (
    column_mask,
    permute_groups,
    removable_groups,
    remove_from_layers,
    remove_groups,
)
from lit_compress.models.shapes import apply_shapes, describe_shapes
from lit_compress.nn import MinMaxWeightQuantizer, make_compressible
from lit_compress.nn.embedding import CompressibleEmbedding
from lit_compress.nn.factorized import FactorizedEmbedding
from lit_compress.nn.quantizers import TableQuantizer

SMALL = {"vocab_size": 40, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "pad_token_id": 0}
WIDE = SMALL | {"intermediate_size": 24, "max_position_embeddings": 40}
DISTIL = {"vocab_size": 40, "dim": 32, "n_layers": 2, "n_heads": 4, "hidden_dim": 24, "max_position_embeddings": 40}
XLNET = {"vocab_size": 40, "d_model": 32, "n_layer": 2, "n_head": 4, "d_inner": 24}
POSITIONS = {"relative_attention": True, "pos_att_type": ["c2p", "p2c"], "position_buckets": 8}

FAMILIES = {
    "bert": lambda: BertConfig(**WIDE),
    "roberta": lambda: RobertaConfig(**WIDE),
    "electra": lambda: ElectraConfig(**WIDE, embedding_size=16),
    "distilbert": lambda: DistilBertConfig(**DISTIL),
    "deberta-v2": lambda: DebertaV2Config(**WIDE, **POSITIONS, share_att_key=True),
    "deberta-v2, own positions": lambda: DebertaV2Config(**WIDE, **POSITIONS, share_att_key=False),
    "albert": lambda: AlbertConfig(**WIDE, embedding_size=16),
    "modernbert": lambda: ModernBertConfig(**WIDE, cls_token_id=1, sep_token_id=2, bos_token_id=1, eos_token_id=2),
}
SAME_HEADS = {"mpnet": lambda: MPNetConfig(**WIDE)}
NEURONS_ONLY = SAME_HEADS | {"xlnet": lambda: XLNetConfig(**XLNET)}
KEPT = {
    "heads": [torch.tensor([True, False, True, False]), torch.tensor([False, False, False, True])],
    "neurons": [torch.arange(24) % 3 > 0, torch.arange(24) % 5 == 0],
}
INPUTS = {
    "input_ids": torch.tensor([[1, 7, 8, 9, 2], [1, 5, 2, 0, 0]]),
    "attention_mask": torch.tensor([[1, 1, 1, 1, 1], [1, 1, 1, 0, 0]]),
}


def random_model(config):
    torch.manual_seed(0)
    model = AutoModelForSequenceClassification.from_config(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.2)  # biases and normalisation too, and logits that differ
    return model


@torch.inference_mode()
def logits(model):
    return model(**INPUTS).logits


def silenced(model, groups, kept):
    """The model with the columns that read what is not kept set to 0."""
    with torch.no_grad():
        model.get_submodule(groups.consumer).weight[:, ~column_mask(groups, kept)] = 0


CASES = [
    pytest.param(config, kind, id=f"{name} {kind}")
    for name, config in (FAMILIES | NEURONS_ONLY).items()
    for kind in ("heads", "neurons")
    if kind == "neurons" or name in FAMILIES
]


@pytest.mark.parametrize(("config", "kind"), CASES)
def test_the_smaller_model_computes_what_the_masked_one_does_and_loads_again(config, kind, tmp_path):
    model = random_model(config())
    smaller, dense = copy.deepcopy(model), logits(model)
    for layer, kept in enumerate(KEPT[kind]):
        if layer == len(removable_groups(model, kind)):
            break  # ALBERT stores one layer
        silenced(model, removable_groups(model, kind)[layer], kept)
        {"heads": remove_heads, "neurons": remove_neurons}[kind](smaller, layer, kept)
    expected = logits(model)
    assert (expected - dense).abs().max() > 1e-2  # what was removed had something to say
    assert torch.allclose(logits(smaller), expected, atol=1e-5)
    assert sum(p.numel() for p in smaller.parameters()) < sum(p.numel() for p in model.parameters())
    stored = len(removable_groups(model, kind))
    assert describe_shapes(smaller) == {kind: [int(kept.sum()) for kept in KEPT[kind][:stored]]}
    folded = fold(smaller)
    folded.save_pretrained(tmp_path)
    again, info = AutoModelForSequenceClassification.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(info.values())
    assert all(torch.equal(value, again.state_dict()[name]) for name, value in smaller.state_dict().items())
    assert torch.allclose(logits(again), logits(smaller), atol=1e-6)
    assert describe_shapes(load_classifier(str(tmp_path), ["0", "1"], "model.pretrained")) == describe_shapes(folded)


@pytest.mark.parametrize("name", FAMILIES)
def test_even_widths_are_stock(name, tmp_path):
    model = random_model(FAMILIES[name]())
    for layer in range(len(removable_groups(model, "neurons"))):
        remove_neurons(model, layer, torch.arange(24) < 10)
    folded = fold(model)
    assert describe_shapes(folded) == {}
    folded.save_pretrained(tmp_path)
    assert "quantization_config" not in (tmp_path / "config.json").read_text()
    again = AutoModelForSequenceClassification.from_pretrained(tmp_path)
    assert torch.allclose(logits(again), logits(model), atol=1e-6)


def test_families_whose_heads_cannot_go_say_so():
    model = random_model(NEURONS_ONLY["xlnet"]())
    with pytest.raises(UserError, match=r"StructuredPruning\.heads: XLNet") as caught:
        removable_groups(model, "heads", "StructuredPruning.heads")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("quantized", [False, True])
def test_layers_that_share_a_table_lose_the_same_heads(quantized, tmp_path):
    model = random_model(SAME_HEADS["mpnet"]())
    if quantized:
        table = CompressibleEmbedding.from_embedding(model.mpnet.encoder.relative_attention_bias)
        model.mpnet.encoder.relative_attention_bias = table
        table.weight.data[:, 1] *= 3  # the range of the whole is that of what goes
        table.weight_quantizer = TableQuantizer(32)
    kept, dense, smaller = KEPT["heads"][0], logits(model), copy.deepcopy(model)
    for groups in removable_groups(model, "heads"):
        silenced(model, groups, kept)
    remove_heads(smaller, None, kept)
    expected = logits(model)
    assert (expected - dense).abs().max() > 1e-2
    assert torch.allclose(logits(smaller), expected, atol=1e-5)
    assert describe_shapes(smaller) == {"heads": [2, 2]}
    folded = fold(smaller)
    folded.save_pretrained(tmp_path)
    again, info = AutoModelForSequenceClassification.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(info.values())
    assert again.mpnet.encoder.relative_attention_bias.weight.shape == (32, 2)
    assert torch.allclose(logits(again), expected, atol=1e-5)


def test_a_factorised_table_loses_its_columns_too():
    model = random_model(SAME_HEADS["mpnet"]())
    encoder = model.mpnet.encoder
    encoder.relative_attention_bias = FactorizedEmbedding.from_embedding(encoder.relative_attention_bias, 3)
    smaller = copy.deepcopy(model)
    for groups in removable_groups(model, "heads"):
        silenced(model, groups, KEPT["heads"][0])
    remove_heads(smaller, None, KEPT["heads"][0])
    assert torch.allclose(logits(smaller), logits(model), atol=1e-5)
    assert smaller.mpnet.encoder.relative_attention_bias.embedding_dim == 2


def test_other_heads_of_layers_that_share_a_table_are_refused_and_nothing_goes():
    model = random_model(SAME_HEADS["mpnet"]())
    before = logits(model)
    first, second = removable_groups(model, "heads")
    one, other = KEPT["heads"]
    reason = "MPNet adds one table of relative positions, .*: they can only lose the same heads$"
    with pytest.raises(UserError, match=f"^remove_heads: {reason}"):
        remove_heads(model, 0, one)
    for selection in ([(first, one)], [(first, one), (second, other)]):
        with pytest.raises(UserError, match=f"^some.key: {reason}"):
            remove_from_layers(model, selection, "some.key")
    shapes = {"heads": [3, 2]}
    with pytest.raises(UserError, match=rf"^config.json: quantization_config.shapes: heads: {reason}"):
        apply_shapes(model, shapes)
    assert torch.equal(logits(model), before)
    assert describe_shapes(model) == {}


def test_both_kinds_in_any_order():
    config = FAMILIES["bert"]()
    results = []
    for kinds in (("heads", "neurons"), ("neurons", "heads")):
        model = random_model(config)
        for kind in kinds:
            for layer, kept in enumerate(KEPT[kind]):
                remove_groups(model, removable_groups(model, kind)[layer], kept)
        results.append(logits(model))
    assert torch.equal(*results)


def test_a_dead_neuron_of_an_unmarked_layer_stays():
    model = BertForSequenceClassification(FAMILIES["bert"]()).eval()
    layers = make_compressible(model, [name for name, _ in model.named_modules() if name.endswith("output.dense")])
    for layer in layers.values():
        layer.add_mask()
        layer.weight_mask[:, 3] = False
    assert describe_shapes(fold(model)) == {}


@pytest.mark.parametrize("kind", ["heads", "neurons"])
@pytest.mark.parametrize("family", FAMILIES)
def test_another_order_computes_the_same(family, kind):
    model = random_model(FAMILIES[family]())
    with torch.no_grad():
        before = model(**INPUTS).logits
    weights = {id(parameter) for parameter in model.parameters()}
    for groups in removable_groups(model, kind):
        order = torch.randperm(groups.count, generator=torch.Generator().manual_seed(1))
        permute_groups(model, groups, order)
    assert {id(parameter) for parameter in model.parameters()} == weights
    with torch.no_grad():
        assert torch.allclose(model(**INPUTS).logits, before, atol=1e-4)


def test_masks_and_scales_move_along():
    model = random_model(FAMILIES["bert"]())
    (groups, *_) = removable_groups(model, "neurons")
    layers = make_compressible(model, [groups.consumer, *groups.producers])
    up, down = layers[groups.producers[0]], layers[groups.consumer]
    for layer in layers.values():
        layer.add_mask()
        layer.add_mask_scores()
        layer.weight_mask.copy_(torch.rand(layer.weight.shape) < 0.5)
        layer.mask_scores.data.normal_()
    down.add_groups(24)
    down.group_scores.copy_(torch.arange(24.0))
    up.weight_quantizer = MinMaxWeightQuantizer(24)
    up.effective_weight()
    rows, columns, scores = up.effective_weight().detach(), down.effective_weight().detach(), up.mask_scores.clone()
    order = torch.arange(23, -1, -1)
    permute_groups(model, groups, order)
    up.weight_quantizer.observing = False
    assert torch.equal(up.effective_weight(), rows[order])
    assert torch.equal(down.effective_weight(), columns[:, order])
    assert torch.equal(up.mask_scores, scores[order])
    assert torch.equal(down.group_scores, torch.arange(23.0, -1, -1))
