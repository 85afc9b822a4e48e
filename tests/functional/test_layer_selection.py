import pytest
import torch

from lit_compress.functional import keep_by_position, keep_dissimilar, keep_highest, weight_score


# The paper's layers count from 1; of 12 these are dropped.
@pytest.mark.parametrize(
    ("position", "drop", "dropped"),
    [
        ("top", 4, [9, 10, 11, 12]),
        ("top", 6, [7, 8, 9, 10, 11, 12]),
        ("bottom", 4, [1, 2, 3, 4]),
        ("bottom", 6, [1, 2, 3, 4, 5, 6]),
        ("symmetric", 4, [5, 6, 7, 8]),
        ("symmetric", 6, [4, 5, 6, 7, 8, 9]),
        ("alternate-odd", 4, [5, 7, 9, 11]),
        ("alternate-odd", 6, [1, 3, 5, 7, 9, 11]),
        ("alternate-even", 4, [6, 8, 10, 12]),
        ("alternate-even", 6, [2, 4, 6, 8, 10, 12]),
    ],
)
def test_the_rules_of_the_paper(position, drop, dropped):
    kept = [index + 1 for index in keep_by_position(12, drop, position)]
    assert kept == [number for number in range(1, 13) if number not in dropped]


@pytest.mark.parametrize(
    ("count", "drop", "kept"), [(12, 5, [0, 1, 2, 3, 9, 10, 11]), (6, 1, [0, 1, 2, 4, 5]), (3, 2, [0]), (2, 1, [0])]
)
def test_an_odd_number_leaves_one_layer_more_at_the_bottom(count, drop, kept):
    assert keep_by_position(count, drop, "symmetric") == kept


@pytest.mark.parametrize("position", ["top", "bottom", "symmetric", "alternate-odd", "alternate-even"])
@pytest.mark.parametrize("count", range(1, 14))
def test_exactly_as_many_go_or_it_is_an_error(position, count):
    numbered_so = {"alternate-odd": (count + 1) // 2, "alternate-even": count // 2}
    most = min(numbered_so.get(position, count), count - 1)
    for drop in range(1, most + 1):
        kept = keep_by_position(count, drop, position)
        assert len(kept) == count - drop
        assert kept == sorted(set(kept))
        assert set(kept) <= set(range(count))
    for drop in (-1, 0, most + 1, count, count + 1):
        with pytest.raises(ValueError, match=f"1 to {most}, not {drop}"):
            keep_by_position(count, drop, position)


def test_the_most_similar_layers_go():
    similarities = [0.5, 0.97, 0.8, 0.97, 0.99, 0.2]
    assert keep_dissimilar(similarities, drop=1) == [0, 1, 2, 3, 5]
    assert keep_dissimilar(similarities, drop=2) == [0, 1, 2, 5]  # of equals the upper
    assert keep_dissimilar(similarities, threshold=0.97) == [0, 1, 2, 3, 5]  # above, not at
    assert keep_dissimilar(similarities, threshold=0.925) == [0, 2, 5]


@pytest.mark.parametrize(("threshold", "what"), [(0.1, "no layer"), (1.0, "every layer")])
def test_a_threshold_without_effect_is_an_error(threshold, what):
    with pytest.raises(ValueError, match=rf"0.2000 to 0.9000 leave {what} at {threshold}"):
        keep_dissimilar([0.2, 0.9], threshold=threshold)


@pytest.mark.parametrize("drop", [0, 3])
def test_one_layer_stays(drop):
    with pytest.raises(ValueError, match=f"1 to 2 can be dropped, not {drop}"):
        keep_highest([1.0, 2.0, 3.0], drop)


def test_weight_scores():
    small, large = torch.tensor([[1.0, -1.0]]), torch.full((4, 4), 3.0)
    assert weight_score([small, large], "aggregation") == 2.0  # (1 + 3) / 2: a matrix is a matrix
    assert weight_score([small, large], "variance") == 0.5  # (1 + 0) / 2
