"""What a model said about a batch, as one record for each row of the file, in its order."""

from collections.abc import Iterable, Iterator
from typing import Any

import pyarrow
from torch import Tensor

from lit_compress.errors import UserError
from lit_compress.tasks import Task

__all__ = ["Records", "schema_of"]


def schema_of(task: Task) -> pyarrow.Schema:
    """Columns of the records.

    Args:
        task: whose predictions they are.

    Raises:
        UserError: a task whose predictions have no columns.

    Example:
        >>> from lit_compress.tasks import ClassificationTask
        >>> schema_of(ClassificationTask(["bad", "good"])).names
        ['row', 'label', 'probability_bad', 'probability_good']

    """
    columns = task.schema()
    if columns is None:
        raise UserError(f"--output: predictions of {task.name} are not written to files")
    return pyarrow.schema([("row", pyarrow.int64()), *columns])


class Records:
    """Joins the examples of a row, which may be several windows, to one record; rows without examples get one, too.

    Args:
        task: whose predictions they are.
        rows: the row of each example to come, ascending.
        first: first row that a record is made of.

    """

    def __init__(self, task: Task, rows: Iterable[int], first: int = 0) -> None:
        self.task = task
        self._rows = iter(rows)
        self._open: tuple[int, list[Any]] | None = None
        self._next = first

    def add(self, predictions: Any) -> Iterator[dict[str, Any]]:
        """The records that a batch of :meth:`lit_compress.tasks.Task.predictions` completes."""
        for prediction in predictions.float().cpu().tolist() if isinstance(predictions, Tensor) else predictions:
            row = int(next(self._rows))
            if self._open is not None and self._open[0] == row:
                self._open[1].append(prediction)
                continue
            yield from self._close()
            yield from self._fill(row)
            self._open = (row, [prediction])

    def finish(self, count: int) -> Iterator[dict[str, Any]]:
        """The records that are left, up to the number of rows in the file."""
        yield from self._close()
        yield from self._fill(count)

    def _close(self) -> Iterator[dict[str, Any]]:
        if self._open is not None:
            row, predictions = self._open
            yield {"row": row} | self.task.record(predictions)
            self._next, self._open = row + 1, None

    def _fill(self, end: int) -> Iterator[dict[str, Any]]:
        """Records of rows that made no example: a sentence without words."""
        for row in range(self._next, end):
            yield {"row": row} | self.task.record([])
        self._next = max(self._next, end)
