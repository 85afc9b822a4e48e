"""A file of predictions that is written in parts: an interrupted run continues, and the file appears whole."""

import csv
import json
import re
import shutil
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow
from pyarrow import parquet

from lit_compress.errors import UserError
from lit_compress.files import atomic_file, begins, check_file, foreign_file

__all__ = ["FORMATS", "PredictionFile", "check_predictions"]

FORMATS = (".csv", ".jsonl", ".parquet", ".npy")  # the last for vectors alone
PART_SECONDS = 30.0
_SETTINGS = "settings.json"
# What follows the row in predictions of the package's own tasks: how a file of predictions is told from others.
_SECOND_COLUMNS = ("label", "labels", "value", "score", "tags", "id", "embedding")


def check_predictions(
    output: str | Path, overwrite: bool = False, inputs: Sequence[str] = (), column: str | None = None
) -> None:
    """Refuse a file that predictions cannot be written to; for before any work.

    Args:
        output: ``.csv``, ``.jsonl``, ``.parquet``, or for vectors ``.npy``.
        overwrite: replace earlier predictions.
        inputs: files that are read.
        column: that follows the row in what will be written; None where that is not known yet.

    Raises:
        UserError: another ending, or something is there that must stay.

    """
    suffix = Path(output).suffix
    if suffix not in FORMATS:
        raise UserError(f"--output: {str(output)!r} must end in one of {', '.join(FORMATS)}")
    second = "|".join(map(re.escape, (*_SECOND_COLUMNS, column))) if column else r'[^,"\n]+'
    is_own = {
        ".csv": begins(rf"row,({second})[,\n]"),
        ".jsonl": begins(rf'\{{"row": \d+, "({second})": '),
        ".parquet": partial(_is_own_parquet, second=second),
        ".npy": _is_vectors,
    }
    check_file(output, is_own[suffix], overwrite, inputs)


class PredictionFile:
    """Collects records; each full part is a finished file in a folder next to the output, which is removed at the end.

    Args:
        output: ``.csv``, ``.jsonl``, ``.parquet``, or for vectors ``.npy``.
        schema: columns.
        settings: what the predictions follow from, JSON types; parts made with others are not continued.
        part_rows: most rows of a part.
        overwrite: replace earlier predictions.

    Attributes:
        done: rows that are written already.

    Raises:
        UserError: another ending, an output that exists, parts of other settings, or no permission.

    """

    def __init__(
        self,
        output: str | Path,
        schema: pyarrow.Schema,
        settings: Mapping[str, Any],
        part_rows: int = 10_000,
        overwrite: bool = False,
    ) -> None:
        self.output, self.schema, self.part_rows = Path(output), schema, part_rows
        check_predictions(output, overwrite, column=schema.names[1])
        if self.output.suffix == ".npy" and not (len(schema) == 2 and _is_vector(schema.types[1])):
            raise UserError(f"--output: {str(output)!r} holds vectors alone; give .csv, .jsonl or .parquet")
        if part_rows < 1:
            raise UserError(f"--part_rows: {part_rows} must be 1 or more")
        self.parts = self.output.with_name(f".{self.output.name}.parts")
        self._open_parts({"columns": [str(field) for field in schema], **settings})
        self._waiting: list[dict[str, Any]] = []
        self.done = sum(self._rows_of(part) for part in self._finished())
        self._written = time.monotonic()

    def add(self, records: Iterable[dict[str, Any]]) -> None:
        """Take records in the order of their rows, those of rows that are written already left out.

        A full part is written at once, and one that is not when the last is :data:`PART_SECONDS` old.
        """
        for record in records:
            if record["row"] >= self.done:
                self._waiting.append(record)
            if len(self._waiting) == self.part_rows:
                self._write_part()
        if self._waiting and time.monotonic() - self._written >= PART_SECONDS:
            self._write_part()

    def finish(self) -> None:
        """Write the last part, join all of them to the output, and remove them.

        Raises:
            UserError: parts are missing, which somebody has removed meanwhile.

        """
        if self._waiting:
            self._write_part()
        finished = self._finished()
        if (found := sum(map(self._rows_of, finished))) != self.done:
            raise UserError(
                f"--output: {str(self.parts)!r} has the first {found} of {self.done} rows that were written; another "
                f"`predict` has removed the others, perhaps to write {str(self.output)!r}; run this one again"
            )
        with atomic_file(self.output) as staging:
            join = {".csv": self._join_text, ".jsonl": self._join_text, ".parquet": self._join_parquet}
            join[".npy"] = _join_npy
            join[self.output.suffix](staging, finished)
        if foreign_file(self.parts, _is_own_part) is None:
            shutil.rmtree(self.parts)

    def _open_parts(self, settings: dict[str, Any]) -> None:
        file = self.parts / _SETTINGS
        text = json.dumps(settings, indent=1, sort_keys=True) + "\n"
        if file.is_file():
            known = file.read_text()
            if known != text:
                raise UserError(
                    f"--output: {str(self.parts)!r} has parts of another model, file or setting "
                    f"({_difference(known, settings)}); remove that folder, or choose another --output"
                )
            return
        if self.parts.exists() and (foreign := foreign_file(self.parts, _is_own_part)) is not None:
            raise UserError(
                f"--output: the parts go to {str(self.parts)!r}, which has {foreign!r} in it; choose another --output"
            )
        with atomic_file(file) as staging:
            staging.write_text(text)

    def _finished(self) -> list[Path]:
        """The parts so far, in order, up to the first gap."""
        found, row = [], 0
        while part := next(iter(self.parts.glob(f"part-{row:012d}-*{self.output.suffix}")), None):
            found.append(part)
            row += self._rows_of(part)
        return found

    @staticmethod
    def _rows_of(part: Path) -> int:
        first, last = part.name.split(".")[0].split("-")[1:]
        return int(last) - int(first) + 1

    def _write_part(self) -> None:
        first, last = self.done, self.done + len(self._waiting) - 1
        part = self.parts / f"part-{first:012d}-{last:012d}{self.output.suffix}"
        write = {".csv": _write_csv, ".jsonl": _write_jsonl, ".parquet": _write_parquet, ".npy": _write_npy}
        with atomic_file(part) as staging:
            write[self.output.suffix](staging, self._waiting, self.schema)
        self.done, self._waiting, self._written = last + 1, [], time.monotonic()

    def _join_text(self, staging: Path, parts: Sequence[Path]) -> None:
        with staging.open("wb") as target:
            if self.output.suffix == ".csv":
                target.write((",".join(map(_quoted, self.schema.names)) + "\n").encode())
            for part in parts:
                with part.open("rb") as source:
                    shutil.copyfileobj(source, target)

    def _join_parquet(self, staging: Path, parts: Sequence[Path]) -> None:
        with parquet.ParquetWriter(staging, self.schema) as writer:
            for part in parts:
                writer.write_table(parquet.read_table(part, schema=self.schema))


def _is_vector(kind: pyarrow.DataType) -> bool:
    return pyarrow.types.is_list(kind) and pyarrow.types.is_floating(kind.value_type)


def _is_own_part(name: str) -> bool:
    return name.lstrip(".").startswith(("part-", _SETTINGS))  # hidden while it is written


def _is_own_parquet(path: Path, second: str) -> bool:
    try:
        names = parquet.read_schema(path).names
    except pyarrow.ArrowInvalid:
        return False
    return len(names) > 1 and names[0] == "row" and re.fullmatch(second, names[1]) is not None


def _write_csv(path: Path, records: Sequence[dict[str, Any]], schema: pyarrow.Schema) -> None:
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file, lineterminator="\n").writerows(_cells(records, schema))


def _cells(records: Sequence[dict[str, Any]], schema: pyarrow.Schema) -> Iterator[list[Any]]:
    for record in records:
        # A cell holds no list; as JSON it can be read back whatever the entries are.
        yield [
            json.dumps(_rounded(value), ensure_ascii=False) if isinstance(value, list) else _rounded(value)
            for value in (record.get(name) for name in schema.names)
        ]


def _write_jsonl(path: Path, records: Sequence[dict[str, Any]], schema: pyarrow.Schema) -> None:
    with path.open("w", encoding="utf-8") as file:
        for record in records:
            row = {name: _rounded(record.get(name)) for name in schema.names}
            file.write(json.dumps(row, ensure_ascii=False) + "\n")


def _write_parquet(path: Path, records: Sequence[dict[str, Any]], schema: pyarrow.Schema) -> None:
    columns = {name: [record.get(name) for record in records] for name in schema.names}
    parquet.write_table(pyarrow.table(columns, schema=schema), path)


def _write_npy(path: Path, records: Sequence[dict[str, Any]], schema: pyarrow.Schema) -> None:
    with path.open("wb") as file:  # `save` would change another ending
        np.save(file, np.array([record[schema.names[1]] for record in records], dtype=np.float32))


def _join_npy(staging: Path, parts: Sequence[Path]) -> None:
    read = [np.load(part, mmap_mode="r", allow_pickle=False) for part in parts]
    rows, width = sum(map(len, read)), read[0].shape[1] if read else 0
    with staging.open("wb") as file:
        header = {"descr": np.lib.format.dtype_to_descr(np.dtype(np.float32)), "fortran_order": False}
        np.lib.format.write_array_header_1_0(file, header | {"shape": (rows, width)})
        for part in read:
            file.write(part.tobytes())


def _is_vectors(path: Path) -> bool:
    """Whether a file is an array ``(rows, width)`` of fp32."""
    try:
        found = np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, EOFError):
        return False
    return isinstance(found, np.ndarray) and found.ndim == 2 and found.dtype == np.float32


def _rounded(value: Any) -> Any:
    """fp32 numbers with the digits that they have."""
    if isinstance(value, list):
        return [*map(_rounded, value)]
    return float(f"{value:.9g}") if isinstance(value, float) else value


def _quoted(name: str) -> str:
    return '"' + name.replace('"', '""') + '"' if any(c in name for c in ',"\r\n') else name


def _difference(known: str, settings: Mapping[str, Any]) -> str:
    try:
        before = json.loads(known)
    except ValueError:
        return "damaged settings"
    names = [name for name in {**before, **settings} if before.get(name) != json.loads(json.dumps(settings.get(name)))]
    return ", ".join(names)
