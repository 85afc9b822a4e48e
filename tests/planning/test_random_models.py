import json
from typing import Any

import pytest
import torch
from transformers import (
    AlbertConfig,
    BertConfig,
    BertForSequenceClassification,
    DistilBertConfig,
    ModernBertConfig,
    MPNetConfig,
    RobertaConfig,
    XLNetConfig,
)

from lit_compress.errors import UserError
from lit_compress.models.heads_and_neurons import removable_groups
from lit_compress.nn.factorized import FactorizedEmbedding
from lit_compress.planning import random_models
from lit_compress.planning.random_models import (
    ENGINES,
    check_target,
    dense_structure,
    export_random,
    outline,
    random_model,
)
from lit_compress.planning.structure import LayerShape, Structure
from lit_compress.runtimes.engines import open_engine, variants
from lit_compress.runtimes.worker import batch_of

SIZES: dict[str, Any] = {
    "hidden_size": 32,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "intermediate_size": 64,
    "max_position_embeddings": 64,
}
BERT = BertConfig(**SIZES, architectures=["BertForSequenceClassification"], num_labels=3)
UNEVEN = Structure(layers=(LayerShape(2, 48), None, LayerShape(1, 16)), rank=8)
# Families whose layers can lose heads and neurons, and say their sizes each in its own words.
FAMILIES = {
    "roberta": RobertaConfig(**SIZES, architectures=["RobertaForTokenClassification"], num_labels=5),
    "distilbert": DistilBertConfig(dim=32, n_layers=3, n_heads=4, hidden_dim=64, max_position_embeddings=64),
    "modernbert": ModernBertConfig(**SIZES),
}


def shape_of(model) -> list[tuple[int, int]]:
    pairs = zip(removable_groups(model, "heads"), removable_groups(model, "neurons"), strict=True)
    return [(heads.count, neurons.count) for heads, neurons in pairs]


def test_the_model_has_the_structure_and_the_head():
    model = random_model(BERT, UNEVEN)
    assert isinstance(model, BertForSequenceClassification)
    assert shape_of(model) == [(2, 48), (1, 16)]
    table = model.get_input_embeddings()
    assert isinstance(table, FactorizedEmbedding)
    assert table.rank == 8
    assert model(input_ids=torch.arange(6).reshape(2, 3)).logits.shape == (2, 3)


@pytest.mark.parametrize("config", FAMILIES.values(), ids=FAMILIES)
def test_so_it_has_in_every_family(config):
    model = random_model(config, UNEVEN)
    assert shape_of(model) == [(2, 48), (1, 16)]
    assert isinstance(model.get_input_embeddings(), FactorizedEmbedding)
    model(input_ids=torch.arange(6).reshape(2, 3))


def test_weights_are_the_same_every_time_and_draw_from_nobody_else():
    state = torch.get_rng_state()
    first, second = (random_model(BERT, UNEVEN).state_dict() for _ in range(2))
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert torch.equal(torch.get_rng_state(), state)


def test_a_vocabulary_that_no_head_scores_is_small():
    scored = BertConfig(**SIZES, architectures=["BertForMaskedLM"])
    assert (outline(BERT).config.vocab_size, outline(scored).config.vocab_size) == (1024, 30522)
    assert BERT.vocab_size == 30522


def test_the_dense_structure():
    assert dense_structure(FAMILIES["distilbert"]) == Structure(layers=(LayerShape(4, 64),) * 3)
    cut = BertConfig(**SIZES)
    cut.quantization_config = {"quant_method": "lit_compress", "shapes": {"heads": [1, 1, 1]}}  # type: ignore[attr-defined]
    assert shape_of(random_model(cut, dense_structure(cut))) == [(4, 64)] * 3


@pytest.mark.parametrize("config", [XLNetConfig(d_model=32, n_layer=3, n_head=4, d_inner=64), AlbertConfig(**SIZES)])
def test_a_family_that_keeps_its_heads_loses_layers(config):
    shape = dense_structure(config).shapes[0]
    model = random_model(config, Structure(layers=(shape, shape, None)))
    assert dense_structure(model.config).layers == (shape, shape)
    with pytest.raises(UserError, match=r"XLNet.s attention has no linears|ALBERT stores one layer"):
        random_model(config, Structure(layers=(LayerShape(1, shape.neurons),) * 3))


def test_a_family_with_the_same_heads_in_all_layers():
    config = MPNetConfig(**SIZES)
    even = Structure(layers=(LayerShape(2, 48), None, LayerShape(2, 16)), rank=8)
    model = random_model(config, even)
    assert shape_of(model) == [(2, 48), (2, 16)]
    model(input_ids=torch.arange(6).reshape(2, 3))
    with pytest.raises(UserError, match=r"heads: MPNet adds one table .* only lose the same heads"):
        random_model(config, UNEVEN)


@pytest.mark.parametrize("target", ENGINES)
def test_an_export_runs_and_is_of_the_structure(target, tmp_path):
    export_random(BERT, UNEVEN, target, tmp_path)
    variant = next(each for each in variants(tmp_path) if each.engine == ENGINES[target])
    (logits,) = open_engine(variant, threads=1)(batch_of(2, 7, 1024)).values()
    assert logits.shape == (2, 3)
    shapes = json.loads((tmp_path / "config.json").read_text())["quantization_config"]["shapes"]
    assert shapes == {"heads": [2, 1], "neurons": [48, 16], "ranks": {"embeddings.word_embeddings": 8}}
    # As quantization-aware training leaves them: 7 bits, and activations with a range of their own.
    linears = json.loads((tmp_path / "compression.json").read_text()).get("linears", {}).values()
    kinds = {(entry["weight_quantizer"]["spec"]["bits"], "input" in entry["scales"]) for entry in linears}
    assert kinds == ({(7, True)} if target.endswith("int8") else set())
    assert len(linears) == (12 if target.endswith("int8") else 0)


@pytest.mark.parametrize(
    ("config", "names"),
    [
        (BERT, ["input_ids", "attention_mask", "token_type_ids"]),
        (XLNetConfig(d_model=32, n_layer=3, n_head=4, d_inner=64), ["input_ids", "attention_mask", "token_type_ids"]),
        (RobertaConfig(**SIZES, type_vocab_size=1), ["input_ids", "attention_mask"]),
        (FAMILIES["distilbert"], ["input_ids", "attention_mask"]),
    ],
    ids=["bert", "xlnet", "roberta", "distilbert"],
)
def test_a_graph_takes_what_tokenizers_of_its_family_make(config, names, tmp_path):
    export_random(config, dense_structure(config), "onnx", tmp_path)
    variant = next(each for each in variants(tmp_path) if each.engine == "onnxruntime")
    assert open_engine(variant, threads=1).inputs == names


def test_a_target_without_its_runtime_is_one_line(monkeypatch):
    with pytest.raises(UserError, match="--target: 'tensorrt' is not one of onnx-int8, onnx, "):
        check_target("tensorrt")

    monkeypatch.setattr(random_models, "find_spec", lambda package: None)
    with pytest.raises(UserError, match=r"--target: 'openvino-int8' needs 'onnx', .*'lit_compress\[openvino\]'"):
        check_target("openvino-int8")
    check_target("hf")


def test_a_configuration_of_another_family_is_one_line():
    config = BertConfig(**SIZES)
    config.model_type = "gpt2"
    with pytest.raises(UserError, match=r"model: 'gpt2' is not one of bert, "):
        dense_structure(config)
