"""The locks of a WindowCenter: whoever comes first has the first turn, on whatever host it is.

MPI's own exclusive lock lets the ranks of other hosts starve: each of their attempts travels over the network
and meets a lock that a rank beside it has just taken again (1229 turns against 4 in a second, at 1 MB).
"""

from __future__ import annotations

import time
from collections.abc import Sequence

import numpy as np
from mpi4py import MPI

COUNT = MPI.INT64_T

# Two counters each: the next ticket, and the one whose turn it is. On cache lines of their own.
STRIDE = 16
NEXT, SERVED = 0, 8


class Turns:
    """Locks that serve in the order of arrival, each in the memory of a rank.

    A rank draws a ticket and waits until the counter of those served has come to it; when it is done it moves
    that counter on. Making and freeing the locks is collective.

    Args:
        comm: Communicator of the ranks.
        hosts: For each lock, the rank in whose memory it is.
        timeout: Seconds that a turn may be waited for.

    Attributes:
        seconds_waiting: Time this rank has waited for its turns.
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

    def wanted(self) -> bool:
        """Whether another rank has, or waits for, a lock in this rank's memory."""
        return int((self._here[:, NEXT] - self._here[:, SERVED]).sum()) > self._own

    def take(self, index: int) -> None:
        """Waits for this rank's turn at a lock.

        Raises:
            TimeoutError: It did not come in time.
        """
        host, place = self._locks[index]
        self._own = host == self._rank
        # No lock of MPI's: the tickets are drawn atomically, and the other counter is moved by one at a time.
        self._window.Lock(host, MPI.LOCK_SHARED, MPI.MODE_NOCHECK)
        self._window.Fetch_and_op(self._one_to_mpi, self._ticket_to_mpi, host, place + NEXT)
        self._window.Get(self._served_to_mpi, host, (place + SERVED, 1, COUNT))
        self._window.Unlock(host)
        if self._served[0] == self._ticket[0]:
            return
        begin = time.perf_counter()
        while self._served[0] != self._ticket[0]:
            self._wait(index, time.perf_counter() - begin)
        self.seconds_waiting += time.perf_counter() - begin

    def give(self, index: int) -> None:
        """Ends this rank's turn at the lock that it took last."""
        host, place = self._locks[index]
        # Not a Put: on one host that is a memcpy, which stores eight bytes twice. A rank that loses its core
        # between the two stores would set the counter back when others have long moved it on.
        self._window.Lock(host, MPI.LOCK_SHARED, MPI.MODE_NOCHECK)
        self._window.Fetch_and_op(self._one_to_mpi, self._served_to_mpi, host, place + SERVED)
        self._window.Unlock(host)
        self._own = 0

    def free(self) -> None:
        """Gives the memory back."""
        del self._here
        self._window.Free()

    def _wait(self, index: int, elapsed: float) -> None:
        """Sleeps a little and looks again."""
        host, place = self._locks[index]
        if elapsed > self._timeout:
            raise TimeoutError(
                f"rank {self._rank} waited {self._timeout:g} s for chunk {index} of the center, rank {host}: "
                f"turn {self._served[0]} does not end, this is turn {self._ticket[0]}"
            )
        # Short waits stay short, and long ones don't take the core from a rank that computes.
        time.sleep(min(0.001, elapsed / 10))
        self._window.Lock(host, MPI.LOCK_SHARED, MPI.MODE_NOCHECK)
        self._window.Get(self._served_to_mpi, host, (place + SERVED, 1, COUNT))
        self._window.Unlock(host)
