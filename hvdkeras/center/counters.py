"""The counters of a WindowCenter, in a window at rank 0: all pushes, and the ranks that have finished."""

from __future__ import annotations

import numpy as np
from mpi4py import MPI

COUNT = MPI.INT64_T


class Counters:
    """Counts the pushes of all ranks, and so the staleness of this rank's copy of the center.

    A rank sees the center when it pulls or exchanges. The staleness is the number of pushes of other ranks
    since then.

    Args:
        comm: communicator of the ranks. Making and freeing the counters is collective.
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
        """This rank's `exchanges`, and the sum, mean and maximum of the staleness that they met."""
        return {
            "exchanges": self._own,
            "staleness_sum": self._staleness_sum,
            "staleness_mean": self._staleness_sum / max(1, self._own),
            "staleness_max": self._staleness_max,
        }

    def count_pull(self) -> None:
        """Records that this rank has seen all pushes so far."""
        self._seen = self._add(0) - self._own

    def count_push(self, pulls: bool) -> None:
        """Counts a push of this rank; with `pulls` it has seen the center at the same time."""
        others = self._add(1) - self._own
        self._own += 1
        self._staleness_sum += others - self._seen
        self._staleness_max = max(self._staleness_max, others - self._seen)
        if pulls:
            self._seen = others

    def staleness(self) -> int:
        """Returns the number of pushes of other ranks since this rank saw the center last."""
        return self._add(0) - self._own - self._seen

    @property
    def pushes_here(self) -> int:
        """The number of pushes of all ranks, read from this rank's memory: valid at rank 0 only."""
        return int(self._here[0])

    def count_finished(self) -> None:
        """Records that this rank has finished."""
        self._open()
        self._window.Put([np.ones(1, np.int64), COUNT], 0, target=[1 + self._rank, 1, COUNT])
        self._window.Unlock(0)

    def read(self) -> np.ndarray:
        """Returns all counters, shape `(1 + ranks,)`, int64: the pushes, then 1 for each finished rank."""
        counters = np.empty(self._length, np.int64)
        self._open()
        self._window.Get([counters, COUNT], 0, target=[0, self._length, COUNT])
        self._window.Unlock(0)
        return counters

    def free(self) -> None:
        """Frees the memory."""
        del self._here
        self._window.Free()

    def _add(self, number: int) -> int:
        """Adds to the number of pushes of all ranks, and returns what it was before."""
        self._number[0] = number
        self._open()
        self._window.Fetch_and_op(self._number_to_mpi, self._before_to_mpi, 0)
        self._window.Unlock(0)
        return int(self._before[0])

    def _open(self) -> None:
        # MPI need not lock: the pushes are counted atomically, and only one rank writes each other counter.
        self._window.Lock(0, MPI.LOCK_SHARED, MPI.MODE_NOCHECK)
