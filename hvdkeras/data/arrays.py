"""Arrays and lists as the rows of a column: the check of their form, before blocks of them are converted."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from hvdkeras.data.columns import Column, DataError
from hvdkeras.data.encoded import check_bytes
from hvdkeras.data.ragged import check_rows
from hvdkeras.data.raw import RAGGED, SIZE


def as_rows(column: Column, array: Any) -> np.ndarray | Sequence[Any]:
    """Returns the rows of a column.

    Args:
        column: what the model requires.
        array: an array or a list, whose first axis is the row.

    Raises:
        DataError: its values or its shape do not fit the column.
    """
    if column.encoded:
        return check_bytes(column.name, array)
    if column.of_bytes:
        return check_rows(column, array)
    array = _as_numbers(array)
    if array.dtype.kind not in "fiub" or not array.ndim:
        raise DataError(
            f"column {column.name!r} must be an array of numbers whose first axis is the row. "
            f"Received: dtype {array.dtype}, shape {array.shape}",
            [(column.name, RAGGED)] if array.dtype == object else [],
        )
    size = math.prod(array.shape[1:])
    if size not in column.sizes:
        raise DataError(
            f"column {column.name!r} must hold {column.requirement}. Received: shape {array.shape}",
            [(column.name, SIZE)],
        )
    return array


def _as_numbers(rows: Any) -> np.ndarray:
    """Rows as an array; of dtype object where they are lists of unequal lengths."""
    try:
        is_nested = isinstance(rows, np.ndarray) and rows.dtype.kind == "O" and len(rows) and np.ndim(rows[0])
        return np.asarray(list(rows) if is_nested else rows)
    except ValueError:
        return np.empty((len(rows),), object)
