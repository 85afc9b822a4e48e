"""What MPNet has that BERT lacks: relative positions, and an encoder that collects hidden states itself."""

import pytest
import torch
from models.families import build
from models.packing import dequantized, inputs, packed, real
from safetensors.torch import load_file
from transformers import AutoModel, AutoModelForSequenceClassification, AutoTokenizer

from lit_compress.errors import UserError
from lit_compress.export import pack, save_packed
from lit_compress.models import layer_linears
from lit_compress.models.fused import fuse, fused_layers, unfused_reasons
from lit_compress.models.fused_report import describe_fused


def encoder(**settings):
    return packed(build("mpnet", AutoModel, **({"initializer_range": 0.3} | settings)))


def test_distances_beyond_the_farthest_bucket():
    model = encoder(max_position_embeddings=400)
    ids = torch.randint(3, 30, (2, 300), generator=torch.Generator().manual_seed(0))
    mask = torch.ones_like(ids)
    mask[0, 20:190] = 0  # a gap that is longer than the table reaches
    mask[1, :50] = 0
    with torch.no_grad():
        expected = dequantized(model)(ids, attention_mask=mask).last_hidden_state
        got = fuse(model)(ids, attention_mask=mask).last_hidden_state
    assert torch.allclose(got[mask.bool()], expected[mask.bool()], atol=1e-5)


def test_relative_positions_make_a_difference():
    model = encoder()
    fused = fuse(model)
    with torch.no_grad():
        before = fused(**inputs("none")).last_hidden_state
        fused.encoder.relative_attention_bias.weight.add_(torch.randn(32, 2))
        after = fused(**inputs("none")).last_hidden_state
    assert not torch.allclose(before, after, atol=1e-2)


def test_gradients_are_those_of_the_plain_path():
    model = encoder(hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0)
    plain = dequantized(model).train()
    fused = fuse(model).train()
    for each in (plain, fused):
        each.zero_grad()
        real(each(**inputs("left")).last_hidden_state, "left").square().sum().backward()
    for table in ("embeddings.word_embeddings", "encoder.relative_attention_bias"):
        ours, theirs = (each.get_submodule(table).weight.grad for each in (fused, plain))
        assert theirs.abs().sum() > 0
        assert ((ours - theirs).norm() / theirs.norm()) < 0.05  # inputs of packed linears are rounded in training


def test_outputs_as_tuples():
    model = encoder()
    with torch.no_grad():
        expected = dequantized(model)(**inputs(), output_hidden_states=True, return_dict=False)
        got = fuse(model)(**inputs(), output_hidden_states=True, return_dict=False)
    assert len(got) == len(expected) == 3
    assert len(got[2]) == len(expected[2]) == 4
    assert torch.allclose(real(got[0]), real(expected[0]), atol=1e-5)
    assert len(model(**inputs(), return_dict=False)) == 2


def test_attentions_are_refused():
    with pytest.raises(UserError, match="output_attentions"):
        fuse(encoder())(**inputs(), output_attentions=True)


def test_a_model_that_was_moved_takes_the_buckets_along():
    model = fuse(encoder()).to("meta")
    assert model.encoder.buckets.device.type == "meta"


def test_a_table_with_too_few_rows_stays_plain():
    model = fuse(encoder(relative_attention_num_buckets=16))
    assert not fused_layers(model)
    assert unfused_reasons(model) == ["relative_attention_num_buckets is 16, and MPNet reads 32 rows"] * 3


def test_a_folder_is_loaded_fused(tmp_path, tiny_teacher):
    model = build("mpnet", initializer_range=0.3)
    save_packed(pack(model, "dense", "int8"), AutoTokenizer.from_pretrained(tiny_teacher), tmp_path / "packed")
    loaded = AutoModelForSequenceClassification.from_pretrained(tmp_path / "packed")
    assert len(fused_layers(loaded)) == 3
    assert torch.allclose(
        loaded(**inputs()).logits, dequantized(pack(model, "dense", "int8"))(**inputs()).logits, atol=1e-5
    )
    loaded.save_pretrained(tmp_path / "again")
    first, second = (load_file(tmp_path / name / "model.safetensors") for name in ("packed", "again"))
    assert list(first) == list(second)


def test_launches_are_those_of_bert():
    model = fuse(encoder())
    assert len(layer_linears(model)) == 0  # all are packed
    assert {layer["launches"] for layer in describe_fused(model, device="h200")} == {9}
