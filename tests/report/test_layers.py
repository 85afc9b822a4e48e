import pytest
import torch
from transformers import BertConfig, BertForSequenceClassification

from lit_compress.report.layers import block_sparsity, describe_layers

SHAPE = {"vocab_size": 30, "hidden_size": 8, "num_attention_heads": 2, "max_position_embeddings": 16}
QUERY = "bert.encoder.layer.0.attention.self.query"
GRID = {"kind": "MinMaxWeightQuantizer", "enabled": True, "spec": {"bits": 4, "per_channel": False}}


def model(layers=1, neurons=12):
    return BertForSequenceClassification(BertConfig(num_hidden_layers=layers, intermediate_size=neurons, **SHAPE))


def test_blocks_hold_every_zero_once():
    weight = torch.ones(7, 5)
    weight[2, :] = 0
    weight[6, 4] = 0
    blocks = block_sparsity(weight, most=3)
    # Rows are divided 2, 2, 3 and columns 1, 2, 2: row 2 is in the second of three, which has two rows.
    assert blocks == [[0, 0, 0], [0.5, 0.5, 0.5], [0, 0, 0.167]]


def test_a_matrix_smaller_than_the_grid():
    assert block_sparsity(torch.tensor([[0.0, 1.0]])) == [[1.0, 0.0]]


def test_what_was_done_is_read_from_model_and_manifest():
    small = model(neurons=10)
    with torch.no_grad():
        small.get_submodule(QUERY).weight[:4] = 0
    entry = {"mask": True, "weight_quantizer": GRID, "input_quantizer": None, "scales": {"weight": [0.1]}}
    found = describe_layers(small, {"linears": {QUERY: entry}}, model(layers=3))
    query = found["matrices"][0]
    assert (query["name"], query["sparsity"], query["weights"], query["inputs"]) == (
        QUERY,
        0.5,
        "int4 per tensor",
        None,
    )
    # 32 values of 4 bits, a bit for each of 64 places, and a scale.
    assert query["bytes"] == 32 // 2 + 64 // 8 + 4
    assert [matrix["dense_shape"] for matrix in found["matrices"] if matrix["matrix"] == "output.dense"] == [[8, 12]]
    (layer,) = found["layers"]
    assert (layer["heads"], layer["dense_heads"], layer["neurons"], layer["dense_neurons"]) == (2, 2, 10, 12)
    assert layer["sparsity"] == pytest.approx(32 / (4 * 64 + 2 * 80))
    assert layer["weights"] == "int4 per tensor or fp32"
    assert found["dense_layers"] == 3
    assert found["blocks"] == {QUERY: block_sparsity(small.get_submodule(QUERY).weight)}
    assert [table["rows"] for table in found["tables"]] == [30, 16, 2]


def test_attention_that_computes_with_integers():
    grid = {"kind": "MovingAverageQuantizer", "enabled": True, "spec": {"bits": 8}}
    on = {"query": grid, "key": None, "scales": {"query": {"scale": 0.1, "zero_point": 3}}}
    off = {"query": grid | {"enabled": False}, "key": None, "scales": {}}
    assert describe_layers(model(), {"attention": {"a": on, "b": off}}, None)["attention"] == ["a"]


def test_without_a_dense_model_nothing_is_compared():
    found = describe_layers(model(), {}, None)
    assert found["dense_layers"] is None
    assert {matrix["dense_shape"] is None for matrix in found["matrices"]} == {True}
    assert found["layers"][0]["dense_heads"] is None


def test_a_quantizer_that_is_off_says_nothing():
    entry = {"mask": False, "weight_quantizer": GRID | {"enabled": False}, "input_quantizer": None}
    found = describe_layers(model(), {"linears": {QUERY: entry}}, None)
    assert found["matrices"][0]["weights"] is None
    assert found["blocks"] == {}
