"""The locks of a WindowCenter: ranks acquire each lock in the order in which they asked for it.

MPI's own exclusive lock lets the ranks of other hosts starve: each of their attempts travels over the network
and meets a lock that a rank beside it has just acquired again (1229 times against 4 in a second, at 1 MB).
"""

from __future__ import annotations

import time
from collections.abc import Sequence

import numpy as np
from mpi4py import MPI

from hvdkeras.center.backoff import pause
from hvdkeras.launch.failure import RankTimeoutError

COUNT = MPI.INT64_T

# A lock is two counters: the number of tickets drawn, and the ticket that is served now. Each counter is on a
# cache line of its own. Beside the second is whether the ticket's holder has handed the lock over.
STRIDE = 16
NEXT, SERVED, HANDED_OVER = 0, 8, 9


class TicketLocks:
    """Locks for ranks on any hosts, each in the memory of one rank.

    A rank that asks for a lock draws a ticket, and has the lock as soon as its ticket is served. Releasing
    the lock serves the next ticket. A rank can hand its lock over to the rank in whose memory it is, which
    then releases it. Making and freeing the locks is collective.

    Args:
        comm: communicator of the ranks.
        hosts: for each lock, the rank in whose memory it is.
        timeout: seconds that a rank may wait for a lock.

    Attributes:
        seconds_waiting: seconds this rank has waited for locks.
    """

    def __init__(self, comm: MPI.Comm, hosts: Sequence[int], timeout: float):
        self._rank, self._timeout = comm.rank, timeout
        self._locks = [(host, STRIDE * hosts[:index].count(host)) for index, host in enumerate(hosts)]
        size = 8 * STRIDE * max(1, hosts.count(comm.rank))
        self._window = MPI.Win.Allocate(size, 8, comm=comm)
        self._here = np.frombuffer(self._window.tomemory(), np.int64).reshape(-1, STRIDE)
        self._here[:] = 0
        self._one, self._ticket, self._served = (np.ones(1, np.int64) for _ in range(3))
        self._one_to_mpi = [self._one, COUNT]
        self._ticket_to_mpi, self._served_to_mpi = [self._ticket, COUNT], [self._served, COUNT]
        self._own = 0
        self.seconds_waiting = 0.0

    def requested(self) -> bool:
        """Returns whether another rank holds, or waits for, a lock in this rank's memory."""
        return int((self._here[:, NEXT] - self._here[:, SERVED]).sum()) > self._own

    def acquire(self, index: int) -> None:
        """Waits until this rank has the lock `index`.

        Raises:
            RankTimeoutError: the ranks before it have not released the lock within `timeout` seconds.
        """
        host, place = self._locks[index]
        self._own = host == self._rank
        # MPI need not lock the counters: tickets are drawn atomically, and SERVED is moved by one at a time.
        self._window.Lock(host, MPI.LOCK_SHARED, MPI.MODE_NOCHECK)
        self._window.Fetch_and_op(self._one_to_mpi, self._ticket_to_mpi, host, place + NEXT)
        self._window.Get(self._served_to_mpi, host, (place + SERVED, 1, COUNT))
        self._window.Unlock(host)
        if self._served[0] == self._ticket[0]:
            return
        begin, first = time.perf_counter(), int(self._served[0])
        while self._served[0] != self._ticket[0]:
            self._poll(index, time.perf_counter() - begin, first)
        self.seconds_waiting += time.perf_counter() - begin

    def release(self, index: int) -> None:
        """Releases the lock `index`, which this rank acquired last."""
        # Not a Put: on one host that is a memcpy, which stores eight bytes twice. A rank that loses its core
        # between the two stores would set the counter back when others have long moved it on.
        self._count(index, SERVED)

    def hand_over(self, index: int) -> None:
        """Leaves it to the rank that holds the lock `index` in its memory to release it."""
        self._count(index, HANDED_OVER)

    def handed_over(self) -> list[int]:
        """Returns the locks in this rank's memory that were handed over to it."""
        if not self._here[:, HANDED_OVER].any():
            return []
        return [
            index
            for index, (host, place) in enumerate(self._locks)
            if host == self._rank and self._here[place // STRIDE, HANDED_OVER]
        ]

    def release_for_another(self, index: int) -> None:
        """Releases a lock that was handed over. Another thread may wait for one meanwhile."""
        # Stores of this process: MPI allows one thread of a process to open a window at a time. Other ranks
        # only read the counter until it has moved.
        here = self._here[self._locks[index][1] // STRIDE]
        here[HANDED_OVER] = 0
        here[SERVED] += 1

    def free(self) -> None:
        """Frees the memory."""
        del self._here
        self._window.Free()

    def _count(self, index: int, counter: int) -> None:
        """Adds one to a counter of the lock `index`, which this rank acquired last, and gives the lock up."""
        host, place = self._locks[index]
        self._window.Lock(host, MPI.LOCK_SHARED, MPI.MODE_NOCHECK)
        self._window.Fetch_and_op(self._one_to_mpi, self._served_to_mpi, host, place + counter)
        self._window.Unlock(host)
        self._own = 0

    def _poll(self, index: int, elapsed: float, first: int) -> None:
        """Sleeps, then reads which ticket is served; `first` was it when the rank began to wait."""
        host, place = self._locks[index]
        if elapsed > self._timeout:
            raise RankTimeoutError(
                f"rank {self._rank} waited {self._timeout:g} s for chunk {index} of the center, rank {host}: "
                f"the holder of ticket {self._served[0]} does not release it, this rank has ticket "
                f"{self._ticket[0]}"
            )
        # Sleeping ranks don't take the core from a rank that computes, nor the time of the lock's host.
        served, ticket = int(self._served[0]), int(self._ticket[0])
        time.sleep(pause(elapsed, served - first, ticket - served))
        self._window.Lock(host, MPI.LOCK_SHARED, MPI.MODE_NOCHECK)
        self._window.Get(self._served_to_mpi, host, (place + SERVED, 1, COUNT))
        self._window.Unlock(host)
