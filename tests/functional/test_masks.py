import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lit_compress.functional import (
    balanced_block_mask,
    block_mask,
    global_group_masks,
    global_masks,
    group_mask,
    magnitude,
    nm_mask,
    sparsity,
    unstructured_mask,
)
from lit_compress.functional.masks import balanced_count, block_means

fractions = st.floats(0, 1)
any_shape = st.lists(st.integers(1, 9), min_size=1, max_size=3).map(tuple)


@st.composite
def tied_scores(draw, shapes):
    """Scores of few different values, so that the threshold nearly always falls among equals."""
    shape = draw(shapes)
    generator = torch.Generator().manual_seed(draw(st.integers(0, 1000)))
    return torch.randint(0, draw(st.integers(1, 6)), shape, generator=generator).float()


def pruned_positions(mask):
    return set((~mask).flatten().nonzero().flatten().tolist())


@given(tied_scores(any_shape), fractions)
def test_unstructured_prunes_the_lowest_and_of_equals_the_first(scores, fraction):
    mask = unstructured_mask(scores, fraction)
    count = round(fraction * scores.numel())
    expected = scores.flatten().argsort(stable=True)[:count].tolist()
    assert mask.dtype == torch.bool
    assert mask.shape == scores.shape
    assert pruned_positions(mask) == set(expected)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("fraction", [0.0, 0.3, 0.5, 0.999, 1.0])
def test_unstructured_count_is_exact_in_every_dtype(dtype, fraction):
    # In bfloat16 most of 1,000 random numbers have an equal.
    mask = unstructured_mask(torch.randn(10, 100).to(dtype), fraction)
    assert int((~mask).sum()) == round(fraction * 1000)


def test_unstructured_reads_scores_in_any_memory_layout():
    scores = torch.randn(6, 8)
    assert torch.equal(unstructured_mask(scores.t(), 0.4), unstructured_mask(scores.t().contiguous(), 0.4))


def test_what_scores_minus_infinity_goes_first():
    scores = torch.tensor([0.0, -torch.inf, 0.0, -torch.inf])
    assert unstructured_mask(scores, 0.5).tolist() == [True, False, True, False]
    assert unstructured_mask(scores, 0.75).tolist() == [False, False, True, False]


@given(tied_scores(any_shape), fractions, fractions)
def test_more_sparsity_only_adds_to_what_is_pruned(scores, one, other):
    low, high = sorted([one, other])
    assert pruned_positions(unstructured_mask(scores, low)) <= pruned_positions(unstructured_mask(scores, high))


@given(st.lists(tied_scores(any_shape), min_size=1, max_size=4), fractions)
def test_global_count_is_exact_and_the_threshold_is_one(scores, fraction):
    masks = global_masks(scores, fraction)
    assert [mask.shape for mask in masks] == [score.shape for score in scores]
    kept = torch.cat([score[mask] for score, mask in zip(scores, masks, strict=True)])
    pruned = torch.cat([score[~mask] for score, mask in zip(scores, masks, strict=True)])
    assert len(pruned) == round(fraction * (len(kept) + len(pruned)))
    if len(kept) and len(pruned):
        assert pruned.max() <= kept.min()


def test_global_may_empty_one_layer_and_spare_another():
    low, high = global_masks([torch.full((2, 2), 0.1), torch.full((2, 2), 5.0)], 0.5)
    assert not low.any()
    assert high.all()


@given(
    st.sampled_from([(2, 4), (1, 4), (3, 4), (4, 8), (1, 2), (0, 4), (4, 4)]),
    st.integers(1, 4),
    st.integers(1, 4),
    st.integers(0, 1000),
)
def test_nm_keeps_the_highest_of_each_group(pattern, rows, groups, seed):
    keep, group = pattern
    scores = torch.randint(0, 4, (rows, groups * group), generator=torch.Generator().manual_seed(seed)).float()
    mask = nm_mask(scores, keep, group)
    assert mask.dtype == torch.bool
    assert mask.shape == scores.shape
    for part, kept in zip(scores.reshape(-1, group), mask.reshape(-1, group), strict=True):
        expected = part.argsort(stable=True)[: group - keep].tolist()
        assert pruned_positions(kept) == set(expected)


@given(
    st.sampled_from([(1, 4), (4, 1), (2, 2), (3, 2), (1, 1)]),
    st.integers(1, 5),
    st.integers(1, 5),
    fractions,
    st.integers(0, 1000),
)
def test_blocks_are_pruned_whole_and_counted_exactly(block, across, down, fraction, seed):
    rows, columns = block
    shape = (rows * down, columns * across)
    scores = torch.randint(0, 3, shape, generator=torch.Generator().manual_seed(seed)).float()
    mask = block_mask(scores, fraction, block)
    assert mask.shape == shape
    blocks = mask.unfold(0, rows, rows).unfold(1, columns, columns).reshape(down * across, -1)
    assert torch.equal(blocks.any(1), blocks.all(1))
    assert int((~blocks.all(1)).sum()) == round(fraction * down * across)


def test_blocks_are_ranked_by_their_mean():
    # The block with the highest single score has the lowest mean.
    scores = torch.tensor([[5.0, 0.0, 0.0, 0.0, 2.0, 2.0, 2.0, 2.0]])
    assert block_mask(scores, 0.5, (1, 4)).tolist() == [[False] * 4 + [True] * 4]


def test_block_means():
    scores = torch.arange(16.0).reshape(4, 4)
    assert block_means(scores, (2, 2)).tolist() == [[2.5, 4.5], [10.5, 12.5]]
    assert block_means(scores, (1, 4)).tolist() == [[1.5], [5.5], [9.5], [13.5]]


def test_block_that_does_not_divide_is_refused():
    with pytest.raises(RuntimeError):
        block_mask(torch.ones(4, 6), 0.5, (1, 4))


def test_group_that_does_not_divide_a_row_is_refused():
    # 4 x 6 scores have a whole number of groups of four, but they would reach from one row into the next.
    with pytest.raises((RuntimeError, ValueError)):
        nm_mask(torch.ones(4, 6), 2, 4)


@pytest.mark.parametrize(
    ("tensor", "expected"),
    [
        (torch.tensor([True, False, False, False]), 0.75),
        (torch.ones(3, 3), 0.0),
        (torch.tensor([[0.0, -0.0], [1e-30, -2.0]]), 0.5),
    ],
)
def test_sparsity_counts_zeros(tensor, expected):
    assert sparsity(tensor) == expected


def test_sparsity_of_a_pruned_weight_is_what_was_asked():
    weight = torch.randn(40, 50)
    assert sparsity(weight * unstructured_mask(magnitude(weight), 0.85)) == pytest.approx(0.85)


@given(tied_scores(st.tuples(st.integers(1, 20))), st.data())
def test_group_masks_keep_exactly_so_many_of_the_highest(scores, draw):
    keep = draw.draw(st.integers(1, scores.numel()))
    mask = group_mask(scores, keep)
    assert int(mask.sum()) == keep
    assert keep == scores.numel() or scores[mask].min() >= scores[~mask].max()


@given(st.lists(tied_scores(st.tuples(st.integers(1, 9))), min_size=1, max_size=5), st.data())
def test_global_group_masks_keep_exactly_so_many_and_one_of_each(scores, draw):
    keep = draw.draw(st.integers(len(scores), sum(s.numel() for s in scores)))
    masks = global_group_masks(scores, keep)
    assert sum(int(mask.sum()) for mask in masks) == keep
    assert all(mask.any() for mask in masks)
    assert all(mask[score.argmax()] for score, mask in zip(scores, masks, strict=True))


def test_global_group_masks_compare_layers_of_any_scale():
    small, large = torch.tensor([1.0, 0.9, 0.1]), torch.tensor([1000.0, 1.0, 1.0])
    assert [m.tolist() for m in global_group_masks([small, large], 3)] == [[True, True, False], [True, False, False]]


def test_what_is_gone_stays_gone():
    scores = [torch.tensor([-torch.inf, 1.0]), torch.tensor([-torch.inf, 0.0, 1.0])]
    assert [m.tolist() for m in global_group_masks(scores, 3)] == [[False, True], [False, True, True]]


def test_fewer_groups_than_layers_are_an_error():
    with pytest.raises(ValueError, match="1 groups cannot leave one in each of 2 layers"):
        global_group_masks([torch.rand(3), torch.rand(3)], 1)


@given(
    st.sampled_from([((1, 1), 1), ((3, 2), 1), ((4, 2), 2), ((128, 32), 4)]),
    st.integers(1, 300),
    st.integers(1, 9),
    fractions,
    st.integers(0, 1000),
)
def test_balanced_blocks_keep_equally_many_everywhere(layout, out_features, across, fraction, seed):
    (rows, columns), multiple = layout
    shape = (out_features, columns * across)
    scores = torch.randint(0, 3, shape, generator=torch.Generator().manual_seed(seed)).float()
    mask = balanced_block_mask(scores, fraction, (rows, columns), multiple)
    assert mask.shape == shape
    count = balanced_count(across, fraction, multiple)
    for tile in mask.split(rows):
        blocks = tile.reshape(len(tile), across, columns)
        assert torch.equal(blocks.any(dim=(0, 2)), blocks.all(dim=2).all(dim=0))
        assert int(blocks[0, :, 0].sum()) == count
    for tile, kept in zip(scores.split(rows), mask.split(rows), strict=True):
        sums = tile.reshape(len(tile), across, columns).sum(dim=(0, 2))
        order = sums.argsort(stable=True)[: across - count].tolist()
        assert pruned_positions(kept.reshape(len(tile), across, columns)[0, :, 0]) == set(order)


@pytest.mark.parametrize(
    ("blocks", "sparsity", "multiple", "kept"),
    [
        (24, 0.5, 4, 12),  # BERT-base, 768 inputs
        (24, 0.667, 4, 8),
        (24, 0.75, 4, 8),  # between 4 and 8: the one that prunes less
        (24, 0.8, 4, 4),
        (24, 0.99, 4, 4),  # never nothing
        (96, 0.8, 4, 20),  # 3,072 inputs
        (96, 0.9, 4, 8),
        (10, 0.05, 4, 10),
        (10, 0.15, 4, 8),
        (5, 0.7, 1, 2),
        (3, 0.9, 4, 3),
    ],
)
def test_levels_of_balanced_blocks(blocks, sparsity, multiple, kept):
    assert balanced_count(blocks, sparsity, multiple) == kept


@given(st.integers(1, 100), st.integers(1, 8), fractions, fractions)
def test_more_sparsity_never_keeps_more_blocks(blocks, multiple, one, other):
    low, high = sorted([one, other])
    assert balanced_count(blocks, high, multiple) <= balanced_count(blocks, low, multiple)
