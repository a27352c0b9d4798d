"""The memory of a TableCenter's tables, which the ranks of one host share."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from mpi4py import MPI

from hvdkeras.center.chunks import check_shared_memory
from hvdkeras.models.tables import Table

# Rows of a table: some of them by their numbers, or a run.
Rows = np.ndarray | slice


class SharedTables:
    """The memory of the tables, at rank 0, in which all ranks read and write.

    It holds the values of the center (part 0) and of its slots (part 1, 2, ...), and flags for each rank,
    which rows others have changed. Whoever calls `read`, `write` or `flag` holds the table's lock.

    Args:
        comm: communicator of the ranks.
        tables: where the tables are in a vector.
        parts: 1 + slots.
        timeout: seconds that a wait for the other ranks may take.
    """

    def __init__(self, comm: MPI.Comm, tables: Sequence[Table], parts: int, timeout: float):
        self._rank, self._size = comm.rank, comm.size
        size = table_bytes(tables, parts, comm.size)
        if comm.size > 1:
            check_shared_memory(comm, -(-size // 4), 1, timeout)
        self._window = MPI.Win.Allocate_shared(size if comm.rank == 0 else 0, 1, comm=comm)
        memory = np.frombuffer(self._window.Shared_query(0)[0], np.uint8)
        self._values, self._flags = views(memory, tables, parts, comm.size)

    def fill(self, number: int, part: int, values: np.ndarray) -> None:
        """Sets, on rank 0, a part's first values of a table, shape `(rows, width)`, and flags all rows.

        Ranks need not begin with the center's weights.
        """
        self._values[number][part] = values
        self._flags[number][:] = True

    def read(self, number: int, rows: Rows, parts: slice = slice(None)) -> np.ndarray:
        """Returns a copy of some rows, shape `(parts, rows, width)`."""
        found = self._values[number][parts, rows]
        return found.copy() if isinstance(rows, slice) else found

    def write(self, number: int, rows: Rows, values: np.ndarray) -> None:
        """Sets all parts of some rows, shape `(parts, rows, width)`."""
        self._values[number][:, rows] = values

    def changed(self, number: int) -> np.ndarray:
        """Returns for each row whether it is flagged for this rank, shape `(rows,)`, bool."""
        return self._flags[number][self._rank]

    def unflag(self, number: int, rows: Rows) -> None:
        """Takes this rank's flags back from some rows."""
        self._flags[number][self._rank][rows] = False

    def flag(self, number: int, rows: np.ndarray) -> None:
        """Flags some rows, given by their numbers, for all other ranks."""
        for rank in range(self._size):
            if rank != self._rank:
                self._flags[number][rank][rows] = True

    def row_limit(self, number: int) -> int:
        """Returns up to how many rows are exchanged sooner than the whole table: here any number."""
        return self._values[number].shape[1]

    def free(self) -> None:
        """Frees the memory. Collective."""
        self._values, self._flags = [], []
        self._window.Free()


def table_bytes(tables: Sequence[Table], parts: int, size: int) -> int:
    """Counts the bytes of all values and flags."""
    return sum((4 * parts * table.width + size) * table.rows for table in tables)


def views(
    memory: np.ndarray, tables: Sequence[Table], parts: int, size: int
) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Cuts memory into the values of the tables, and behind all of them the flags.

    Args:
        memory: shape `(bytes,)`, uint8.
        tables: the tables.
        parts: 1 + slots.
        size: number of ranks.

    Returns:
        Of each table the values, shape `(parts, rows, width)`, float32, and the flags, shape `(ranks, rows)`,
        bool.
    """
    values, flags = [], []
    for table, of_values, of_flags in zip(tables, *begins(tables, parts, size), strict=True):
        held = memory[of_values : of_values + 4 * parts * table.rows * table.width].view(np.float32)
        values.append(held.reshape(parts, table.rows, table.width))
        held = memory[of_flags : of_flags + size * table.rows].view(np.bool_)
        flags.append(held.reshape(size, table.rows))
    return values, flags


def begins(tables: Sequence[Table], parts: int, size: int) -> tuple[list[int], list[int]]:
    """Returns where the values and the flags of each table begin, in bytes; arguments as of `views`."""
    lengths = [4 * parts * table.rows * table.width for table in tables]
    lengths += [size * table.rows for table in tables]
    ends = np.cumsum(lengths).tolist()
    return [0, *ends][: len(tables)], ends[len(tables) - 1 : -1]
