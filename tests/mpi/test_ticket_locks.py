"""The locks of a WindowCenter where ranks lose their cores at any moment."""

import time

import pytest

pytestmark = [pytest.mark.mpi, pytest.mark.slow]


def acquire_and_release(count, seconds, working):
    from mpi4py import MPI

    from hvdkeras.center.ticket_locks import TicketLocks

    comm = MPI.COMM_WORLD
    locks = TicketLocks(comm, [0] * count, timeout=10.0)
    comm.Barrier()
    acquired, end = 0, time.perf_counter() + seconds
    while time.perf_counter() < end:
        if comm.rank >= working:
            continue  # takes the core from the others
        for step in range(count):
            index = (step + comm.rank) % count
            locks.acquire(index)
            locks.release(index)
            acquired += 1
    comm.Barrier()
    counted = locks._here[:, [0, 8]].sum(axis=0).tolist() if comm.rank == 0 else None
    locks.free()
    return acquired, counted


def test_no_ticket_is_lost_however_ranks_are_interrupted(on_new_ranks):
    # A release by a Put lost one in every few hundred thousand tickets, and all ranks waited for it.
    results = on_new_ranks(6, acquire_and_release, 10, 8.0, 4)
    total = sum(acquired for acquired, _ in results)
    assert total > 10_000
    assert results[0][1] == [total, total]
