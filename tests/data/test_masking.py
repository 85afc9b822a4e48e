import numpy as np
import pytest

from lit_compress.data.masking import mask_tokens

SPECIAL, MASK, WORDS = np.array([0, 1, 2, 3, 4]), 4, np.arange(5, 1000)


def masked(ids, key=(0, 0, 0), probability=0.15):
    return mask_tokens(ids, SPECIAL, MASK, WORDS, probability, key)


@pytest.mark.parametrize("probability", [0.15, 0.4])
def test_shares(probability):
    ids = np.random.default_rng(0).integers(5, 1000, 200_000)
    got, labels = masked(ids, probability=probability)
    drawn = labels != -100
    assert drawn.mean() == pytest.approx(probability, abs=0.005)
    assert (got[drawn] == MASK).mean() == pytest.approx(0.8, abs=0.01)
    # A tenth stays, and one word in a thousand is replaced by itself.
    assert (got[drawn] == ids[drawn]).mean() == pytest.approx(0.1, abs=0.01)
    assert (labels[drawn] == ids[drawn]).all()
    assert (got[~drawn] == ids[~drawn]).all()
    others = drawn & (got != MASK) & (got != ids)
    assert len(np.unique(got[others])) > 900


def test_special_tokens_are_neither_masked_nor_put_in():
    ids = np.tile(np.array([2, 7, 3, 1, 0, 4]), 5000)
    got, labels = masked(ids, probability=0.9)
    special = np.isin(ids, SPECIAL)
    assert (labels[special] == -100).all()
    assert (got[special] == ids[special]).all()
    assert not np.isin(got[~special], [0, 1, 2, 3]).any()


def test_a_function_of_its_key():
    ids = np.arange(5, 500)
    keys = [(0, 0, 0), (1, 0, 0), (0, 1, 0), (0, 0, 1)]
    first, again = ([masked(ids, key)[1].tolist() for key in keys] for _ in range(2))
    assert first == again
    assert len({tuple(labels) for labels in first}) == len(keys)
