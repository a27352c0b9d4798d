"""Rows of any length, strings and lists of numbers: as bytes in the shards, as arrays in a batch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from hvdkeras.data.columns import Column, DataError
from hvdkeras.data.conversion import Problem, check_values
from hvdkeras.data.encoded import Encoded
from hvdkeras.data.raw import NULL, SIZE, is_binary, is_list, ragged_values


def to_bytes(column: Column, raw: pa.Array | Sequence[Any]) -> tuple[pa.Array | None, list[Problem]]:
    """Converts a block of n raw rows to bytes, after the checks of `hvdkeras.data.conversion.convert`.

    Args:
        column: a column of strings, or one with `padding`.
        raw: an Arrow array, a NumPy array or a list.

    Returns:
        An Arrow array of n rows of bytes and an empty list; or None and the problems.
    """
    if column.is_string:
        return _strings_to_bytes(column, raw)
    return _lists_to_bytes(column, raw)


def from_bytes(column: Column, rows: Sequence[Encoded]) -> np.ndarray:
    """Returns a batch of rows that `to_bytes` has stored.

    Returns:
        Strings: an array of bytes, shape `(n, *shape)`. Lists: shape `(n, longest, *shape[1:])`, with the
        column's padding behind shorter rows.
    """
    if column.is_string:
        strings = [one for row in rows for one in _separated(bytes(row.data), column.size)]
        out = np.empty(len(strings), object)
        out[:] = strings
        return out.reshape(-1, *column.shape)
    lists = [np.frombuffer(row.data, column.dtype) for row in rows]
    return padded(lists, column.shape, column.dtype, column.padding)


def padded(
    lists: Sequence[np.ndarray], shape: Sequence[int | None], dtype: Any, padding: float
) -> np.ndarray:
    """Returns flat rows as one array, with padding behind the shorter ones.

    Args:
        lists: the values of each row, a multiple of those at one place of the first axis.
        shape: shape of a row, whose first axis is open.
        dtype: dtype of the array.
        padding: the value behind the end of a row.
    """
    longest = max(map(len, lists), default=0)
    out = np.full((len(lists), longest), padding, dtype)
    for row, values in zip(out, lists, strict=True):
        row[: len(values)] = values
    places = longest // int(np.prod(shape[1:], dtype=int))
    return out.reshape(len(lists), places, *shape[1:])


def check_rows(column: Column, rows: Any) -> Sequence[Any]:
    """Checks the form of an array or a list of strings or lists.

    Raises:
        DataError: it holds something else.
    """
    if column.is_string:
        array = np.asarray(rows)
        first = array.ravel()[0] if array.size else ""
        fits = array.dtype.kind in "US" or (array.dtype == object and isinstance(first, str | bytes | None))
        fits = fits and array.ndim > 0 and int(np.prod(array.shape[1:], dtype=int)) == column.size
        if not fits:
            raise DataError(
                f"column {column.name!r} must hold {column.requirement}. "
                f"Received: dtype {array.dtype}, shape {array.shape}"
            )
        return array
    rows = list(rows)
    kinds = {np.asarray(row).dtype.kind for row in rows}
    if not kinds <= set("fiubO"):
        raise DataError(f"column {column.name!r} must hold {column.requirement}. Received: others")
    return rows


def _strings_to_bytes(column: Column, raw: Any) -> tuple[pa.Array | None, list[Problem]]:
    if not isinstance(raw, pa.Array):
        raw = pa.array(np.asarray(raw, object).reshape(len(raw), -1).tolist())
    rows = len(raw)
    counts, null = np.ones(rows, int), np.zeros(rows, bool)
    row = np.arange(rows)
    while is_list(raw.type):
        missing = raw.is_null().to_numpy(zero_copy_only=False)
        null[row[missing]] = True
        row = np.repeat(row, pc.list_value_length(raw).fill_null(0).to_numpy(zero_copy_only=False))
        raw = raw.flatten()
        counts = np.bincount(row, minlength=rows)
    null[row[raw.is_null().to_numpy(zero_copy_only=False)]] = True
    problems = _problem(NULL, null) + _problem(SIZE, (counts != column.size) & ~null)
    if problems:
        return None, problems
    if column.size == 1:
        return raw.cast(pa.large_binary() if is_binary(raw.type) else pa.large_string()).cast(
            pa.large_binary()
        ), []
    values = [one.encode() if isinstance(one, str) else one for one in raw.to_pylist()]
    return pa.array(
        [_joined(values[at : at + column.size]) for at in range(0, len(values), column.size)],
        pa.large_binary(),
    ), []


def _joined(strings: Sequence[bytes]) -> bytes:
    return b"".join((np.array([len(one) for one in strings], np.int64).tobytes(), *strings))


def _separated(data: bytes, count: int) -> list[bytes]:
    if count == 1:
        return [data]
    lengths = np.frombuffer(data, np.int64, count)
    ends = np.cumsum(lengths) + lengths.nbytes
    return [data[end - length : end] for end, length in zip(ends.tolist(), lengths.tolist(), strict=True)]


def _lists_to_bytes(column: Column, raw: Any) -> tuple[pa.Array | None, list[Problem]]:
    if isinstance(raw, pa.Array):
        values, counts, null = ragged_values(raw)
    else:
        lists = [np.ravel(np.asarray(row)) for row in raw]
        null = np.array([row.dtype == object for row in lists], bool)
        lists = [np.empty(0) if missing else row for row, missing in zip(lists, null, strict=True)]
        values, counts = np.concatenate(lists), np.array([len(one) for one in lists])
    problems = _problem(NULL, null) + _problem(SIZE, counts % column.size != 0)
    result, found = check_values(column, values[:, np.newaxis], None)
    if problems or found:
        return None, problems + (_by_row(column, values, counts) if found else [])
    data = np.ascontiguousarray(result, column.dtype)
    offsets = np.concatenate([[0], np.cumsum(counts)]) * data.itemsize
    buffers = [None, pa.py_buffer(offsets.astype(np.int64)), pa.py_buffer(data)]
    return pa.Array.from_buffers(pa.large_binary(), len(counts), buffers), []


def _problem(what: str, wrong: np.ndarray) -> list[Problem]:
    return [Problem(what, int(wrong.sum()), int(wrong.argmax()))] if wrong.any() else []


def _by_row(column: Column, values: np.ndarray, counts: np.ndarray) -> list[Problem]:
    """The problems of values, counted by rows."""
    problems: dict[str, Problem] = {}
    for row, own in enumerate(np.split(values, np.cumsum(counts)[:-1])):
        for found in check_values(column, own[np.newaxis], np.array([row]))[1]:
            first = problems.get(found.what, replace(found, count=0))
            problems[found.what] = replace(first, count=first.count + 1)
    return list(problems.values())
