import itertools

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.utils.data import Dataset

from lit_compress.data import LengthGroupedBatches, ResumableDataLoader


def lengths(count, seed=0):
    return torch.randint(1, 128, (count,), generator=torch.Generator().manual_seed(seed)).tolist()


def epoch(batches, number=0):
    batches.set_epoch(number)
    return list(batches)


def flat(batches):
    return list(itertools.chain.from_iterable(batches))


sizes = st.integers(1, 400)


@given(sizes, st.integers(1, 9), st.booleans(), st.integers(0, 5))
def test_every_index_once_per_epoch(count, batch_size, shuffle, number):
    batches = LengthGroupedBatches(lengths(count), batch_size, shuffle)
    found = epoch(batches, number)
    assert sorted(flat(found)) == list(range(count))
    assert len(found) == len(batches)
    assert [len(batch) for batch in found[:-1]] == [batch_size] * (len(found) - 1)


@given(sizes, st.integers(1, 9), st.integers(2, 4), st.booleans())
def test_ranks_share_an_epoch(count, batch_size, world, shuffle):
    ranks = [LengthGroupedBatches(lengths(count), batch_size, shuffle, 3, world, rank) for rank in range(world)]
    epochs = [epoch(rank) for rank in ranks]
    assert [len(rank) for rank in ranks] == [len(batches) for batches in epochs]
    assert len({len(batches) for batches in epochs}) == 1
    seen = []
    for parts in zip(*epochs, strict=True):
        sizes = {len(part) for part in parts}
        together = flat(parts)
        padding = len(together) - len(set(together))
        if shuffle:
            # Ranks wait for each other in every step, so their batches are equally large.
            assert len(sizes) == 1
            assert padding < world
        else:
            assert 0 not in sizes
            assert max(sizes) - min(sizes) <= 1
        if count >= world:
            # A rank reads no example twice; only the last batch has padding at all.
            assert all(len(set(part)) == len(part) for part in parts)
        seen += together
    assert set(seen) == set(range(count))
    if not shuffle and count >= world:
        assert len(seen) == count  # a metric over all ranks counts each example once


def test_order_is_a_function_of_seed_and_epoch():
    def order(seed, number):
        return epoch(LengthGroupedBatches(lengths(300), 8, seed=seed), number)

    assert order(1, 2) == order(1, 2)
    orders = [order(seed, number) for seed in (0, 1) for number in (0, 1, 2)]
    assert all(one != other for one, other in itertools.combinations(orders, 2))


def test_order_does_not_draw_from_the_global_generator():
    state = torch.get_rng_state()
    epoch(LengthGroupedBatches(lengths(50), 8))
    assert torch.equal(torch.get_rng_state(), state)


def test_batches_hold_similar_lengths_in_random_order():
    count, size = 4000, 16
    every = lengths(count)
    found = epoch(LengthGroupedBatches(every, size))

    def padded(batches):
        return sum(max(every[i] for i in batch) * len(batch) for batch in batches)

    in_file_order = padded([list(range(i, i + size)) for i in range(0, count, size)])
    assert padded(found) < 1.1 * sum(every) < in_file_order / 1.5
    # Not sorted: long and short batches are mixed.
    longest = [max(every[i] for i in batch) for batch in found]
    rises = sum(early < late for early, late in itertools.pairwise(longest))
    assert 0.3 < rises / len(longest) < 0.7


def test_without_shuffle_the_longest_come_first():
    # Memory runs out in the first batch or never.
    every = lengths(100)
    found = flat(epoch(LengthGroupedBatches(every, 8, shuffle=False)))
    assert [every[i] for i in found] == sorted(every, reverse=True)
    assert found == flat(epoch(LengthGroupedBatches(every, 8, shuffle=False), 5))


class Squares(Dataset):
    """Counts what is read, in this process."""

    def __init__(self, count=30):
        self.count, self.read = count, 0

    def __len__(self):
        return self.count

    def __getitems__(self, indices):
        return self[indices]

    def __getitem__(self, indices):
        self.read += len(indices)
        return torch.tensor(indices) ** 2


def loader(workers=0, seed=7, dataset=None):
    dataset = dataset or Squares()
    return ResumableDataLoader(
        dataset,
        sampler=LengthGroupedBatches(lengths(len(dataset)), 4, seed=seed),
        batch_size=None,
        num_workers=workers,
        generator=torch.Generator(),
    )


def values(batches):
    return [batch.tolist() for batch in batches]


def after(count, loader):
    """The state after ``count`` batches of an epoch, taken while it runs."""
    iterator = iter(loader)
    for _ in range(count):
        next(iterator)
    return loader.state_dict()


@pytest.mark.parametrize("workers", [0, 1])
@pytest.mark.parametrize("count", [0, 1, 5, 7])
def test_a_new_loader_continues_with_the_remaining_batches(count, workers):
    whole = values(loader())
    assert len(whole) == 8
    resumed = loader(workers)
    resumed.load_state_dict(after(count, loader(workers if count == 5 else 0)))
    assert values(resumed) == whole[count:]


def test_only_one_epoch_is_shortened():
    resumed = loader()
    resumed.load_state_dict(after(6, loader()))
    assert len(values(resumed)) == 2
    resumed.sampler.set_epoch(1)
    fresh = loader()
    fresh.sampler.set_epoch(1)
    assert values(resumed) == values(fresh)


def test_a_finished_epoch_starts_anew():
    first = loader()
    whole = values(first)
    resumed = loader()
    resumed.load_state_dict(first.state_dict())
    assert values(resumed) == whole


def test_the_remaining_batches_are_those_of_the_epoch_that_was_left():
    def in_epoch(number):
        other = loader()
        other.sampler.set_epoch(number)
        return other

    resumed = in_epoch(3)
    resumed.load_state_dict(after(2, in_epoch(3)))
    assert values(resumed) == values(in_epoch(3))[2:]


def test_a_resumed_epoch_can_be_left_and_resumed_again():
    whole = values(loader())
    second = loader()
    second.load_state_dict(after(3, loader()))
    third = loader()
    third.load_state_dict(after(2, second))
    assert values(third) == whole[5:]


def test_state_that_was_loaded_is_still_there_before_the_first_batch():
    # A checkpoint written between loading and the first batch must not lose the position.
    first = loader()
    first.load_state_dict(after(3, loader()))
    second = loader()
    second.load_state_dict(first.state_dict())
    assert values(second) == values(loader())[3:]


def test_consumed_batches_are_not_read():
    dataset = Squares()
    resumed = loader(dataset=dataset)
    resumed.load_state_dict(after(6, loader()))
    assert len(flat(values(resumed))) == dataset.read < 30


def test_length_is_that_of_the_whole_epoch():
    resumed = loader()
    resumed.load_state_dict(after(6, loader()))
    assert len(resumed) == 8
