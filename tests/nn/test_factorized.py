import json

import pytest
import torch
from torch import nn

from lit_compress.errors import UserError
from lit_compress.nn import FactorizedEmbedding, describe, factorized_embeddings, rebuild

IDS = torch.tensor([[0, 3, 7], [1, 1, 8]])


def table():
    return nn.Embedding(9, 6, padding_idx=1)


def test_the_full_rank_looks_up_the_same_rows():
    plain = table()
    factors = FactorizedEmbedding.from_embedding(plain, 6)
    assert torch.allclose(factors(IDS), plain(IDS), atol=1e-6)
    assert (factors.num_embeddings, factors.embedding_dim, factors.padding_idx) == (9, 6, 1)


def test_a_lower_rank_is_off_by_the_singular_values_left_out():
    plain = table()
    factors = FactorizedEmbedding.from_embedding(plain, 2)
    rows = factors(torch.arange(9))
    tail = torch.linalg.svdvals(plain.weight)[2:].norm()
    assert torch.isclose((rows - plain.weight).norm(), tail, atol=1e-5)
    assert factors.weight.shape == (9, 2)
    assert factors.projection.weight.shape == (6, 2)


def test_a_rank_above_the_width_is_an_error():
    with pytest.raises(ValueError, match="rank 7 of a matrix of 9 x 6"):
        FactorizedEmbedding.from_embedding(table(), 7)


def test_the_padding_row_gets_no_gradient():
    factors = FactorizedEmbedding.from_embedding(table(), 3)
    factors(IDS).sum().backward()
    assert not factors.weight.grad[1].any()
    assert factors.weight.grad[[0, 3, 7, 8]].all()


def test_a_frozen_table_becomes_frozen_factors():
    factors = FactorizedEmbedding.from_embedding(table().requires_grad_(False), 3)
    assert not any(p.requires_grad for p in factors.parameters())


def masked(rank=4, kept=2):
    factors = FactorizedEmbedding.from_embedding(table(), rank)
    factors.add_rank_mask()
    factors.rank_mask[kept:] = False
    return factors


def test_a_masked_column_has_no_say_and_no_gradient():
    factors = masked()
    before = factors(IDS)
    before.sum().backward()
    assert not factors.weight.grad[:, 2:].any()
    assert not factors.projection.weight.grad[:, 2:].any()
    with torch.no_grad():
        factors.weight[:, 2:] = 9
        factors.projection.weight[:, 2:] = 9
    assert torch.equal(factors(IDS), before)


def test_cutting_gives_what_masking_gave():
    factors = masked()
    names, before = set(dict(factors.named_parameters())), factors(IDS)
    assert factors.kept_rank() == 2
    factors.to_rank(2)
    assert torch.allclose(factors(IDS), before, atol=1e-6)
    assert factors.rank_mask is None
    assert factors.kept_rank() == factors.rank == factors.projection.in_features == 2
    assert set(dict(factors.named_parameters())) == names == {"weight", "projection.weight"}


def test_weights_of_a_plain_table_do_not_load():
    with pytest.raises(RuntimeError, match="size mismatch"):
        FactorizedEmbedding(9, 3, 6).load_state_dict(table().state_dict(), strict=False)


def test_the_manifest_gives_the_structure_back():
    model = nn.Sequential(table(), nn.Linear(6, 2))
    model[0] = masked()
    manifest = json.loads(json.dumps(describe(model)))
    assert manifest["factorized"] == {"0": {"rank": 4, "mask": True}}
    again = nn.Sequential(table(), nn.Linear(6, 2))
    for _ in range(2):
        rebuild(again, manifest)
    again.load_state_dict(model.state_dict())
    assert describe(again) == manifest
    assert torch.equal(again(IDS), model(IDS))
    assert [name for name, _ in factorized_embeddings(again)] == ["0"]


def test_a_table_of_another_rank_is_replaced():
    model = nn.Sequential(FactorizedEmbedding(9, 5, 6))
    rebuild(model, {"factorized": {"0": {"rank": 3, "mask": False}}})
    assert model[0].weight.shape == (9, 3)


def test_a_manifest_that_names_no_embedding_is_an_error():
    with pytest.raises(UserError, match="'1', which is not among the embedding"):
        rebuild(nn.Sequential(table(), nn.Linear(6, 2)), {"factorized": {"1": {"rank": 3, "mask": False}}})
