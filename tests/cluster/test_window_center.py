"""The center in windows between hosts, over TCP: what holds on one host must hold here."""

import socket

import numpy as np
import pytest

pytestmark = pytest.mark.cluster


def sums(length, pushes, sharded):
    from mpi4py import MPI

    from hvdkeras.window import WindowCenter

    comm = MPI.COMM_WORLD
    neighbours = comm.Split_type(MPI.COMM_TYPE_SHARED).size
    center = WindowCenter(comm, np.full(length, comm.rank, np.float32), sharded=sharded, timeout=60)
    ones = np.ones(length, np.float32)
    for _ in range(pushes):
        center.push(ones)
    center.finish()
    pulled = center.pull()
    telemetry = center.telemetry
    center.free()
    return socket.gethostname(), neighbours, pulled.min(), pulled.max(), telemetry


@pytest.mark.parametrize(
    ("length", "pushes", "sharded"), [(1, 20, False), (2_000_000, 5, False), (2_000_000, 5, True)]
)
def test_no_push_is_lost(on_hosts, length, pushes, sharded):
    results = on_hosts(2, sums, length, pushes, sharded)
    assert sorted(name for name, *_ in results) == ["alpha", "alpha", "beta", "beta"]
    for _, neighbours, low, high, telemetry in results:
        assert neighbours == 2
        assert low == high == 4 * pushes
        assert telemetry["exchanges"] == pushes
