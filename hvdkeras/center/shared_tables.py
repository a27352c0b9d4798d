"""The memory of a TableCenter's tables, which the ranks of one host share."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from mpi4py import MPI

from hvdkeras.center.chunks import check_shared_memory
from hvdkeras.models.tables import Table


class SharedTables:
    """The memory of the tables, at rank 0, in which all ranks read and write.

    Attributes:
        rank: this rank.
        values: of each table the center's and the slots' values, shape `(1 + slots, rows, width)`.
        flags: of each table, for each rank, which rows other ranks have changed, shape `(ranks, rows)`, bool.
    """

    def __init__(self, comm: MPI.Comm, tables: Sequence[Table], parts: int, timeout: float):
        self.rank = comm.rank
        sizes = [4 * parts * table.rows * table.width for table in tables]
        size = sum(sizes) + sum(comm.size * table.rows for table in tables)
        if comm.size > 1:
            check_shared_memory(comm, -(-size // 4), 1, timeout)
        self._window = MPI.Win.Allocate_shared(size if comm.rank == 0 else 0, 1, comm=comm)
        memory = np.frombuffer(self._window.Shared_query(0)[0], np.uint8)
        self.values, self.flags = [], []
        place, end = 0, sum(sizes)
        for table, length in zip(tables, sizes, strict=True):
            values = memory[place : place + length].view(np.float32)
            self.values.append(values.reshape(parts, table.rows, table.width))
            flags = memory[end : end + comm.size * table.rows].view(np.bool_)
            self.flags.append(flags.reshape(comm.size, table.rows))
            place, end = place + length, end + comm.size * table.rows

    def free(self) -> None:
        """Frees the memory. Collective."""
        self.values, self.flags = [], []
        self._window.Free()
