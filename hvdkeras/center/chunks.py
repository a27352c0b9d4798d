"""The memory of a WindowCenter: the center's vector cut into chunks, each an MPI window of its own.

One lock over a large vector starves the ranks of other hosts. With one lock for each chunk, and ranks that
start at different chunks, all ranks work side by side.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from mpi4py import MPI

from hvdkeras.center.contents import Contents
from hvdkeras.center.vectors import blocks
from hvdkeras.mpi.collectives import broadcast, gathered

# A chunk below a megabyte loses more by its lock than it gains by working beside the others; more than 16
# chunks gain nothing.
CHUNKS = 16
CHUNK_BYTES = 1 << 20

# Elements of a cache line.
LINE = 16

# Bytes of a window beside its data: its state, and a page or two for each rank.
WINDOW_BYTES = 1 << 16
RANK_BYTES = 1 << 13

# Open MPI's name of the folder for memory that the ranks of one host share.
BACKING_DIRECTORY = "OMPI_MCA_osc_sm_backing_directory"


@dataclass(frozen=True)
class Chunk:
    """Some elements of the center and of its slots, and the window in which they are.

    Attributes:
        index: number of the chunk, from 0.
        start: its first element in the center.
        stop: the end of its elements in the center.
        host: the rank that holds it.
        window: the MPI window. From its element `first` on it holds the chunk's elements of the center
            (part 0), then those of each slot (part 1, 2, ...).
        first: where part 0 begins in the window, in elements.
    """

    index: int
    start: int
    stop: int
    host: int
    window: MPI.Win
    first: int

    def __str__(self) -> str:
        return f"chunk {self.index} of the center at rank {self.host}"

    @cached_property
    def elements(self) -> slice:
        """The chunk's elements in the center."""
        return slice(self.start, self.stop)

    def place(self, block: slice, part: int = 0) -> list:
        """Returns where a part's elements `block` of the center are in the window, as MPI's target."""
        offset = self.first + part * (self.stop - self.start) + block.start - self.start
        return [offset, block.stop - block.start, MPI.FLOAT]

    def open(self) -> None:
        """Opens the window. MPI does not lock it: the TicketLocks decide which rank may use it."""
        self.window.Lock(self.host, MPI.LOCK_SHARED, MPI.MODE_NOCHECK)

    def close(self) -> None:
        """Waits until every Put, Get and Accumulate is complete, and closes the window."""
        self.window.Unlock(self.host)


def cut(length: int) -> list[slice]:
    """Cuts `length` elements into chunks of a megabyte or more, 16 at most, one at least.

    They end on the borders of cache lines, so that all parts of a window begin on one.
    """
    count = max(1, min(CHUNKS, 4 * length // CHUNK_BYTES))
    return blocks(0, length, -(-length // (count * LINE)) * LINE)


def allocate(comm: MPI.Comm, length: int, parts: int, holders: Sequence[int], timeout: float) -> list[Chunk]:
    """Makes the windows. Collective.

    Args:
        comm: communicator of the ranks.
        length: n, the center's elements.
        parts: 1 + slots.
        holders: the ranks in whose memory the chunks are, in turn.
        timeout: seconds that a wait for the other ranks may take.

    Returns:
        The chunks, in the order of their elements.
    """
    slices = cut(length)
    hosts = [holders[index % len(holders)] for index in range(len(slices))]
    windows = []
    for elements, host in zip(slices, hosts, strict=True):
        size = LINE + (elements.stop - elements.start) * parts if comm.rank == host else 0
        windows.append(MPI.Win.Allocate(4 * size, 4, comm=comm))
    # Open MPI's memory begins in the middle of a cache line, where a push of 10 MB takes a fifth longer.
    firsts = np.array([-MPI.Get_address(window.tomemory()) // 4 % LINE for window in windows])
    firsts = gathered(comm, firsts, timeout, f"all {comm.size} ranks to make the center")
    return [
        Chunk(index, elements.start, elements.stop, host, window, int(firsts[host, index]))
        for index, (elements, host, window) in enumerate(zip(slices, hosts, windows, strict=True))
    ]


def fill(chunks: list[Chunk], contents: Contents) -> None:
    """Writes the first values of the center and its slots, before any rank reads them."""
    for chunk in chunks:
        chunk.open()
        for part, values in enumerate((contents.center, *contents.slots)):
            target = chunk.place(chunk.elements, part)
            chunk.window.Put(values[chunk.elements], chunk.host, target=target)
        chunk.close()


def hosts_of(comm: MPI.Comm, timeout: float) -> list[int]:
    """Returns for each rank the number of its host, which is its host's lowest rank. Collective."""
    neighbours = comm.Split_type(MPI.COMM_TYPE_SHARED)
    here, all_ranks = neighbours.Get_group(), comm.Get_group()
    lowest = MPI.Group.Translate_ranks(here, [0], all_ranks)[0]
    for each in (here, all_ranks, neighbours):
        each.Free()
    return gathered(comm, np.array(lowest), timeout, f"the hosts of all {comm.size} ranks").tolist()


def alternating(hosts: Sequence[int]) -> list[int]:
    """Returns the ranks in an order in which neighbours are on different hosts, as far as possible.

    Args:
        hosts: for each rank the number of its host.
    """
    local_ranks = [list(hosts[:rank]).count(host) for rank, host in enumerate(hosts)]
    return sorted(range(len(hosts)), key=lambda rank: (local_ranks[rank], hosts[rank]))


def on_one_host(comm: MPI.Comm) -> bool:
    """Returns whether all ranks are on one host, and so share its memory. Collective."""
    neighbours = comm.Split_type(MPI.COMM_TYPE_SHARED)
    one_host = neighbours.size == comm.size
    neighbours.Free()
    return one_host


def check_shared_memory(comm: MPI.Comm, length: int, parts: int, timeout: float) -> None:
    """Checks that the shared memory of the ranks' one host is large enough for the windows. Collective.

    Open MPI makes the memory at rank 0 only: without room it would fail there while the other ranks wait.

    Raises:
        OSError: on every rank, if it is too small.
    """
    needed = 4 * length * parts + (CHUNKS + 1) * (WINDOW_BYTES + RANK_BYTES * comm.size)
    default = "/dev/shm" if os.access("/dev/shm", os.W_OK) else tempfile.gettempdir()
    directory = os.environ.get(BACKING_DIRECTORY, default)
    free = np.array([shutil.disk_usage(directory).free if os.path.isdir(directory) else 0], np.int64)
    broadcast(comm, free, timeout, "rank 0 to measure the free shared memory")
    if free[0] < needed:
        raise OSError(
            f"the center needs {needed / 1e6:.1f} MB of shared memory in {directory}, which has "
            f"{free[0] / 1e6:.1f} MB free. Set {BACKING_DIRECTORY} to a local folder with more space "
            "before MPI starts, or give the container more (docker run --shm-size)"
        )
