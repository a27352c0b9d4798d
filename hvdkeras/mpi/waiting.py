"""Waiting for other ranks: bounded, and without taking the core from a rank that computes."""

from __future__ import annotations

import time
from collections.abc import Callable

import numpy as np
from mpi4py import MPI

# Seconds between two looks at what is under way: more often costs the core.
LOOK = 0.001

# A look that took longer than this many seconds has moved data, and more is likely to be there. Without it a
# reduction of 10 MB between two ranks of one host took 48 ms, with it 5 ms.
MOVED = 10e-6


def look(done: Callable[[], bool], pause: float = LOOK) -> bool:
    """Calls `done` once and gives the core away for `pause` seconds unless it is true or something moves."""
    begin = time.perf_counter()
    if done():
        return True
    if time.perf_counter() - begin < MOVED:
        time.sleep(pause)
    return False


def wait(done: Callable[[], bool], timeout: float, what: str) -> float:
    """Calls `done` until it is true and gives the core away in between.

    A rank that waits inside MPI spins, and takes a core from one that computes. The pauses grow with the time
    waited, so that a short wait stays short.

    Returns:
        The seconds waited.

    Raises:
        TimeoutError: `timeout` seconds have passed.
    """
    start = time.perf_counter()
    elapsed = 0.0
    while not look(done, pause=min(LOOK, elapsed / 10)):
        elapsed = time.perf_counter() - start
        if elapsed > timeout:
            raise TimeoutError(f"rank {MPI.COMM_WORLD.rank} waited {timeout:g} s for {what}")
    return time.perf_counter() - start


def broadcast(comm: MPI.Comm, values: np.ndarray, timeout: float, what: str) -> np.ndarray:
    """Returns rank 0's values on every rank; `values` has their shape and dtype."""
    wait(comm.Ibcast(values).Test, timeout, what)
    return values


def gathered(comm: MPI.Comm, values: np.ndarray, timeout: float, what: str) -> np.ndarray:
    """Returns every rank's values, shape (ranks, *shape); all ranks' have the same shape and dtype."""
    everyone = np.empty((comm.size, *values.shape), values.dtype)
    wait(comm.Iallgather(values, everyone).Test, timeout, what)
    return everyone


def agree_on_length(comm: MPI.Comm, length: int, timeout: float) -> None:
    """Raises ValueError on every rank unless all have vectors of the same length."""
    lengths = gathered(comm, np.array(length), timeout, f"all {comm.size} ranks to make the center")
    if (lengths != length).any():
        raise ValueError(f"initial must have the same length on every rank. Received: {lengths.tolist()}")


def duplicate(comm: MPI.Comm, timeout: float) -> MPI.Comm:
    """Gives the center its own communicator, so that its messages never meet the user's."""
    own, request = comm.Idup()
    wait(request.Test, timeout, f"all {comm.size} ranks to make the center")
    return own
