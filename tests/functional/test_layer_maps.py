import pytest

from lit_compress.functional import drop_multiples_map, last_map, skip_map, uniform_map


@pytest.mark.parametrize(
    ("make", "depths", "expected"),
    [
        (uniform_map, (6, 12), {0: 0, 1: 2, 2: 4, 3: 6, 4: 8, 5: 10, 6: 12}),
        (uniform_map, (2, 3), {0: 0, 1: 2, 2: 3}),
        (uniform_map, (4, 2), {0: 0, 1: 0, 2: 1, 3: 2, 4: 2}),  # a deeper student
        # BERT-PKD from 12 layers to 6: its five pairs below the last layer, and the last.
        (last_map, (6, 12), {1: 7, 2: 8, 3: 9, 4: 10, 5: 11, 6: 12}),
        (skip_map, (6, 12), {1: 2, 2: 4, 3: 6, 4: 8, 5: 10, 6: 12}),
        (skip_map, (5, 12), {1: 2, 2: 4, 3: 6, 4: 8, 5: 10}),
        # ROSITA's settings: 12 to 8, and one to one.
        (drop_multiples_map, (8, 12), dict(enumerate([0, 1, 3, 4, 6, 7, 9, 10, 12]))),
        (drop_multiples_map, (8, 8), {i: i for i in range(9)}),
        (drop_multiples_map, (6, 12), {i: 2 * i for i in range(7)}),
        (drop_multiples_map, (9, 12), dict(enumerate([0, 1, 2, 4, 5, 6, 8, 9, 10, 12]))),
    ],
)
def test_maps_of_the_papers(make, depths, expected):
    assert make(*depths) == expected


@pytest.mark.parametrize("make", [uniform_map, last_map, skip_map, drop_multiples_map])
@pytest.mark.parametrize("depths", [(1, 12), (4, 12), (8, 12), (12, 12), (12, 24)])
def test_every_map_is_increasing_and_exists(make, depths):
    pairs = make(*depths)
    assert sorted(pairs.values()) == list(pairs.values())
    assert set(pairs) <= set(range(depths[0] + 1))
    assert set(pairs.values()) <= set(range(depths[1] + 1))


@pytest.mark.parametrize("make", [last_map, skip_map, drop_multiples_map])
def test_a_deeper_student_has_no_such_map(make):
    with pytest.raises(ValueError, match=r"at least 4 layers, and it has 3; use 'uniform'"):
        make(4, 3)


def test_a_rule_that_gives_another_number_of_layers_says_so():
    with pytest.raises(ValueError, match="keeps 11 of 12 layers, not 7"):
        drop_multiples_map(7, 12)
