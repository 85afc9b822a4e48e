"""What a model said about a batch, as one record for each row of the file, in its order."""

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import pyarrow
from torch import Tensor

from lit_compress.errors import UserError

__all__ = ["Records", "schema_of"]

_TASKS = ("classification", "regression", "token_classification", "question_answering")


def schema_of(task: str, labels: Sequence[str] | None) -> pyarrow.Schema:
    """Columns of the records.

    Args:
        task: as in :func:`lit_compress.modules.tasks.make_task`.
        labels: class names in the order of their ids.

    Raises:
        UserError: a task whose predictions have no columns.

    Example:
        >>> schema_of("classification", ["bad", "good"]).names
        ['row', 'label', 'probability_bad', 'probability_good']

    """
    if task not in _TASKS:
        raise UserError(f"--output: predictions of {task} are not written to files; there are {', '.join(_TASKS)}")
    number, text = pyarrow.float32(), pyarrow.string()
    columns: dict[str, list[tuple[str, pyarrow.DataType]]] = {
        "classification": [("label", text), *((f"probability_{label}", number) for label in labels or ())],
        "regression": [("value", number)],
        "token_classification": [("tags", pyarrow.list_(text))],
        "question_answering": [
            *(("id", text), ("answer", text), ("start", pyarrow.int64()), ("end", pyarrow.int64())),
            *(("score", number), ("score_no_answer", number)),
        ],
    }
    return pyarrow.schema([("row", pyarrow.int64()), *columns[task]])


class Records:
    """Joins the examples of a row, which may be several windows, to one record; rows without examples get one, too.

    Args:
        task: as in :func:`schema_of`.
        labels: likewise.
        rows: the row of each example to come, ascending.
        first: first row that a record is made of.
        no_answer: whether a question may have no answer.

    """

    def __init__(
        self, task: str, labels: Sequence[str] | None, rows: Iterable[int], first: int = 0, no_answer: bool = False
    ) -> None:
        self.task, self.labels, self.no_answer = task, list(labels or ()), no_answer
        self._rows = iter(rows)
        self._open: tuple[int, list[Any]] | None = None
        self._next = first

    def add(self, predictions: Any) -> Iterator[dict[str, Any]]:
        """The records that a batch of :meth:`lit_compress.modules.tasks.Task.predictions` completes."""
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
            yield {"row": row} | getattr(self, f"_{self.task}")(predictions)
            self._next, self._open = row + 1, None

    def _fill(self, end: int) -> Iterator[dict[str, Any]]:
        """Records of rows that made no example: a sentence without words."""
        for row in range(self._next, end):
            yield {"row": row, "tags": []}
        self._next = max(self._next, end)

    def _classification(self, predictions: list[list[float]]) -> dict[str, Any]:
        (probabilities,) = predictions
        best = max(range(len(probabilities)), key=probabilities.__getitem__)
        named = {f"probability_{name}": value for name, value in zip(self.labels, probabilities, strict=True)}
        return {"label": self.labels[best]} | named

    def _regression(self, predictions: list[float]) -> dict[str, Any]:
        return {"value": predictions[0]}

    def _token_classification(self, predictions: list[dict[str, Any]]) -> dict[str, Any]:
        return {"tags": [tag for window in predictions for tag in window["tags"]]}

    def _question_answering(self, predictions: list[dict[str, Any]]) -> dict[str, Any]:
        spans = [window for window in predictions if window["text"] is not None]
        null = min(window["null"] for window in predictions)
        record: dict[str, Any] = {"id": predictions[0]["question"], "score_no_answer": null}
        best = max(spans, key=lambda window: window["score"], default=None)
        if best is None:
            return record | {"answer": "", "start": None, "end": None, "score": None}
        if self.no_answer and null > best["score"]:
            return record | {"answer": "", "start": None, "end": None, "score": best["score"]}
        return record | {"answer": best["text"], **{name: best[name] for name in ("start", "end", "score")}}
