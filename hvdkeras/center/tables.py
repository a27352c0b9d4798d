"""A center of which ranks exchange only the rows of tables that are not at rest.

A row is at rest for a rank if neither the rank nor another one has changed it since the rank's exchange of it
before. An exchange of a row at rest changes nothing, if the algorithm says so (`Algorithm.settles`), so that
it is left out. The elements that belong to no table are in a WindowCenter. The tables are in the memory of
rank 0, with a flag for each row and rank, by which a rank finds what the others have changed.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import numpy as np
from mpi4py import MPI

from hvdkeras.center.chunks import on_one_host
from hvdkeras.center.contents import Contents
from hvdkeras.center.remote_tables import RemoteTables
from hvdkeras.center.shared_tables import SharedTables
from hvdkeras.center.ticket_locks import TicketLocks
from hvdkeras.center.vectors import (
    BLOCK,
    apply_rule,
    blocks,
    check_operands,
    destination,
    first_slots,
    vector,
)
from hvdkeras.center.window import WindowCenter
from hvdkeras.models.tables import Layout, Selection, Table
from hvdkeras.mpi.waiting import wait


class TableCenter:
    """A center in the memory of rank 0, with the verbs of a WindowCenter for the whole vector.

    `at` returns the center of some rows only, which an algorithm exchanges with. No update is lost, and a
    reader sees all of an update of a row or none of it.

    Making, finishing and freeing a center is collective.

    Args:
        comm: communicator of the ranks.
        initial: vector of shape `(n,)`, float32, that the center starts from. Rank 0's values are used.
        layout: where the tables are. At least one element is in none of them.
        slots: number of vectors beside the center, which start with zeros; or their first values, shape
            `(slots, n)`, float32, of which rank 0's are used.
        timeout: seconds that a wait may take in which no other rank makes progress.
        exchange_dtype: as WindowCenter's, for the elements in no table. Rows of tables travel as float32.

    Attributes:
        size: number of ranks that share the center.
        sharded: False: all of it is at rank 0.
        layout: as the argument.

    Raises:
        As WindowCenter.
    """

    sharded = False

    def __init__(
        self,
        comm: MPI.Comm,
        initial: np.ndarray,
        layout: Layout,
        slots: int | np.ndarray = 0,
        timeout: float = 600.0,
        exchange_dtype: str | None = None,
    ):
        vector("initial", initial, layout.size)
        contents = Contents(initial, first_slots(slots, initial.size))
        self.size, self.layout = comm.size, layout
        first = [np.concatenate([v[run] for run in layout.others]) for v in (initial, *contents.slots)]
        self._parts = len(first)
        more = np.stack(first[1:]) if self._parts > 1 else 0
        self.others = WindowCenter(comm, first[0], more, timeout=timeout, exchange_dtype=exchange_dtype)
        self._locks = TicketLocks(comm, [0] * len(layout.tables), timeout)
        memory = comm, layout.tables, self._parts, timeout
        on_one = on_one_host(comm)
        self._tables = SharedTables(*memory) if on_one else RemoteTables(*memory, self._locks.requested)
        self._seconds, self._freed = 0.0, False
        if comm.rank == 0:
            for number, table in enumerate(layout.tables):
                for part, values in enumerate((initial, *contents.slots)):
                    values = values[table.elements].reshape(table.rows, table.width)
                    self._tables.fill(number, part, values)
        wait(comm.Ibarrier().Test, timeout, f"all {comm.size} ranks: the center's first values")

    @property
    def telemetry(self) -> dict[str, float]:
        """As a WindowCenter's."""
        telemetry, waiting = self.others.telemetry, self._locks.seconds_waiting
        telemetry["seconds_communication"] += self._seconds - waiting
        telemetry["seconds_waiting"] += waiting
        return telemetry

    def changed(self, number: int) -> np.ndarray:
        """Returns for each row of a table whether another rank has changed it, shape `(rows,)`, bool."""
        return self._tables.changed(number)

    def row_limit(self, number: int) -> int:
        """Returns up to how many rows of a table are exchanged sooner than all of it."""
        return self._tables.row_limit(number)

    def at(self, selection: Selection) -> SelectedCenter:
        """Returns the center of the selected rows; an exchange with it puts them at rest for this rank."""
        return SelectedCenter(self, selection)

    def pull(self, out: np.ndarray | None = None) -> np.ndarray:
        """Returns a copy of the center, shape `(n,)`, in `out` if given."""
        out = destination(out, self.layout.size)
        self._copy(0, self.others.pull(), out)
        return out

    def contents(self) -> Contents:
        """Returns a copy of the center and its slots, as WindowCenter's."""
        others = self.others.contents()
        copies = np.empty((self._parts, self.layout.size), np.float32)
        for part, values in enumerate((others.center, *others.slots)):
            self._copy(part, values, copies[part])
        return Contents(copies[0], copies[1:])

    def staleness(self) -> int:
        """As WindowCenter's."""
        return self.others.staleness()

    def finish(self) -> None:
        """Waits until every rank has called `finish`: then the center holds all pushes. Collective."""
        self.others.finish()

    def free(self) -> None:
        """Frees the memory once all ranks have called `free`. Collective. A second call does nothing."""
        if self._freed:
            return
        self._freed = True
        self.others.free()
        self._tables.free()
        self._locks.free()

    @contextmanager
    def _acquired(self, number: int) -> Iterator[None]:
        self._locks.acquire(number)
        try:
            yield
        finally:
            self._locks.release(number)

    def _begin_reading(self, selection: Selection) -> None:
        """Takes this rank's flags back from the rows that it is about to read.

        No lock is needed: who flags a row later has it flagged; who did so before has changed it under the
        lock, which this rank acquires after him.
        """
        for number, chosen in enumerate(selection.rows):
            self._tables.unflag(number, slice(None) if chosen is None else chosen)

    def _copy(self, part: int, others: np.ndarray, out: np.ndarray) -> None:
        """Writes a part of the center into `out`: the elements outside the tables, given, and the tables."""
        begin = time.perf_counter()
        _put(self.layout.others, others, out)
        for number, table in enumerate(self.layout.tables):
            values = out[table.elements].reshape(table.rows, table.width)
            for rows in _row_blocks(table, table.rows):
                with self._acquired(number):
                    values[rows] = self._tables.read(number, rows, slice(part, part + 1))[0]
        self._seconds += time.perf_counter() - begin

    def _exchange_table(
        self,
        number: int,
        selection: Selection,
        rule: Callable[..., Sequence[np.ndarray]],
        vectors: Sequence[np.ndarray],
        out: np.ndarray,
    ) -> None:
        """Applies a rule to the selected rows of a table, some rows after the other."""
        table, chosen = self.layout.tables[number], selection.rows[number]
        first = selection.tables[number].start
        for block in _row_blocks(table, table.rows if chosen is None else chosen.size):
            rows = block if chosen is None else chosen[block]
            piece = slice(first + block.start * table.width, first + block.stop * table.width)
            with self._acquired(number):
                before = self._tables.read(number, rows)
                held = before.reshape(self._parts, -1).copy()
                apply_rule(rule, vectors, held, piece, out)
                held = held.reshape(before.shape)
                has_changed = np.flatnonzero((held != before).any(axis=(0, 2)))
                self._tables.write(number, rows, held)
                self._tables.flag(number, block.start + has_changed if chosen is None else rows[has_changed])


class SelectedCenter:
    """The selected rows of a TableCenter's tables, and all other elements: a `hvdkeras.algorithm.Center`.

    Args:
        center: the whole center.
        selection: what is selected. The vectors of the verbs have its size.

    Attributes:
        size: number of ranks that share the center.
    """

    def __init__(self, center: TableCenter, selection: Selection):
        self._center, self._selection, self.size = center, selection, center.size

    def pull(self) -> np.ndarray:
        """Returns a copy of the selected elements."""
        self._center._begin_reading(self._selection)
        return self._copy(self._center.others.pull())

    def values(self) -> np.ndarray:
        """As `pull`, without a change of this rank's staleness."""
        return self._copy(self._center.others.contents().center)

    def push(self, update: np.ndarray) -> None:
        """Adds `update` to the selected elements."""
        check_operands(update, (), self._selection.size)
        self._center.others.push(self._others(update))
        self._exchange_tables(_add, (update,), np.empty_like(update))

    def exchange(
        self, rule: Callable[..., Sequence[np.ndarray]], local: np.ndarray, *vectors: np.ndarray
    ) -> np.ndarray:
        """As WindowCenter's, on the selected elements."""
        check_operands(local, vectors, self._selection.size)
        out = np.empty(self._selection.size, np.float32)
        operands = [self._others(values) for values in (local, *vectors)]
        _put(self._selection.others, self._center.others.exchange(rule, *operands), out)
        self._center._begin_reading(self._selection)
        self._exchange_tables(rule, (local, *vectors), out)
        return out

    def staleness(self) -> int:
        """As WindowCenter's."""
        return self._center.staleness()

    def _exchange_tables(
        self, rule: Callable[..., Sequence[np.ndarray]], vectors: Sequence[np.ndarray], out: np.ndarray
    ) -> None:
        begin = time.perf_counter()
        for number in range(len(self._selection.rows)):
            self._center._exchange_table(number, self._selection, rule, vectors, out)
        self._center._seconds += time.perf_counter() - begin

    def _others(self, compact: np.ndarray) -> np.ndarray:
        """Returns the elements of a compact vector that are in no table."""
        runs = self._selection.others
        return compact[runs[0]] if len(runs) == 1 else np.concatenate([compact[run] for run in runs])

    def _copy(self, others: np.ndarray) -> np.ndarray:
        begin = time.perf_counter()
        out = np.empty(self._selection.size, np.float32)
        _put(self._selection.others, others, out)
        center = self._center
        for number, (table, chosen) in enumerate(
            zip(center.layout.tables, self._selection.rows, strict=True)
        ):
            values = out[self._selection.tables[number]].reshape(-1, table.width)
            for block in _row_blocks(table, len(values)):
                rows = block if chosen is None else chosen[block]
                with center._acquired(number):
                    values[block] = center._tables.read(number, rows, slice(0, 1))[0]
        center._seconds += time.perf_counter() - begin
        return out


def _put(runs: Sequence[slice], values: np.ndarray, out: np.ndarray) -> None:
    """Writes values into the runs of elements of `out`, one run after the other."""
    place = 0
    for run in runs:
        length = run.stop - run.start
        out[run] = values[place : place + length]
        place += length


def _row_blocks(table: Table, rows: int) -> list[slice]:
    """Cuts rows into blocks of about `BLOCK` elements: none keeps a table's lock for long."""
    return blocks(0, rows, max(1, BLOCK // table.width))


def _add(update: np.ndarray, center: np.ndarray, *slots: np.ndarray) -> tuple[np.ndarray, ...]:
    return (update, update, *(np.zeros_like(slot) for slot in slots))
