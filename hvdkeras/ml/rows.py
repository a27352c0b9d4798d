"""Rows of a features column in whatever form Spark sends them, as arrays of a model's input."""

from __future__ import annotations

from dataclasses import replace
from decimal import Decimal
from typing import Any

import numpy as np
import pandas as pd

from hvdkeras.data.ragged import padded
from hvdkeras.models.saved import Tensor
from hvdkeras.naming import shown

UNEVEN = "nested arrays of equal lengths"


def fed_dtype(tensor: Tensor) -> np.dtype:
    """Returns the dtype of the array that is fed to an input. NumPy has no bfloat16: Keras casts to it.

    Strings are objects.
    """
    if tensor.is_string:
        return np.dtype(object)
    return np.dtype("float32" if tensor.dtype == "bfloat16" else tensor.dtype)


def vector_rows(column: pd.DataFrame) -> pd.Series:
    """Returns Spark's vectors, which reach a pandas UDF as a struct, as arrays; null for null."""
    if list(column) != ["type", "size", "indices", "values"]:
        raise ValueError(
            f"a features column must hold numbers, arrays or vectors. Received: {shown(list(column))}"
        )
    rows = np.empty(len(column), object)
    for number, (kind, size, indices, values) in enumerate(column.itertuples(index=False)):
        if kind == 0:
            rows[number] = np.zeros(int(size))
            rows[number][indices] = values
        elif kind == 1:
            rows[number] = values
    return pd.Series(rows)


def flat_rows(values: np.ndarray) -> np.ndarray:
    """Returns rows of bytes, nested arrays or numbers as arrays of one axis.

    A row that is null, or has a null among its nested arrays, is None.

    Raises:
        ValueError: nested arrays of one level have different lengths.
    """
    if all(type(row) is np.ndarray and row.dtype != object for row in values):
        return values
    result = np.empty(len(values), object)
    for number, row in enumerate(values):
        result[number] = _flat(row)
    return result


def _flat(row: Any) -> np.ndarray | None:
    if row is None:
        return None
    if isinstance(row, bytes | bytearray):
        return np.frombuffer(row, np.uint8)
    # A SQL function gets decimals as Python's objects.
    array = np.ravel(np.asarray(float(row) if isinstance(row, Decimal) else row))
    if array.dtype != object:
        return array
    if len(array) == 1 and array[0] is row:
        raise ValueError(f"numbers. Received: {type(row).__name__}")
    parts = [_flat(part) for part in array]
    if any(part is None for part in parts):
        return None
    if len({len(part) for part in parts}) > 1:
        raise ValueError(f"{UNEVEN}. Received: a row of arrays of {min(map(len, parts))} and more numbers")
    return np.concatenate(parts)


def string_rows(values: np.ndarray, tensor: Tensor) -> tuple[np.ndarray, np.ndarray]:
    """Returns rows of strings as one array of the tensor's shape, and a mask of the null ones, which are "".

    Raises:
        ValueError: a row has another number of strings than the tensor.
    """
    rows = [[row] if row is None or isinstance(row, str | bytes) else list(np.ravel(row)) for row in values]
    null = np.array([any(one is None for one in row) for row in rows], bool)
    sizes = {len(row) for row, missing in zip(rows, null, strict=True) if not missing}
    if sizes - {tensor.size}:
        raise ValueError(f"{tensor.size} strings a row. Received: {max(sizes - {tensor.size})}")
    out = np.empty((len(rows), tensor.size), object)
    for number, row in enumerate(rows):
        out[number] = [""] * tensor.size if null[number] else row
    return out.reshape(-1, *tensor.shape), null


def evened(values: np.ndarray, tensor: Tensor, padding: float | None) -> tuple[np.ndarray, Tensor]:
    """Returns rows of a tensor with an open axis as rows of one length, and the tensor of that shape.

    Args:
        values: rows as flat arrays, or as one number each.
        tensor: the input.
        padding: the value behind shorter rows; None: all must have one length.

    Raises:
        ValueError: lengths differ, and there is no padding.
    """
    if values.dtype != object:
        values = values[:, np.newaxis]
    lengths = {len(row) // tensor.size for row in values}
    shape = tuple(max(lengths) if axis is None else axis for axis in tensor.shape)
    if len(lengths) > 1:
        if padding is None:
            raise ValueError(
                f"lists of one length, unless padding names it. Received: lengths from {min(lengths)} to "
                f"{max(lengths)}"
            )
        dtype = np.result_type(*{row.dtype for row in values})
        values = padded(values, tensor.shape, dtype, padding).reshape(len(values), -1)
    return values, replace(tensor, shape=shape)


def stack(values: np.ndarray, tensor: Tensor, nan: bool = False) -> tuple[np.ndarray, np.ndarray]:
    """Returns rows as one array of the tensor's shape and dtype, and a mask of the rows that it can't hold.

    Those rows, with NaN, infinite values, or for an integer dtype fractions and numbers out of its range, are
    zeros in the array. A training refuses them, too.

    Args:
        values: the rows.
        tensor: the input.
        nan: whether NaN is a value like others.
    """
    dtype = fed_dtype(tensor)
    if values.dtype == object:
        # Floats are cast while they are copied. What is no integer must be found before the cast hides it.
        with np.errstate(over="ignore"):
            values = np.concatenate(values, dtype=dtype if dtype.kind == "f" else None, casting="unsafe")
    rows = values.reshape(-1, tensor.size)
    if dtype.kind == "f":
        with np.errstate(over="ignore"):
            rows = rows.astype(dtype, copy=False)
        wrong = np.isinf(rows).any(axis=1) if nan else ~np.isfinite(rows).all(axis=1)
    else:
        low, high = (0, 1) if dtype.kind == "b" else (np.iinfo(dtype).min, np.iinfo(dtype).max)
        # A comparison with NaN is False.
        fits = (rows >= low) & (rows < high + 1)
        if rows.dtype.kind == "f":
            fits &= rows == np.floor(rows)
        wrong = ~fits.all(axis=1)
    if wrong.any():
        rows = np.where(wrong[:, None], 0, rows)
    return rows.astype(dtype, copy=False).reshape(-1, *tensor.shape), wrong
