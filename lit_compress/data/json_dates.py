"""Text in JSON that looks like dates, which the usual reader turns into points in time."""

import json
from collections.abc import Iterator, Sequence
from typing import Any

from datasets import Features, List, Value

from lit_compress.text_files import open_text, read_json

__all__ = ["read_rows", "without_dates"]


def without_dates(features: Features) -> Features:
    """The same columns with text in the place of points in time: JSON has none."""
    return Features({name: _as_written(feature) for name, feature in features.items()})


def _as_written(feature: Any) -> Any:
    if isinstance(feature, Value) and feature.dtype.startswith("timestamp"):
        return Value("string")
    if isinstance(feature, dict):
        return {name: _as_written(inner) for name, inner in feature.items()}
    return List(_as_written(feature.feature)) if isinstance(feature, List) else feature


def read_rows(path: str, stamp: str, encoding: str, errors: str, names: Sequence[str]) -> Iterator[dict[str, Any]]:
    """Rows of a file with a JSON object a line, or with one list; None where a row lacks a column.

    Raises:
        ValueError: it is not JSON.

    """
    with open_text(path, encoding, errors) as file:
        is_list = file.read(2**12).lstrip().startswith("[")
    rows = iter(read_json(path, encoding, errors)) if is_list else _lines(path, encoding, errors)
    for row in rows:
        columns = row if isinstance(row, dict) else {"text": row}  # as the usual reader calls a list of texts
        yield {name: columns.get(name) for name in names}


def _lines(path: str, encoding: str, errors: str) -> Iterator[Any]:
    with open_text(path, encoding, errors) as file:
        for number, line in enumerate(file, 1):
            try:
                if line.strip():
                    yield json.loads(line, strict=False)
            except json.JSONDecodeError as error:
                raise ValueError(f"line {number} is not JSON: {error}") from None
