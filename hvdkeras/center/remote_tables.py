"""The memory of a TableCenter's tables, which ranks of several hosts reach by one-sided calls."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import numpy as np
from mpi4py import MPI

from hvdkeras.center.progress_thread import ProgressThread
from hvdkeras.center.shared_tables import Rows, begins, table_bytes, views
from hvdkeras.models.tables import Table

# Each row is several one-sided calls, which take about as long as the transfer of this many bytes in one.
# Measured: 2,048 rows of 1,000,000 x 32 took 0.52 s to push and pull, the whole table 0.77 s.
BYTES_FOR_A_ROW = 1 << 16


class RemoteTables:
    """As SharedTables. Only the rows, and the flags that are read or changed, cross the network.

    Args:
        comm: communicator of the ranks.
        tables: where the tables are in a vector.
        parts: 1 + slots.
        timeout: seconds that one call may take before the job is ended.
        requested: returns at rank 0 whether other ranks use the tables.
    """

    def __init__(
        self,
        comm: MPI.Comm,
        tables: Sequence[Table],
        parts: int,
        timeout: float,
        requested: Callable[[], bool],
    ):
        self._rank, self._size, self._parts, self._tables = comm.rank, comm.size, parts, tables
        size = table_bytes(tables, parts, comm.size) if comm.rank == 0 else 0
        self._window = MPI.Win.Allocate(size, 1, comm=comm)
        self._values, self._flags = begins(tables, parts, comm.size)
        self._progress = ProgressThread(comm, timeout, requested if comm.rank == 0 else None)

    def fill(self, number: int, part: int, values: np.ndarray) -> None:
        """As SharedTables's."""
        memory = np.frombuffer(self._window.tomemory(), np.uint8)
        held, flags = views(memory, self._tables, self._parts, self._size)
        held[number][part] = values
        flags[number][:] = True

    def read(self, number: int, rows: Rows, parts: slice = slice(None)) -> np.ndarray:
        """As SharedTables's."""
        chosen, numbers = range(self._parts)[parts], self._numbers(number, rows)
        found = np.empty((len(chosen), numbers.size, self._tables[number].width), np.float32)
        with self._opened(number), self._of_rows(number, numbers, chosen) as target:
            self._window.Get([found, found.nbytes, MPI.BYTE], 0, target)
        return found

    def write(self, number: int, rows: Rows, values: np.ndarray) -> None:
        """As SharedTables's."""
        values, numbers = np.ascontiguousarray(values), self._numbers(number, rows)
        with self._opened(number), self._of_rows(number, numbers, range(self._parts)) as target:
            self._window.Put([values, values.nbytes, MPI.BYTE], 0, target)

    def changed(self, number: int) -> np.ndarray:
        """As SharedTables's."""
        flags = np.empty(self._tables[number].rows, np.bool_)
        with self._opened(number):
            self._window.Get([flags, MPI.BYTE], 0, [self._flags_of(number, self._rank), flags.size, MPI.BYTE])
        return flags

    def unflag(self, number: int, rows: Rows) -> None:
        """As SharedTables's."""
        self._put_flags(number, rows, [self._rank], False)

    def flag(self, number: int, rows: np.ndarray) -> None:
        """As SharedTables's."""
        self._put_flags(number, rows, [rank for rank in range(self._size) if rank != self._rank], True)

    def row_limit(self, number: int) -> int:
        """Returns up to how many rows are exchanged sooner than the whole table."""
        table = self._tables[number]
        return 4 * table.rows * table.width // BYTES_FOR_A_ROW

    def free(self) -> None:
        """As SharedTables's."""
        self._progress.stop()
        self._window.Free()

    @contextmanager
    def _opened(self, number: int) -> Iterator[None]:
        """Opens the window; at the end all calls are complete."""
        self._progress.watch(f"table {number} of the center at rank 0")
        self._window.Lock(0, MPI.LOCK_SHARED, MPI.MODE_NOCHECK)
        yield
        self._window.Unlock(0)
        self._progress.watch(None)

    @contextmanager
    def _of_rows(self, number: int, numbers: np.ndarray, parts: range) -> Iterator[list]:
        """Where some rows of some parts are, as MPI's target."""
        table = self._tables[number]
        row_bytes = 4 * table.width
        of_parts = self._values[number] + row_bytes * table.rows * np.array(parts, np.int64)
        with _places(of_parts, numbers * row_bytes, row_bytes) as places:
            yield [0, 1, places]

    def _put_flags(self, number: int, rows: Rows, ranks: Sequence[int], value: bool) -> None:
        chosen = self._numbers(number, rows)
        if chosen.size == 0:
            return
        of_ranks = np.array([self._flags_of(number, rank) for rank in ranks], np.int64)
        values = np.full(of_ranks.size * chosen.size, value)
        with self._opened(number), _places(of_ranks, chosen, 1) as places:
            self._window.Put([values, MPI.BYTE], 0, [0, 1, places])

    def _flags_of(self, number: int, rank: int) -> int:
        return self._flags[number] + rank * self._tables[number].rows

    def _numbers(self, number: int, rows: Rows) -> np.ndarray:
        return np.arange(self._tables[number].rows)[rows] if isinstance(rows, slice) else rows


@contextmanager
def _places(begins: np.ndarray, offsets: np.ndarray, length: int) -> Iterator[MPI.Datatype]:
    """Describes blocks of `length` bytes in a window: at each offset from each beginning, in this order.

    Blocks that follow one another are one.
    """
    places = (begins[:, np.newaxis] + offsets).ravel()
    begin = np.flatnonzero(np.concatenate([[True], np.diff(places) != length]))
    lengths = length * np.diff(begin, append=places.size)
    made = MPI.BYTE.Create_hindexed(lengths.tolist(), places[begin].tolist())
    made.Commit()
    try:
        yield made
    finally:
        made.Free()
