"""Values that rows of a table do not have."""

import pyarrow
from datasets import Dataset

__all__ = ["missing_row"]


def missing_row(table: Dataset, column: str, in_lists_alone: bool = False) -> int | None:
    """The first row, from 1, with no value in a column, or with a list that lacks one; None where all is there.

    Args:
        table: rows of a source, as it was read.
        column: one of its columns.
        in_lists_alone: whether a row without a list is as good as an empty one.

    """
    values = table.data.column(column)
    kind = values.type
    lists = pyarrow.types.is_list(kind) or pyarrow.types.is_large_list(kind)
    entries = sum(chunk.flatten().null_count for chunk in values.chunks) if lists else 0
    if not entries and (in_lists_alone or not values.null_count):
        return None
    for row, value in enumerate(values.to_pylist(), 1):
        if (value is None and not in_lists_alone) or (isinstance(value, list) and None in value):
            return row
    return None
