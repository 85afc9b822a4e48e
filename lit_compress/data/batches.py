"""Which examples go into which batch, on which rank, in which order."""

from collections.abc import Iterator, Sequence

import numpy as np
from torch.utils.data import DistributedSampler, SequentialSampler

__all__ = ["FixedBatches", "LengthGroupedBatches"]


class LengthGroupedBatches(DistributedSampler):
    """Yields whole batches of indices whose texts have similar lengths, so that little padding is computed.

    The order is a function of seed and epoch alone. Each global batch of ``batch_size * num_replicas`` neighbours in
    length is dealt out to the ranks, so they also wait little for each other. With ``shuffle`` the last one is filled
    up from its own start until it divides; without, every index is dealt out once, so that a metric counts no example
    twice, and no rank's batch is empty (unless there are fewer indices than ranks). Being a ``DistributedSampler``,
    Lightning leaves it as it is and tells it the epoch. Use it as
    ``DataLoader(dataset, sampler=batches, batch_size=None)``.

    Args:
        lengths: tokens of each example.
        batch_size: examples in a batch of one rank.
        shuffle: a new order each epoch (True), or sorted by length (False).
        seed: first half of what determines the order.
        num_replicas: number of ranks.
        rank: this rank.
        weights: with ``shuffle``, an epoch has as many examples as without, drawn with replacement and with
            probabilities in proportion to these; None takes each once.

    """

    # Batches taken from one pool share their lengths; pools are random. Large pools: less padding, less randomness.
    _POOL = 50

    def __init__(
        self,
        lengths: Sequence[int] | np.ndarray,
        batch_size: int,
        shuffle: bool = True,
        seed: int = 0,
        num_replicas: int = 1,
        rank: int = 0,
        weights: np.ndarray | None = None,
    ) -> None:
        super().__init__(lengths, num_replicas, rank, shuffle, seed)  # type: ignore[arg-type]
        self.lengths = np.asarray(lengths)
        self.batch_size = batch_size
        self.shares = None if weights is None else weights / weights.sum()

    def __len__(self) -> int:
        """Batches of one rank in an epoch."""
        full, rest = divmod(len(self.lengths), self.batch_size * self.num_replicas)
        joined = not self.shuffle and full and rest < self.num_replicas
        return full + (rest > 0 and not joined)

    def __iter__(self) -> Iterator[list[int]]:
        for batch in self._global_batches():
            if self.shuffle or len(batch) < self.num_replicas:
                missing = -len(batch) % self.num_replicas
                batch = np.concatenate([batch, np.resize(batch, missing)])
            yield batch[self.rank :: self.num_replicas].tolist()

    def _global_batches(self) -> list[np.ndarray]:
        size = self.batch_size * self.num_replicas
        if not self.shuffle:
            batches = self._cut(np.argsort(-self.lengths, kind="stable"), size)
            if len(batches) > 1 and len(batches[-1]) < self.num_replicas:
                batches[-2:] = [np.concatenate(batches[-2:])]
            return batches
        generator = np.random.default_rng([self.seed, self.epoch])
        count = len(self.lengths)
        order = generator.permutation(count) if self.shares is None else generator.choice(count, count, p=self.shares)
        batches = []
        for pool in self._cut(order, size * self._POOL):
            batches += self._cut(pool[np.argsort(-self.lengths[pool], kind="stable")], size)
        # Only full batches move: a short one in the middle would weigh its examples more with each shuffle elsewhere.
        full = [batch for batch in batches if len(batch) == size]
        rest = [batch for batch in batches if len(batch) < size]
        return [full[i] for i in generator.permutation(len(full))] + rest

    @staticmethod
    def _cut(indices: np.ndarray, size: int) -> list[np.ndarray]:
        return [indices[i : i + size] for i in range(0, len(indices), size)]


class FixedBatches(LengthGroupedBatches, SequentialSampler):
    """The same batches in every epoch, for ``overfit_batches``: Lightning replaces all but a ``SequentialSampler``."""

    def set_epoch(self, epoch: int) -> None:
        """Stay with the order of the first."""
