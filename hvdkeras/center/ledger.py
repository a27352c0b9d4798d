"""Who has pushed how often to a WindowCenter, and who has finished: counters in a window at rank 0."""

from __future__ import annotations

import numpy as np
from mpi4py import MPI

COUNT = MPI.INT64_T


class Ledger:
    """Counts the pushes of all ranks, one after the other, and so how stale a rank's view of the center is.

    Args:
        comm: Communicator of the ranks. Making and freeing a ledger is collective.
    """

    def __init__(self, comm: MPI.Comm):
        self._rank, self._length = comm.rank, 1 + comm.size
        self._window = MPI.Win.Allocate(8 * self._length if comm.rank == 0 else 8, 8, comm=comm)
        self._here = np.frombuffer(self._window.tomemory(), np.int64)
        self._here[:] = 0
        self._number, self._before = np.zeros(1, np.int64), np.empty(1, np.int64)
        self._number_to_mpi, self._before_to_mpi = [self._number, COUNT], [self._before, COUNT]
        self._own = self._seen = 0
        self._staleness_sum = self._staleness_max = 0

    @property
    def telemetry(self) -> dict[str, float]:
        """This rank's `exchanges` and the staleness that they met: its sum, mean and maximum."""
        return {
            "exchanges": self._own,
            "staleness_sum": self._staleness_sum,
            "staleness_mean": self._staleness_sum / max(1, self._own),
            "staleness_max": self._staleness_max,
        }

    def enter_pull(self) -> None:
        """Notes that this rank now sees all that was pushed."""
        self._seen = self._add(0) - self._own

    def enter_push(self, pulls: bool) -> None:
        """Counts a push of this rank, which looks at the center as well if it `pulls`."""
        others = self._add(1) - self._own
        self._own += 1
        self._staleness_sum += others - self._seen
        self._staleness_max = max(self._staleness_max, others - self._seen)
        if pulls:
            self._seen = others

    def staleness(self) -> int:
        """Counts the pushes of other ranks since this rank last looked at the center."""
        return self._add(0) - self._own - self._seen

    @property
    def here(self) -> int:
        """The number of pushes of all ranks as it is in this rank's memory: at rank 0."""
        return int(self._here[0])

    def enter_finish(self) -> None:
        """Notes that this rank has finished."""
        self._open()
        self._window.Put([np.ones(1, np.int64), COUNT], 0, target=[1 + self._rank, 1, COUNT])
        self._window.Unlock(0)

    def state(self) -> np.ndarray:
        """Returns (1 + ranks,) of int64: all pushes, then 1 for each rank that has finished."""
        state = np.empty(self._length, np.int64)
        self._open()
        self._window.Get([state, COUNT], 0, target=[0, self._length, COUNT])
        self._window.Unlock(0)
        return state

    def free(self) -> None:
        """Gives the memory back."""
        del self._here
        self._window.Free()

    def _add(self, number: int) -> int:
        """Adds to the number of pushes of all ranks and returns what it was."""
        self._number[0] = number
        self._open()
        self._window.Fetch_and_op(self._number_to_mpi, self._before_to_mpi, 0)
        self._window.Unlock(0)
        return int(self._before[0])

    def _open(self) -> None:
        # No lock: the pushes are counted atomically, and every other number has one rank that writes it.
        self._window.Lock(0, MPI.LOCK_SHARED, MPI.MODE_NOCHECK)
