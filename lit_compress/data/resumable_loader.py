"""Continuing in the middle of an epoch."""

from collections.abc import Callable, Iterator
from typing import Any

from torch.utils.data import DataLoader

__all__ = ["ResumableDataLoader"]


class ResumableDataLoader(DataLoader):
    """A ``DataLoader`` that knows how many batches of its epoch it handed out, and can start an epoch after some.

    Skipped batches are skipped by index, without reading them.

    Attributes:
        epoch_ended: asked when the state is saved; a trainer may end an epoch before the loader does
            (``limit_train_batches``), and then the next one starts at the beginning.
        interrupted: called when the state is saved; whether the batch that was handed out last counts as not used.

    """

    epoch_ended: Callable[[], bool] = staticmethod(lambda: False)
    interrupted: Callable[[], bool] = staticmethod(lambda: False)
    _consumed: int = 0
    _skip: int = 0

    def __iter__(self) -> Iterator[Any]:
        self._consumed, self._skip = self._skip, 0
        for batch in self._rest() if self._consumed else super().__iter__():
            self._consumed += 1
            yield batch

    def state_dict(self) -> dict[str, int]:
        """Batches of the current epoch that were handed out, or will be left out when it begins."""
        if self.interrupted():
            return {"consumed": self._consumed - 1}
        return {"consumed": self._skip or (0 if self.epoch_ended() else self._consumed)}

    def load_state_dict(self, state_dict: dict[str, int]) -> None:
        """Let the next epoch start after the batches consumed; after a finished epoch it starts from the beginning."""
        self._skip = state_dict["consumed"] % len(self)

    def _rest(self) -> DataLoader:
        return DataLoader(
            self.dataset,
            sampler=list(self.sampler)[self._consumed :],
            batch_size=None,
            collate_fn=self.collate_fn,
            num_workers=self.num_workers,
            pin_memory=self.pin_memory,
            generator=self.generator,
        )
