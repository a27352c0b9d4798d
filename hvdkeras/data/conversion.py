"""The checked conversion of raw rows to what a column's model requires, in whole blocks of rows.

It runs on Spark's executors, so it imports neither Spark nor TensorFlow.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from hvdkeras.data.columns import Column
from hvdkeras.data.raw import NULL, SIZE, flat_values, nulls_as_nan

NAN = "NaN"
INFINITE = "infinite values"
FRACTION = "fractions"
OUTSIDE = "values out of range"


@dataclass(frozen=True)
class Problem:
    """Rows of a block that can't be used, for one reason.

    Attributes:
        what: the reason, as a noun.
        count: number of such rows.
        row: number of the first of them.
        example: its value; empty where there is none to show.
    """

    what: str
    count: int
    row: int
    example: str = ""


def convert(
    column: Column, raw: pa.Array | np.ndarray | list[bytes | None]
) -> tuple[np.ndarray | pa.Array | None, list[Problem]]:
    """Converts a block of n raw rows to what the model requires.

    Args:
        column: what the model requires.
        raw: Arrow array (numbers, lists of any nesting, binary, vectors as Spark stores them in Parquet) or
            NumPy array whose first axis is the row. For an encoded column: bytes, in an Arrow array or a
            list.

    Returns:
        The array of shape `(n, *column.shape)`, which may share memory with `raw` (for an encoded column an
        Arrow array of bytes), and an empty list; or None and the problems, whose rows are numbered from the
        start of the block.
    """
    if column.encoded:
        return _check_encoded(raw)
    rows = len(raw)
    if isinstance(raw, np.ndarray):
        values, used, faults = raw.reshape(rows, -1), None, {}
    else:
        values, used, faults = flat_values(nulls_as_nan(raw) if column.nan else raw, column.sizes)
    problems = [Problem(what, int(mask.sum()), int(mask.argmax())) for what, mask in faults.items()]
    if values.shape[1] not in column.sizes:
        problems.append(Problem(SIZE, rows, 0, f"{values.shape[1]} instead of {column.sizes[0]}"))
        return None, problems
    encode = column.one_hot and values.shape[1] != column.size
    result, found = check_values(column, values, used, encode)
    problems += found
    if problems:
        return None, problems
    if encode:
        return _one_hot(values, column), []
    return np.ascontiguousarray(result, column.dtype).reshape(rows, *column.shape), []


def check_values(
    column: Column, values: np.ndarray, used: np.ndarray | None, encode: bool = False
) -> tuple[np.ndarray, list[Problem]]:
    """Checks values, shape `(n, k)`, and casts floats to the column's dtype.

    Args:
        column: what the model requires.
        values: the values of n rows.
        used: the numbers of the rows, shape `(n,)`; None: from 0 to n - 1.
        encode: whether the values are class numbers that are to be one-hot encoded.
    """
    if np.dtype(column.dtype).kind in "iub" or encode or (column.classes and not column.one_hot):
        return values, _check_whole(column, values, used, encode)
    with np.errstate(over="ignore"):
        result = values.astype(column.dtype, copy=False)
    return result, _check_infinite(result, used) if column.nan else _check_finite(result, used)


def _check_encoded(raw: pa.Array | list[bytes | None]) -> tuple[pa.Array | None, list[Problem]]:
    if not isinstance(raw, pa.Array):
        raw = pa.array(raw, pa.large_binary())
    if not raw.null_count:
        return raw, []
    null = raw.is_null().to_numpy(zero_copy_only=False)
    return None, [Problem(NULL, int(null.sum()), int(null.argmax()))]


def _check_finite(values: np.ndarray, used: np.ndarray | None) -> list[Problem]:
    # A sum with NaN or infinity is not finite. So the slow, element-wise search is needed for such sums only.
    with np.errstate(all="ignore"):
        total = values.sum(dtype=np.promote_types(values.dtype, np.float32)) if values.size else 0
    if np.isfinite(total):
        return []
    return _problems(NAN, np.isnan(values), values, used) + _check_infinite(values, used)


def _check_infinite(values: np.ndarray, used: np.ndarray | None) -> list[Problem]:
    return _problems(INFINITE, np.isinf(values), values, used)


def _check_whole(column: Column, values: np.ndarray, used: np.ndarray | None, encode: bool) -> list[Problem]:
    """Finds values that are not whole numbers of the column's range."""
    if not values.size:
        return []
    if values.dtype.kind == "f":
        problems = _check_finite(values, used)
        if problems:
            return problems
        fraction = values != np.floor(values)
        if fraction.any():
            return _problems(FRACTION, fraction, values, used)
    dtype = np.dtype(column.dtype)
    if column.classes is not None and (encode or not column.one_hot):
        low, high = 0, column.classes - 1
    elif dtype.kind == "f":
        return []
    else:
        low, high = (0, 1) if dtype.kind == "b" else (np.iinfo(dtype).min, np.iinfo(dtype).max)
    if values.min() >= low and values.max() <= high:
        return []
    outside = (values < low) | (values > high)
    if column.ignored is not None:
        outside &= values != column.ignored
    return _problems(OUTSIDE, outside, values, used)


def _problems(what: str, wrong: np.ndarray, values: np.ndarray, used: np.ndarray | None) -> list[Problem]:
    rows = wrong.any(axis=1)
    if not rows.any():
        return []
    first = int(rows.argmax())
    example = str(values[first][wrong[first]][0])
    return [Problem(what, int(rows.sum()), first if used is None else int(used[first]), example)]


def _one_hot(labels: np.ndarray, column: Column) -> np.ndarray:
    labels = labels.astype(np.intp, copy=False).ravel()
    result = np.zeros((len(labels), column.classes), column.dtype)
    result[np.arange(len(labels)), labels] = 1
    return result.reshape(-1, *column.shape)
