import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lit_compress.functional import fisher


def recursion(gradients, damping, block_size):
    """The oracle: one block and one gradient at a time, as the paper writes it."""
    count, numel = gradients.shape
    padded = torch.nn.functional.pad(gradients, (0, -numel % block_size))
    inverses = []
    for columns in padded.split(block_size, dim=1):
        inverse = torch.eye(block_size, dtype=gradients.dtype) / damping
        for g in columns:
            moved = inverse @ g
            inverse = inverse - torch.outer(moved, moved) / (count + g @ moved)
        inverses.append(inverse)
    return torch.stack(inverses)


def added(gradients, damping, block_size, together=3, chunk=None):
    """What the package makes of the gradients ``(count, numel)``, some at a time."""
    count, numel = gradients.shape
    inverse = fisher.damped_inverse(numel, block_size, damping, dtype=gradients.dtype)
    for rows in gradients.split(together):
        blocks = torch.stack([fisher.to_blocks(row, block_size) for row in rows], dim=1)
        fisher.add_gradients_(inverse, blocks, count, chunk)
    return inverse


def fisher_blocks(gradients, damping, block_size):
    padded = torch.nn.functional.pad(gradients, (0, -gradients.shape[1] % block_size))
    rows = padded.reshape(len(gradients), -1, block_size).transpose(0, 1)
    return damping * torch.eye(block_size, dtype=gradients.dtype) + rows.mT @ rows / len(gradients)


def draw(count, numel, seed=0, dtype=torch.float64):
    return torch.randn(count, numel, generator=torch.Generator().manual_seed(seed), dtype=dtype)


@given(
    count=st.integers(1, 9),
    numel=st.integers(1, 23),
    block_size=st.integers(1, 8),
    together=st.integers(1, 5),
    chunk=st.integers(1, 4),
)
def test_inverse_equals_the_recursion_and_the_direct_inverse(count, numel, block_size, together, chunk):
    gradients = draw(count, numel)
    inverse = added(gradients, 0.1, block_size, together, chunk)
    torch.testing.assert_close(inverse, recursion(gradients, 0.1, block_size))
    torch.testing.assert_close(inverse, torch.linalg.inv(fisher_blocks(gradients, 0.1, block_size)))


# Scale of the gradients, number, damping: what fp32 makes of them. Fewer gradients than a block has entries leave
# directions in which the inverse is 1 / damping.
@pytest.mark.parametrize(("scale", "count", "damping"), [(1e-5, 256, 1e-7), (1e-3, 256, 1e-7), (1e-2, 16, 1e-7)])
def test_single_precision_is_enough(scale, count, damping):
    gradients = draw(count, 200) * scale
    exact = recursion(gradients, damping, 50).diagonal(dim1=1, dim2=2)
    got = added(gradients.float(), damping, 50, together=8).diagonal(dim1=1, dim2=2)
    assert ((got - exact) / exact).abs().max() < 1e-4


def test_update_is_in_place():
    inverse = fisher.damped_inverse(8, 4, 1.0)
    assert fisher.add_gradients_(inverse, torch.ones(2, 1, 4), 1) is inverse
    assert not torch.equal(inverse, fisher.damped_inverse(8, 4, 1.0))


def test_saliency_of_one_weight_is_its_square_by_twice_the_diagonal():
    gradients, weight = draw(12, 14), draw(1, 14, seed=1).reshape(2, 7)
    inverse = added(gradients, 0.2, 4)
    diagonal = inverse.diagonal(dim1=1, dim2=2).reshape(-1)[:14].reshape(2, 7)
    torch.testing.assert_close(fisher.saliency(weight, inverse), weight**2 / (2 * diagonal))


def test_a_group_of_one_is_a_weight():
    # Not by the shortcut that single weights take: groups of 2 in which the other weight is 0 and knows of nothing.
    gradients = draw(10, 12).reshape(10, 6, 2)
    gradients[..., 1] = 0
    weight = draw(1, 12, seed=1).reshape(6, 2)
    weight[:, 1] = 0
    inverse = added(gradients.reshape(10, 12), 0.1, 6)
    one, two = fisher.saliency(weight, inverse), fisher.saliency(weight, inverse, group=2)
    torch.testing.assert_close(two[:, 0], one[:, 0])


@pytest.mark.parametrize("group", [1, 2, 4])
def test_the_loss_rises_by_the_saliency(group):
    gradients, weight = draw(40, 24), draw(1, 24, seed=2).reshape(2, 12)
    inverse, blocks = added(gradients, 0.1, 8), fisher_blocks(gradients, 0.1, 8)
    scores = fisher.saliency(weight, inverse, group)
    for first in range(0, 24, group):
        pruned = torch.zeros(24, dtype=torch.bool)
        pruned[first : first + group] = True
        after = fisher.compensate(weight, inverse, pruned.reshape(2, 12), group)
        assert (after.reshape(-1)[pruned] == 0).all()
        change = fisher.to_blocks(after - weight, 8)
        rise = torch.einsum("bi,bij,bj->", change, blocks, change) / 2
        torch.testing.assert_close(rise, scores.reshape(-1)[first])


def test_compensation_is_the_best_that_the_rest_of_the_block_can_do():
    gradients, weight = draw(40, 8), draw(1, 8, seed=2).reshape(-1)
    matrix, pruned = fisher_blocks(gradients, 0.1, 8)[0], torch.arange(8) == 3
    after = fisher.compensate(weight, added(gradients, 0.1, 8), pruned)
    # The constrained minimum of the quadratic: the gradient vanishes in every direction that is free.
    assert ((matrix @ (after - weight))[~pruned]).abs().max() < 1e-10


def test_contributions_are_summed_inside_a_block():
    gradients, weight = draw(20, 8), draw(1, 8, seed=3).reshape(-1)
    inverse = added(gradients, 0.1, 8)
    pruned = torch.tensor([1, 0, 0, 1, 0, 0, 0, 0], dtype=torch.bool)
    alone = [fisher.compensate(weight, inverse, pruned & (torch.arange(8) == q)) - weight for q in (0, 3)]
    both = fisher.compensate(weight, inverse, pruned) - weight
    torch.testing.assert_close(both[~pruned], (alone[0] + alone[1])[~pruned])


def test_other_blocks_do_not_change():
    weight = draw(1, 12, seed=4).reshape(-1)
    after = fisher.compensate(weight, added(draw(9, 12), 0.1, 4), torch.arange(12) == 5)
    changed = (after != weight).reshape(3, 4).any(1)
    assert changed.tolist() == [False, True, False]


def test_pruned_weights_get_nothing_from_the_others():
    # Their gradient is 0, so the Fisher matrix does not connect them to anything.
    gradients, weight = draw(9, 8), draw(1, 8, seed=4).reshape(-1)
    gradients[:, 2], weight[2] = 0, 0
    after = fisher.compensate(weight, added(gradients, 0.1, 8), torch.arange(8) == 5)
    assert after[2] == 0


def test_large_damping_ranks_by_magnitude():
    weight = draw(1, 60, seed=5, dtype=torch.float32).reshape(6, 10)
    order = fisher.saliency(weight, added(draw(30, 60, dtype=torch.float32), 1e6, 10)).reshape(-1).argsort()
    assert torch.equal(order, weight.abs().reshape(-1).argsort())


def test_blocks_of_one_are_a_diagonal_without_compensation():
    gradients, weight = draw(15, 6), draw(1, 6, seed=6).reshape(-1)
    inverse, pruned = added(gradients, 0.1, 1), torch.arange(6) < 2
    torch.testing.assert_close(fisher.saliency(weight, inverse), weight**2 * (0.1 + gradients.square().mean(0)) / 2)
    assert torch.equal(fisher.compensate(weight, inverse, pruned), weight.masked_fill(pruned, 0))


def test_half_precision_weights_come_back_as_they_were():
    weight, inverse = torch.randn(4, 4).bfloat16(), fisher.damped_inverse(16, 8, 0.1)
    assert inverse.dtype == torch.float32
    assert fisher.compensate(weight, inverse, torch.zeros(4, 4, dtype=torch.bool)).dtype == torch.bfloat16


def test_bytes_are_those_of_the_tensors():
    numel, block_size, together, chunk = 1001, 50, 8, 4
    inverse = fisher.damped_inverse(numel, block_size, 1.0)
    buffer = torch.empty(len(inverse), together, block_size)
    workspace = 4 * chunk * (2 * together * block_size + 3 * together**2)
    assert fisher.inverse_bytes(numel, block_size, together, chunk=chunk) == inverse.nbytes + buffer.nbytes + workspace
