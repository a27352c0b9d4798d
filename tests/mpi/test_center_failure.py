"""A parameter server whose ranks fail: one error on the driver, and nothing left behind."""

import os
import signal
import sys
import time

import cloudpickle
import numpy as np
import pytest

from hvdkeras import TrainingError, launch

from ranks import orphans

pytestmark = [pytest.mark.mpi, pytest.mark.usefixtures("no_process_left")]


def fail(rank: int, how: str) -> None:
    """Two ranks exchange for a while; one of them fails in the middle of it."""
    from mpi4py import MPI

    from hvdkeras.center.window import WindowCenter

    comm = MPI.COMM_WORLD
    center = WindowCenter(comm, np.zeros(300_000, np.float32), timeout=60)
    calls = 0

    def rule(local, held):
        # Called while this rank holds the lock of a chunk.
        nonlocal calls
        calls += 1
        if comm.rank == rank and calls == 20 and how == "killed in a lock":
            os.kill(os.getpid(), signal.SIGKILL)
        return local, np.zeros_like(held)

    local = np.ones(300_000, np.float32)
    for turn in range(100_000):
        center.exchange(rule, local)
        if comm.rank == rank and turn == 20 and how == "raises":
            center.pull()
            raise RuntimeError("between pull and push")


@pytest.mark.parametrize(
    ("rank", "how", "expected_signal"),
    [(1, "killed in a lock", signal.SIGKILL), (0, "killed in a lock", signal.SIGKILL), (1, "raises", None)],
)
def test_one_error_and_nothing_left(rank, how, expected_signal):
    before = orphans()
    cloudpickle.register_pickle_by_value(sys.modules[__name__])
    try:
        with pytest.raises(TrainingError) as caught:
            launch.local.run(fail, (rank, how), num_proc=2)
    finally:
        cloudpickle.unregister_pickle_by_value(sys.modules[__name__])
    assert caught.value.rank == rank
    assert caught.value.signal == expected_signal
    assert ("between pull and push" in (caught.value.remote_traceback or "")) == (how == "raises")
    # Open MPI removes its files when the last of its processes is gone, a little after the launch's end.
    deadline = time.monotonic() + 10
    while (left := orphans() - before) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert left == set()
