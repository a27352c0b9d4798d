"""Ranks on the executors of a Spark standalone cluster over two hosts."""

import sys

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


def sums_and_places(length, pushes):
    import os
    import sys

    name, *_, totals = sums(length, pushes)
    own = os.path.samefile(sys.prefix, "environment")
    return name, sys.prefix, own, os.environ["OPAL_PREFIX"], os.environ["PATH"].split(":")[0], totals


def run_sums_and_places(session, length, pushes):
    from hvdkeras.launch import spark

    return spark.run(sums_and_places, (length, pushes), num_proc=4)


def test_each_host_runs_the_environment_that_its_executor_has_unpacked(on_driver):
    results = on_driver(run_sums_and_places, 1000, 2, unpack=True)
    prefixes = {}
    for name, prefix, own, open_mpi, first_on_path, totals in results:
        assert own
        assert open_mpi == prefix
        assert first_on_path == f"{prefix}/bin"
        assert totals == [(8, 8), (8, 8)]
        prefixes.setdefault(name, set()).add(prefix)
    # A host's ranks share one; the hosts have none in common, nor with the driver.
    assert sorted(map(len, prefixes.values())) == [1, 1]
    assert len({sys.prefix}.union(*prefixes.values())) == 3
