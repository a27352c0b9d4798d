"""Columns of bytes of any length: written in blocks, mapped, and taken row by row without a copy.

A part of such a column is two .npy files: the rows' bytes one after the other, and where each row begins in
them.
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
from hvdkeras.data.store import ColumnFile, map_rows


class Encoded(NamedTuple):
    """One row of a column of bytes.

    Attributes:
        row: Its number in the data.
        data: Its bytes, in the mapped file.
    """

    row: int
    data: memoryview


def offsets_file(file: str) -> str:
    """Names the file of the rows' offsets that lies beside a file of bytes."""
    return f"{file.removesuffix('.npy')}-offsets.npy"


class EncodedFile:
    """The two files of a part of a column of bytes; they grow as a `ColumnFile` does.

    Args:
        path: The file of the bytes, which does not exist yet.
    """

    def __init__(self, path: str) -> None:
        self._size = 0
        with contextlib.ExitStack() as files:
            self._data = files.enter_context(ColumnFile(path, (), "uint8"))
            self._offsets = files.enter_context(ColumnFile(offsets_file(path), (), "int64"))
            self._offsets.append(np.zeros(1, np.int64))
            self._files = files.pop_all()

    def append(self, rows: pa.Array) -> None:
        """Adds rows, an Arrow array of bytes without nulls."""
        offsets, data = binary_values(rows)
        self._offsets.append(offsets[1:] + self._size)
        self._data.append(data)
        self._size += len(data)

    def __enter__(self) -> EncodedFile:
        return self

    def __exit__(self, *failure: object) -> None:
        self._files.close()


class EncodedRows:
    """Mapped rows of a column of bytes.

    Args:
        data: The rows' bytes, uint8.
        offsets: Where each row begins in them and where the last one ends, shape (n + 1,).
        first: Number of the first row in the data.
    """

    def __init__(self, data: np.ndarray, offsets: np.ndarray, first: int) -> None:
        self._data, self._offsets, self._first = data.data, offsets, first

    def take(self, rows: np.ndarray) -> np.ndarray:
        """Returns rows as an array of `Encoded`, shape (k,)."""
        out = np.empty(len(rows), object)
        bounds = zip(
            rows.tolist(), self._offsets[rows].tolist(), self._offsets[rows + 1].tolist(), strict=True
        )
        for place, (row, start, stop) in enumerate(bounds):
            out[place] = Encoded(self._first + row, self._data[start:stop])
        return out


def check_bytes(name: str, values: Any) -> list[bytes | None]:
    """Returns a column's rows, `values`, if they are bytes or null.

    Raises:
        DataError: They are not, or have passed through NumPy's own type for bytes, which loses the zeros at
            their ends.
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


def open_encoded(path: str, start: int, stop: int, first: int) -> EncodedRows:
    """Maps the rows from `start` to `stop` of a local part; `first` is the data's number of row `start`."""
    data, offsets = (np.asarray(np.load(file, mmap_mode="r")) for file in (path, offsets_file(path)))
    return EncodedRows(data, offsets[start : stop + 1], first)


def map_encoded(system: fs.FileSystem, files: Sequence[tuple[str, int, int]], first: int) -> EncodedRows:
    """Copies rows of a store's parts to this machine, as `map_rows` does, and maps them as one.

    Their offsets stay in memory, eight bytes a row.

    Args:
        system: The store's file system.
        files: (path, first row, end row) of every part, in order.
        first: Number of the first of these rows in the data.
    """
    spans, begins, size = [], [np.zeros(1, np.int64)], 0
    for path, start, stop in files:
        offsets = map_rows(system, [(offsets_file(path), start, stop + 1)], (), "int64")
        spans.append((path, int(offsets[0]), int(offsets[-1])))
        begins.append(offsets[1:] - offsets[0] + size)
        size = int(begins[-1][-1])
    # Nothing can't be mapped.
    data = map_rows(system, spans, (), "uint8") if size else np.empty(0, np.uint8)
    return EncodedRows(data, np.concatenate(begins), first)
