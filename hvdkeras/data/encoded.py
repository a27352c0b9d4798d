"""Encoded columns, bytes of any length in each row: written in blocks, mapped, and read without a copy.

A part of such a column is two .npy files: the rows' bytes one after the other, and the offsets at which the
rows begin.
"""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
from pyarrow import fs

from hvdkeras.data.columns import DataError
from hvdkeras.data.raw import binary_values
from hvdkeras.data.store import ColumnFile, map_file, map_rows


class Encoded(NamedTuple):
    """One row of an encoded column.

    Attributes:
        row: number of the row in the data.
        data: bytes of the row, in the mapped file.
    """

    row: int
    data: memoryview


def offsets_file(file: str) -> str:
    """Returns the name of the offsets' file that belongs to a file of bytes."""
    return f"{file.removesuffix('.npy')}-offsets.npy"


class EncodedFile:
    """The two files of a part of an encoded column, to which rows are appended as to a `ColumnFile`.

    Args:
        path: the file of the bytes, which does not exist yet.

    Attributes:
        paths: the two files.
    """

    def __init__(self, path: str) -> None:
        self._size, self.paths = 0, (path, offsets_file(path))
        with contextlib.ExitStack() as files:
            self._data = files.enter_context(ColumnFile(self.paths[0], (), "uint8"))
            self._offsets = files.enter_context(ColumnFile(self.paths[1], (), "int64"))
            self._offsets.append(np.zeros(1, np.int64))
            self._files = files.pop_all()

    def append(self, rows: pa.Array) -> None:
        """Appends rows, an Arrow array of bytes without nulls."""
        offsets, data = binary_values(rows)
        self._offsets.append(offsets[1:] + self._size)
        self._data.append(data)
        self._size += len(data)

    def __enter__(self) -> EncodedFile:
        return self

    def __exit__(self, *failure: object) -> None:
        self._files.close()


class EncodedRows:
    """Mapped rows of an encoded column.

    Args:
        data: the rows' bytes, uint8.
        offsets: where each row begins in the bytes and where the last one ends, shape `(n + 1,)`.
        first: number of the first row in the data.
    """

    def __init__(self, data: np.ndarray, offsets: np.ndarray, first: int = 0) -> None:
        self._data, self._offsets, self._first = data, offsets, first

    def part(self, start: int, stop: int, first: int) -> EncodedRows:
        """Returns the rows from `start` to `stop`, whose first one has the number `first` in the data."""
        return EncodedRows(self._data, self._offsets[start : stop + 1], first)

    def take(self, rows: np.ndarray) -> np.ndarray:
        """Returns the rows of these numbers, shape `(k,)`, as an array of `Encoded`, shape `(k,)`."""
        out, data = np.empty(len(rows), object), self._data.data
        bounds = zip(
            rows.tolist(), self._offsets[rows].tolist(), self._offsets[rows + 1].tolist(), strict=True
        )
        for place, (row, start, stop) in enumerate(bounds):
            out[place] = Encoded(self._first + row, data[start:stop])
        return out


def check_bytes(name: str, values: Any) -> list[bytes | None]:
    """Checks that the rows of an encoded column are bytes or null.

    Args:
        name: name of the column, for the error.
        values: the rows: a list, or a NumPy array of objects.

    Returns:
        The rows, as a list.

    Raises:
        DataError: a row is something else, or `values` has NumPy's own type for bytes, which drops zeros at
            the end of a row.
    """
    rows = values.tolist() if isinstance(values, np.ndarray) and values.dtype == object else values
    kinds = {type(row) for row in rows if row is not None} if isinstance(rows, list) else {type(values)}
    if not kinds <= {bytes}:
        received = ", ".join(sorted(kind.__name__ for kind in kinds))
        raise DataError(
            f"column {name!r} must be a list or a NumPy array of objects, bytes in each row, for decode. "
            f"Received: {received}{f' of {values.dtype}' if hasattr(values, 'dtype') else ''}"
        )
    return rows


def open_encoded(path: str) -> EncodedRows:
    """Maps the rows of a local part, whose file of bytes is `path`."""
    return EncodedRows(*map(map_file, (path, offsets_file(path))))


def map_encoded(system: fs.FileSystem, files: Sequence[tuple[str, int, int]]) -> EncodedRows:
    """Copies rows of a store's parts to one file of this machine, as `map_rows` does, and maps it.

    The offsets of the rows stay in memory, eight bytes a row.

    Args:
        system: the store's file system.
        files: (path, first row, end row) of every part, in order.
    """
    spans, begins, size = [], [np.zeros(1, np.int64)], 0
    for path, start, stop in files:
        offsets = map_rows(system, [(offsets_file(path), start, stop + 1)], (), "int64")
        spans.append((path, int(offsets[0]), int(offsets[-1])))
        begins.append(offsets[1:] - offsets[0] + size)
        size = int(begins[-1][-1])
    # An empty file can't be memory-mapped.
    data = map_rows(system, spans, (), "uint8") if size else np.empty(0, np.uint8)
    return EncodedRows(data, np.concatenate(begins))
