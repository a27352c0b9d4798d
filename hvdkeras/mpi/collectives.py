"""Small collective operations with a bounded wait. All ranks of the communicator call them.

Each takes `timeout`, the seconds that the wait may take, and raises RankTimeoutError after that.
"""

from __future__ import annotations

import numpy as np
from mpi4py import MPI

from hvdkeras.mpi.waiting import wait


def broadcast(comm: MPI.Comm, values: np.ndarray, timeout: float, what: str) -> np.ndarray:
    """Copies rank 0's values into those of every other rank.

    Args:
        comm: the ranks.
        values: rank 0's values; on the other ranks an array of that shape and dtype, which is overwritten.
        timeout: seconds that the wait may take.
        what: what is waited for, for the error.

    Returns:
        `values`.
    """
    wait(comm.Ibcast(values).Test, timeout, what)
    return values


def gathered(comm: MPI.Comm, values: np.ndarray, timeout: float, what: str) -> np.ndarray:
    """Collects every rank's values.

    Args:
        comm: the ranks.
        values: this rank's values; they have the same shape and dtype on every rank.
        timeout: seconds that the wait may take.
        what: what is waited for, for the error.

    Returns:
        The values of all ranks, shape `(ranks, *shape)`, on every rank.
    """
    everyone = np.empty((comm.size, *values.shape), values.dtype)
    wait(comm.Iallgather(values, everyone).Test, timeout, what)
    return everyone


def gathered_rows(
    comm: MPI.Comm, rows: np.ndarray, counts: np.ndarray, timeout: float, what: str
) -> np.ndarray:
    """Collects every rank's rows, of which ranks may have different numbers.

    Args:
        comm: the ranks.
        rows: this rank's rows, shape `(k, *shape)`; shape and dtype of a row are the same on every rank.
        counts: the number of rows of each rank, shape `(ranks,)`.
        timeout: seconds that the wait may take.
        what: what is waited for, for the error.

    Returns:
        The rows of all ranks, in the ranks' order, on every rank.
    """
    everyone = np.empty((counts.sum(), *rows.shape[1:]), rows.dtype)
    row_bytes = rows.itemsize * int(np.prod(rows.shape[1:]))
    own = np.ascontiguousarray(rows).view(np.uint8).reshape(-1)
    received = [everyone.view(np.uint8).reshape(-1), counts * row_bytes]
    wait(comm.Iallgatherv(own, received).Test, timeout, what)
    return everyone


def check_equal(comm: MPI.Comm, value: int, requirement: str, timeout: float, what: str) -> None:
    """Checks that an integer is the same on every rank.

    Args:
        comm: the ranks.
        value: this rank's integer.
        requirement: how the error begins, such as `"initial must have the same length"`.
        timeout: seconds that the wait may take.
        what: what is waited for, for the error.

    Raises:
        ValueError: on every rank, if two ranks have different integers.
    """
    values = gathered(comm, np.array(value), timeout, what)
    if (values != value).any():
        raise ValueError(f"{requirement} on every rank. Received: {values.tolist()}")


def mean(comm: MPI.Comm, values: np.ndarray, timeout: float, what: str) -> np.ndarray:
    """Averages a vector over the ranks.

    Args:
        comm: the ranks.
        values: this rank's vector, shape `(m,)`, float32. It is not changed.
        timeout: seconds that the wait may take.
        what: what is waited for, for the error.

    Returns:
        The mean, shape `(m,)`, float32, with the same bits on every rank.
    """
    share = values / np.float32(comm.size)
    if share.size:
        wait(comm.Iallreduce(MPI.IN_PLACE, share).Test, timeout, what)
    # A sum of negative zeros becomes a plain zero, as it would where the shares are added to zeros.
    return share + np.float32(0)


def duplicate(comm: MPI.Comm, timeout: float, what: str) -> MPI.Comm:
    """Makes a communicator of the same ranks whose messages never meet those on `comm`.

    Args:
        comm: the ranks.
        timeout: seconds that the wait may take.
        what: what is waited for, for the error.

    Returns:
        The new communicator. Its owner frees it.
    """
    copy, request = comm.Idup()
    wait(request.Test, timeout, what)
    return copy
