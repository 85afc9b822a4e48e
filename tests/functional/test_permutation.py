import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lit_compress.functional import balanced_block_mask
from lit_compress.functional.permutation import group_alike, neuron_order

BLOCK, MULTIPLE = (8, 4), 2


def planted(neurons, inputs, clusters, seed=0):
    """Rows of as many kinds, each with its own half of the blocks of inputs; shuffled."""
    generator = torch.Generator().manual_seed(seed)
    supports = torch.stack([torch.rand(inputs // BLOCK[1], generator=generator).argsort() < inputs // BLOCK[1] // 2
                            for _ in range(clusters)])  # fmt: skip
    kind = (torch.arange(neurons) % clusters)[torch.randperm(neurons, generator=generator)]
    large = supports[kind].repeat_interleave(BLOCK[1], 1)
    return torch.rand(neurons, inputs, generator=generator) * 0.1 + large, kind


def kept(scores, sparsity=0.5):
    return scores[balanced_block_mask(scores, sparsity, BLOCK, MULTIPLE)].sum() / scores.sum()


@given(st.integers(1, 50), st.integers(1, 5), st.integers(1, 9), st.integers(0, 100))
def test_it_is_a_permutation_and_the_same_every_time(rows, columns, size, seed):
    features = torch.randint(0, 3, (rows, columns), generator=torch.Generator().manual_seed(seed)).float()
    order = group_alike(features, size)
    assert sorted(order.tolist()) == list(range(rows))
    assert torch.equal(order, group_alike(features.clone(), size))


def test_like_rows_share_a_part():
    up, kind = planted(64, 32, clusters=4)
    order = group_alike(up, 16)
    for part in kind[order].split(16):
        assert len(part.unique()) == 1


def test_an_order_keeps_what_blocks_would_have_lost():
    up, _ = planted(64, 32, clusters=4)
    order = neuron_order(up, None, 64, 0.5, BLOCK, MULTIPLE)
    assert sorted(order.tolist()) == list(range(64))
    assert kept(up) < 0.8 < 0.9 < kept(up[order])


def test_both_matrices_count():
    up, _ = planted(64, 32, clusters=4)
    down = planted(64, 48, clusters=2, seed=1)[0].t()
    order = neuron_order(up, down, 64, 0.5, BLOCK, MULTIPLE)
    assert kept(up[order]) > 0.9
    assert kept(down[:, order]) > kept(down)
    alone = neuron_order(None, down, 64, 0.5, BLOCK, MULTIPLE)
    assert kept(down[:, alone]) >= kept(down[:, order])


def test_rows_of_a_gate_move_with_their_neuron():
    up, _ = planted(32, 32, clusters=4)
    both = torch.cat([up, up.flip(1)])
    order = neuron_order(both, None, 32, 0.5, BLOCK, MULTIPLE)
    assert len(order) == 32
    assert kept(torch.cat([up[order], up.flip(1)[order]])) > kept(both)


@pytest.mark.parametrize("sparsity", [0.0, 0.5])
def test_no_order_when_none_is_better(sparsity):
    assert neuron_order(torch.ones(32, 16), torch.ones(16, 32), 32, sparsity, BLOCK, MULTIPLE) is None
