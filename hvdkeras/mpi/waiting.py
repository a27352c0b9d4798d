"""Waits for other ranks: bounded, and without taking the core from a rank that computes."""

from __future__ import annotations

import time
from collections.abc import Callable

from mpi4py import MPI

from hvdkeras.launch.failure import RankTimeoutError

# Seconds between two polls of an operation. Shorter pauses cost the core.
POLL_INTERVAL = 0.001

# A poll that took longer than this many seconds has moved data, and more is likely to be there. Without this
# rule a reduction of 10 MB between two ranks of one host took 48 ms, with it 5 ms.
TRANSFER_SECONDS = 10e-6


def poll(done: Callable[[], bool], pause: float = POLL_INTERVAL) -> bool:
    """Calls `done` once; sleeps for `pause` seconds unless it returned true or moved data.

    Args:
        done: tests an operation of MPI, which also makes MPI work on it.
        pause: seconds for which other processes get the core.

    Returns:
        What `done` returned.
    """
    begin = time.perf_counter()
    if done():
        return True
    if time.perf_counter() - begin < TRANSFER_SECONDS:
        time.sleep(pause)
    return False


def wait(done: Callable[[], bool], timeout: float, what: str) -> float:
    """Polls `done` until it returns true.

    A rank that waits inside MPI spins, and takes a core from a rank that computes. Here it sleeps between two
    polls. The pauses grow with the time waited, so that a short wait stays short.

    Args:
        done: tests an operation of MPI.
        timeout: seconds that the wait may take.
        what: what is waited for, for the error.

    Returns:
        The seconds waited.

    Raises:
        RankTimeoutError: `timeout` seconds have passed.
    """
    start = time.perf_counter()
    elapsed = 0.0
    while not poll(done, pause=min(POLL_INTERVAL, elapsed / 10)):
        elapsed = time.perf_counter() - start
        if elapsed > timeout:
            raise RankTimeoutError(f"rank {MPI.COMM_WORLD.rank} waited {timeout:g} s for {what}")
    return time.perf_counter() - start
