"""Ranks on the executors of a Spark standalone cluster over two hosts."""

import numpy as np
import pytest

pytestmark = [pytest.mark.cluster, pytest.mark.slow]


def sums(length, pushes):
    import socket

    from mpi4py import MPI

    from hvdkeras.center.replicated import ReplicatedCenter
    from hvdkeras.center.window import WindowCenter

    comm = MPI.COMM_WORLD
    ones = np.ones(length, np.float32)
    window = WindowCenter(comm, np.zeros(length, np.float32), timeout=60)
    replicated = ReplicatedCenter(comm, np.zeros(length, np.float32), timeout=60)
    for _ in range(pushes):
        window.push(ones)
        replicated.push(ones)
    window.finish()
    totals = [(total.min(), total.max()) for total in (window.pull(), replicated.pull())]
    window.free()
    replicated.free()
    neighbours = comm.Split_type(MPI.COMM_TYPE_SHARED).size
    return socket.gethostname(), comm.rank, comm.size, neighbours, totals


def run_sums(session, length, pushes):
    from hvdkeras.launch import spark

    return spark.run(sums, (length, pushes), num_proc=4)


def test_ranks_sit_on_both_hosts_and_sums_are_exact(on_driver):
    results = on_driver(run_sums, 1_000_000, 5)
    assert sorted(name for name, *_ in results) == ["alpha", "alpha", "beta", "beta"]
    for rank, (_, number, size, neighbours, totals) in enumerate(results):
        assert (number, size, neighbours) == (rank, 4, 2)
        assert totals == [(20, 20), (20, 20)]
