"""Columns of numbers in the shards: rows that are sparse vectors in the data stay sparse there.

A part of such a column is a plain .npy file, or, where one of its rows is stored sparse, three: the values of
all rows one after the other; the indices of the values of sparse rows; and where each row begins in both. A
row without indices is complete. What a model gets is dense, made a block of batches at a time.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import pyarrow as pa
from pyarrow import fs

from hvdkeras.data.columns import Column
from hvdkeras.data.conversion import check_values
from hvdkeras.data.raw import is_vector, vectors_of
from hvdkeras.data.store import ColumnFile, map_file, map_rows

# A row is stored sparse if its dense bytes are at least so many times as many. To read a value costs
# about 10 ns in a sparse row and 0.3 ns in a dense one: with fewer times sparse rows would be small and slow.
_SPARSE_GAIN = 4
_OFFSET_BYTES = 16
_INDEX = np.dtype(np.int32)
_VALUES = "-values.npy"


class Coordinates(NamedTuple):
    """A batch of rows as a `tf.SparseTensor` holds it.

    Attributes:
        places: the number of each value's row, and its place in the row, ascending, shape `(k, 2)`, int64.
        values: the values, shape `(k,)`.
    """

    places: np.ndarray
    values: np.ndarray


class SparseRows(NamedTuple):
    """Rows of a column, of which some are sparse.

    Attributes:
        values: the rows' values, row after row: of a sparse row those that are stored, of others all.
        indices: where the values of the sparse rows belong in their row, int32.
        offsets: where each row begins in the values and in the indices, and where the last one ends, shape
            `(n + 1, 2)`, int64.
    """

    values: np.ndarray
    indices: np.ndarray
    offsets: np.ndarray

    def part(self, start: int, stop: int) -> SparseRows:
        """Returns the rows from `start` to `stop`."""
        return self._replace(offsets=self.offsets[start : stop + 1])

    def fill(self, rows: np.ndarray, out: np.ndarray, places: np.ndarray) -> None:
        """Writes rows to an array.

        Args:
            rows: numbers of k rows.
            out: where they are written to; zeros before.
            places: numbers of the k rows in `out`.
        """
        flat = out.reshape(len(out), -1)
        starts, ends = self.offsets[rows, 0], self.offsets[rows + 1, 0]
        whole = ends - starts == flat.shape[1]
        for place, start, end in zip(places[whole], starts[whole], ends[whole], strict=True):
            flat[place] = self.values[start:end]
        row, indices, values = self.stored(rows[~whole], flat.shape[1])
        flat[places[~whole][row], indices] = values

    def stored(self, rows: np.ndarray, size: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Returns the stored values of some rows.

        Args:
            rows: numbers of the rows.
            size: number of values in a row.

        Returns:
            row: to which row each value belongs, counted in `rows`, shape `(k,)`.
            indices: its place in the row, shape `(k,)`.
            values: the values, shape `(k,)`.
        """
        starts = self.offsets[rows]
        counts = self.offsets[rows + 1, 0] - starts[:, 0]
        row = np.repeat(np.arange(len(rows)), counts)
        within = np.arange(len(row)) - np.repeat(np.cumsum(counts) - counts, counts)
        indices, of_sparse = within, counts[row] < size
        if of_sparse.any():
            indices = within.copy()
            indices[of_sparse] = self.indices[(starts[row, 1] + within)[of_sparse]]
        return row, indices, self.values[starts[row, 0] + within]


def _offsets_of_dense(rows: int, size: int) -> np.ndarray:
    return np.stack([np.arange(rows + 1) * size, np.zeros(rows + 1, np.int64)], axis=1)


def sparse_rows(column: Column, raw: pa.Array) -> SparseRows | None:
    """Converts a block of vectors, after the checks of `hvdkeras.data.conversion.convert`.

    Args:
        column: what the model requires.
        raw: an Arrow array.

    Returns:
        The rows; None where none of them is a sparse vector with few values, or where some can't be used.
    """
    if not is_vector(raw.type) or raw.null_count:
        return None
    vectors, dtype = vectors_of(raw), np.dtype(column.dtype)
    dense_bytes = column.size * dtype.itemsize
    sparse_bytes = vectors.counts * (_INDEX.itemsize + dtype.itemsize) + _OFFSET_BYTES
    few = vectors.sparse & (sparse_bytes * _SPARSE_GAIN <= dense_bytes)
    if not few.any() or (vectors.sizes != column.size).any():
        return None
    begins, values, indices = vectors.expanded(few)
    values, problems = check_values(column, values[:, np.newaxis], None)
    if problems:
        return None
    offsets = np.zeros((len(raw) + 1, 2), np.int64)
    offsets[:, 0] = begins
    np.cumsum(np.where(few, vectors.counts, 0), out=offsets[1:, 1])
    values = np.ascontiguousarray(values.reshape(-1), dtype)
    return SparseRows(values, np.ascontiguousarray(indices, _INDEX), offsets)


def sparse_files(file: str) -> tuple[str, str] | None:
    """Returns the files of indices and of offsets that belong to a file of values; None to a dense file."""
    if not file.endswith(_VALUES):
        return None
    stem = file.removesuffix(_VALUES)
    return f"{stem}-indices.npy", f"{stem}-offsets.npy"


def open_sparse(path: str) -> SparseRows:
    """Maps the rows of a local part, whose file of values is `path`."""
    return SparseRows(*map(map_file, (path, *sparse_files(path))))


def map_sparse(system: fs.FileSystem, files: Sequence[tuple[str, int, int]], column: Column) -> SparseRows:
    """Copies rows of a store's parts, sparse or dense ones, to files of this machine, as `map_rows` does.

    The offsets of the rows stay in memory, sixteen bytes a row.

    Args:
        system: the store's file system.
        files: (path, first row, end row) of every part, in order.
        column: what the model requires.
    """
    offsets, of_values, of_indices = [np.zeros((1, 2), np.int64)], [], []
    for path, start, stop in files:
        others = sparse_files(path)
        if others is None:
            of_values.append((path, start, stop))
            own = _offsets_of_dense(stop - start, column.size)
        else:
            own = map_rows(system, [(others[1], start, stop + 1)], (2,), "int64")
            of_values.append((path, int(own[0, 0]), int(own[-1, 0])))
            of_indices.append((others[0], int(own[0, 1]), int(own[-1, 1])))
        offsets.append(own[1:] - own[0] + offsets[-1][-1])
    # An empty file can't be memory-mapped.
    stored, given = offsets[-1][-1].tolist()
    values = map_rows(system, of_values, (), column.dtype) if stored else np.empty(0, column.dtype)
    indices = map_rows(system, of_indices, (), _INDEX) if given else np.empty(0, _INDEX)
    return SparseRows(values, indices, np.concatenate(offsets))


class NumbersFile:
    """The files of a part of a column of numbers, to which rows are appended as to a `ColumnFile`.

    Args:
        path: the dense file, which does not exist yet.
        column: what the model requires.

    Attributes:
        paths: the files: of the dense rows, or of values, indices and offsets.
    """

    def __init__(self, path: str, column: Column) -> None:
        self._path, self._column, self._ends = path, column, np.zeros(2, np.int64)
        self.paths: tuple[str, ...] = (path,)
        self._files = contextlib.ExitStack()
        self._dense: ColumnFile | None = ColumnFile(path, column.shape, column.dtype)
        self._files.enter_context(self._dense)

    def append(self, rows: np.ndarray | SparseRows) -> None:
        """Appends rows. From the first sparse ones on, the part has three files."""
        if isinstance(rows, SparseRows):
            self._append(rows)
        elif self._dense is None:
            self._append_dense(rows)
        else:
            self._dense.append(rows)

    def _append(self, rows: SparseRows) -> None:
        if self._dense is not None:
            self._become_sparse()
        self._values.append(rows.values)
        self._indices.append(rows.indices)
        self._offsets.append(np.ascontiguousarray(rows.offsets[1:] + self._ends))
        self._ends = self._ends + rows.offsets[-1]

    def _become_sparse(self) -> None:
        self._files.close()
        self._dense, before = None, map_file(self._path)
        values = f"{self._path.removesuffix('.npy')}{_VALUES}"
        self.paths = (values, *sparse_files(values))
        with contextlib.ExitStack() as files:
            forms = (((), self._column.dtype), ((), _INDEX), ((2,), "int64"))
            self._values, self._indices, self._offsets = (
                files.enter_context(ColumnFile(path, *form))
                for path, form in zip(self.paths, forms, strict=True)
            )
            self._files = files.pop_all()
        self._offsets.append(np.zeros((1, 2), np.int64))
        if len(before):
            self._append_dense(before)
        os.unlink(self._path)

    def _append_dense(self, rows: np.ndarray) -> None:
        offsets = _offsets_of_dense(len(rows), self._column.size)
        self._append(SparseRows(rows.reshape(-1), np.empty(0, _INDEX), offsets))

    def __enter__(self) -> NumbersFile:
        return self

    def __exit__(self, *failure: object) -> None:
        self._files.close()
