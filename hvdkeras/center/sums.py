"""How the pushes of all ranks are summed: by MPI, or between hosts in half precision."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Protocol

import numpy as np
from mpi4py import MPI

from hvdkeras.center.half import Half, Rounding


class Request(Protocol):
    """A sum under way."""

    def Test(self) -> bool:
        """Advances the sum; returns whether it is complete."""
        ...


class FloatSums:
    """Sums of float32 vectors by one reduction of all ranks.

    Args:
        comm: the ranks.
    """

    def __init__(self, comm: MPI.Comm) -> None:
        self._comm = comm

    def start(self, update: np.ndarray) -> Request:
        """Starts the sum of all ranks' vectors, in place; shape `(n,)`, float32."""
        return self._comm.Iallreduce(MPI.IN_PLACE, update)

    def free(self) -> None:
        """Does nothing: the communicator is the center's."""


class HalfSums:
    """Sums whose parts travel between hosts in half precision. They are summed in float32.

    The ranks of a host sum their vectors in float32 at the host's lowest rank, its leader. Each leader sends
    each other one a part of its host's sum, and sends its part of the total to all. A link so carries two
    bytes for each number in each of the two steps, and only once for all ranks of its host. What is rounded
    off is added to the next vector, at the leader. All ranks get the same bits.

    Making and freeing it is collective.

    Args:
        comm: the ranks.
        length: n, the elements of a vector.
        dtype: as of `Half`.
    """

    def __init__(self, comm: MPI.Comm, length: int, dtype: str) -> None:
        self._length = length
        self._neighbours = comm.Split_type(MPI.COMM_TYPE_SHARED, comm.rank)
        leads = self._neighbours.rank == 0
        self._leaders = comm.Split(0 if leads else MPI.UNDEFINED, comm.rank)
        if not leads:
            return
        hosts = self._leaders.size
        self._part = -(-length // hosts)
        self._padded = np.zeros(hosts * self._part, np.float32)
        self._neighbours_vector = np.empty(length, np.float32)
        self._sent, self._received = (np.zeros((hosts, self._part), np.uint16) for _ in range(2))
        self._own = np.empty(self._part, np.uint16)
        self._half = Half(dtype)
        self._round_vector = Rounding(self._padded.size, self._half)
        self._round_total = Rounding(self._part, self._half)

    def start(self, update: np.ndarray) -> Request:
        """Starts the sum of all ranks' vectors, in place; shape `(n,)`, float32."""
        return _Steps(self._steps(update))

    def free(self) -> None:
        """Frees the communicators."""
        if self._leaders != MPI.COMM_NULL:
            self._leaders.Free()
        self._neighbours.Free()

    def _steps(self, update: np.ndarray) -> Iterator[Request]:
        """Yields the requests of a sum; each follows the completion of the one before."""
        neighbours = self._neighbours
        if self._leaders == MPI.COMM_NULL:
            yield neighbours.Isend(update, 0)
            yield neighbours.Irecv(update, 0)
            return
        # Not by Ireduce and Ibcast: Open MPI cuts them in pieces of 16 KB, each of which waits for polls.
        for rank in range(1, neighbours.size):
            yield neighbours.Irecv(self._neighbours_vector, rank)
            update += self._neighbours_vector
        yield from self._between_hosts(update)
        yield from [neighbours.Isend(update, rank) for rank in range(1, neighbours.size)]

    def _between_hosts(self, update: np.ndarray) -> Iterator[Request]:
        self._padded[: self._length] = update
        self._round_vector(self._padded, self._sent.reshape(-1))
        yield self._leaders.Ialltoall(self._sent, self._received)
        total = np.zeros(self._part, np.float32)
        for halves in self._received:
            total += self._half.read(halves)
        self._round_total(total, self._own)
        yield self._leaders.Iallgather(self._own, self._received)
        update[:] = self._half.read(self._received).reshape(-1)[: self._length]


class _Steps:
    """Requests of which each is made when the one before is complete."""

    def __init__(self, steps: Iterator[Request]) -> None:
        self._steps = steps
        self._request = next(steps, None)

    def Test(self) -> bool:
        if self._request is not None and self._request.Test():
            self._request = next(self._steps, None)
        return self._request is None
