"""A corpus read while training continues: nothing is written, and it may be larger than disk and memory."""

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader
from torch.utils.data import IterableDataset as TorchIterable

from lit_compress.errors import UserError
from lit_compress.tasks import Batch

__all__ = ["StreamLoader", "StreamedBatches"]

Position = tuple[int, int, int]


class StreamedBatches(TorchIterable):
    """Batches of a corpus, forever, and where the next one begins.

    The corpus is read in blocks of rows; in pass ``p`` block ``b`` is encoded by rank ``(b + p) % world`` alone, so
    that a corpus of fewer blocks than ranks has something for each, too. Its sequences are put into a random order, and
    batches are taken from one block after the other. All of it follows from seed, pass and block, so a position is
    three numbers: the pass over the corpus, the block, and the sequence in it.

    Args:
        read: the corpus from its beginning, in blocks of so many rows, as columns.
        encode: columns of a block of rows, and its pass and number, to columns of sequences.
        collate: columns of a batch to what the model takes; gets a column ``key`` that names each sequence.
        batch_size: sequences in a batch.
        seed: determines the order within blocks, and is part of each ``key``.
        world: number of ranks.
        rank: this rank.
        source: name of the corpus in errors.

    """

    BLOCK = 1000

    def __init__(
        self,
        read: Callable[[int], Iterator[dict[str, list[Any]]]],
        encode: Callable[[dict[str, list[Any]], int, int], dict[str, list[Any]]],
        collate: Callable[[dict[str, list[Any]]], Batch],
        batch_size: int,
        seed: int,
        world: int = 1,
        rank: int = 0,
        source: str = "the corpus",
    ) -> None:
        super().__init__()
        self.read, self.encode, self.collate = read, encode, collate
        self.batch_size, self.seed, self.world, self.rank = batch_size, seed, world, rank
        self.source = source
        self.start: Position = (0, 0, 0)

    def __iter__(self) -> Iterator[tuple[Batch, Position]]:
        rows: list[dict[str, Any]] = []
        for row, position in self._sequences(*self.start):
            rows.append(row)
            if len(rows) == self.batch_size:
                yield self.collate({name: [row[name] for row in rows] for name in rows[0]}), position
                rows = []

    def _sequences(self, number: int, first: int, offset: int) -> Iterator[tuple[dict[str, Any], Position]]:
        empty = 0  # whole passes in a row without a sequence
        while True:
            made, is_whole = False, (first, offset) == (0, 0)
            for block, rows in enumerate(self.read(self.BLOCK)):
                if block < first or (block + number) % self.world != self.rank:
                    continue
                columns = self.encode(rows, number, block)
                order = np.random.default_rng([self.seed, number, block]).permutation(len(columns["input_ids"]))
                for place in range(offset, len(order)):
                    made, index = True, int(order[place])
                    row = {name: column[index] for name, column in columns.items()}
                    yield row | {"key": (self.seed, number, block, index)}, (number, block, place + 1)
                offset = 0
            empty = 0 if made else empty + is_whole
            # In so many passes each block was this rank's once.
            if empty == self.world:
                raise UserError(
                    f"data.train_file: {self.source!r} has no text that makes a sequence; pairs need documents of "
                    "several sentences"
                )
            number, first, offset = number + 1, 0, 0


class _InOneLine(TorchIterable):
    """Items of a stream, and a ``UserError`` as the last one: a worker would put its traceback into the message."""

    def __init__(self, batches: StreamedBatches) -> None:
        super().__init__()
        self.batches = batches

    def __iter__(self) -> Iterator[tuple[Batch, Position] | UserError]:
        try:
            yield from self.batches
        except UserError as error:
            yield error


class StreamLoader:
    """Hands out the batches of a stream, and knows the positions of all ranks.

    Args:
        batches: the stream.
        length: batches that training will take; Lightning's length of an epoch.
        workers: 0 encodes in the training process, 1 in another one.

    Attributes:
        interrupted: asked when the state is saved; whether the batch that was handed out last counts as not used.

    """

    interrupted: Callable[[], bool] = staticmethod(lambda: False)

    def __init__(self, batches: StreamedBatches, length: int, workers: int = 0) -> None:
        self.batches, self.length, self.workers = batches, length, workers
        self._before: Position = batches.start
        self._position: Position = batches.start

    def __len__(self) -> int:
        return self.length

    def __iter__(self) -> Iterator[Batch]:
        loader = DataLoader(
            _InOneLine(self.batches), batch_size=None, num_workers=self.workers, pin_memory=torch.cuda.is_available()
        )
        for item in loader:
            if isinstance(item, UserError):
                raise item
            batch, position = item
            self._before, self._position = self._position, tuple(position)
            yield batch

    def state_dict(self) -> dict[str, Any]:
        """Position of every rank; with several of them all must ask."""
        position = list(self._before if self.interrupted() else self._position)
        if self.batches.world == 1:
            return {"positions": [position]}
        everybody: list[Any] = [None] * self.batches.world
        torch.distributed.all_gather_object(everybody, position)
        return {"positions": everybody}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Begin where a checkpoint was made.

        Raises:
            UserError: it was made by another number of processes.

        """
        if "positions" not in state_dict:
            return
        positions = state_dict["positions"]
        if len(positions) != self.batches.world:
            raise UserError(
                f"data.streaming: the checkpoint has the places of {len(positions)} processes and this run has "
                f"{self.batches.world}; resume with as many"
            )
        self.batches.start = self._before = self._position = tuple(positions[self.batches.rank])
