"""A window center's life on real ranks: memory, ends, errors, and no wait without one."""

import os
import time

import numpy as np
import pytest

from ranks import orphans

pytestmark = pytest.mark.mpi


def finishing():
    """Rank 0 finishes first; the others push for longer than the timeout, then rank 2 does nothing."""
    from mpi4py import MPI

    from hvdkeras.center.window import WindowCenter

    comm = MPI.COMM_WORLD
    ones = np.ones(10, np.float32)
    results = []
    for still in (False, True):
        center = WindowCenter(comm, np.zeros(10, np.float32), timeout=0.8)
        begin = time.perf_counter()
        if comm.rank == 1:
            for _ in range(12):
                center.push(ones)
                time.sleep(0.15)
        elif comm.rank == 2 and still:
            time.sleep(5)
        try:
            center.finish()
            results.append((center.pull()[0], time.perf_counter() - begin))
        except TimeoutError as error:
            results.append((str(error), time.perf_counter() - begin))
        comm.Barrier()
        center.free()
    return results


def test_finish_waits_as_long_as_something_happens(on_new_ranks):
    results = on_new_ranks(3, finishing)
    for value, seconds in [first for first, _ in results]:
        assert value == 12
        assert seconds > 1.7
    for rank in (0, 1):
        text, seconds = results[rank][1]
        assert f"rank {rank} waited for ranks [2] to finish" in text
        assert 1.7 < seconds < 5


def many_lives():
    from mpi4py import MPI

    from hvdkeras.center.window import WindowCenter

    comm = MPI.COMM_WORLD
    for life in range(50):
        length = [1, 1000, 3_000_000][life % 3]
        center = WindowCenter(comm, np.full(length, life, np.float32), slots=life % 2, sharded=life % 4 == 0)
        assert (center.pull() == life).all()
        comm.Barrier()
        center.push(np.ones(length, np.float32))
        center.finish()
        assert (center.pull() == life + comm.size).all()
        center.free()
        center.free()
        for verb in (center.pull, center.staleness, center.finish):
            with pytest.raises(RuntimeError, match="freed"):
                verb()
    return True


def test_allocate_and_free_fifty_times(on_new_ranks):
    assert all(on_new_ranks(2, many_lives))


def errors():
    from mpi4py import MPI

    from hvdkeras.center.window import WindowCenter

    comm = MPI.COMM_WORLD
    center = WindowCenter(comm, np.zeros(1000, np.float32), timeout=30)
    ones = np.ones(1000, np.float32)

    def slots(values):
        WindowCenter(comm, ones, slots=values)

    for error, text, call in [
        (TypeError, "float64", lambda: center.push(np.ones(1000))),
        (ValueError, "Received: 1001", lambda: center.push(np.ones(1001, np.float32))),
        (ValueError, "Received: 999", lambda: center.pull(out=ones[:999])),
        (ValueError, "must return 2 vectors", lambda: center.exchange(lambda x, c: (x, c[:5]), ones)),
        (ZeroDivisionError, "division", lambda: center.exchange(lambda x, c: 1 / 0, ones)),
        (ValueError, "slots must not be negative. Received: -1", lambda: WindowCenter(comm, ones, slots=-1)),
        (ValueError, r"shape \(slots, 1000\). Received: shape \(1000,\)", lambda: slots(ones)),
        (
            ValueError,
            r"shape \(slots, 1000\). Received: shape \(2, 999\)",
            lambda: slots(np.ones((2, 999), "f")),
        ),
        (
            TypeError,
            "slots must be a NumPy array of float32. Rec.* float64",
            lambda: slots(np.ones((2, 1000))),
        ),
        (ValueError, "same length on every rank", lambda: WindowCenter(comm, ones[comm.rank :])),
    ]:
        with pytest.raises(error, match=text):
            call()
    # What failed inside a rule has left no lock behind, and nothing half added.
    comm.Barrier()
    center.push(ones)
    center.finish()
    assert (center.pull() == comm.size).all()
    center.free()
    return True


def test_errors_speak_and_leave_no_lock(on_new_ranks):
    assert all(on_new_ranks(2, errors))


def too_large(free):
    import shutil

    from mpi4py import MPI

    from hvdkeras.center.window import WindowCenter

    usage = shutil.disk_usage("/")
    shutil.disk_usage = lambda path: usage._replace(free=free)
    before = set(os.listdir("/dev/shm"))
    with pytest.raises(
        OSError, match=r"needs 4[0-9.]+ MB of shared memory in /dev/shm, which has 1.0 MB free"
    ):
        WindowCenter(MPI.COMM_WORLD, np.zeros(10_000_000, np.float32), timeout=30)
    return set(os.listdir("/dev/shm")) - before


def elsewhere(folder):
    """All pages of 40 MB in a folder of the user's choice."""
    from mpi4py import MPI

    from hvdkeras.center.window import WindowCenter

    comm = MPI.COMM_WORLD
    before = os.statvfs("/dev/shm").f_bavail
    center = WindowCenter(comm, np.ones(10_000_000, np.float32), timeout=30)
    used = (before - os.statvfs("/dev/shm").f_bavail) * os.statvfs("/dev/shm").f_frsize
    comm.Barrier()
    center.free()
    return used


def test_shared_memory_is_looked_at_before_it_is_taken(on_new_ranks, tmp_path):
    on_new_ranks(2, too_large, 1_000_000, env={"OMPI_MCA_osc_sm_backing_directory": "/dev/shm"})
    used = on_new_ranks(2, elsewhere, str(tmp_path), env={"OMPI_MCA_osc_sm_backing_directory": str(tmp_path)})
    assert max(used) < 20_000_000
    assert not list(tmp_path.glob("osc_sm*"))


def stuck_in_rule(how):
    """Rank 1 never releases a lock; the others wait for it."""
    import signal

    from mpi4py import MPI

    from hvdkeras.center.window import WindowCenter

    comm = MPI.COMM_WORLD
    center = WindowCenter(comm, np.zeros(10, np.float32), timeout=1.0)
    ones = np.ones(10, np.float32)

    def rule(local, middle):
        if how == "killed":
            os.kill(os.getpid(), signal.SIGKILL)
        time.sleep(60)

    comm.Barrier()
    if comm.rank == 1:
        center.exchange(rule, ones)
    time.sleep(0.5)
    for _ in range(1_000_000):
        center.push(ones)


@pytest.mark.parametrize("how", ["asleep", "killed"])
def test_a_rank_that_keeps_a_lock_ends_the_job(on_new_ranks, how):
    before = orphans()
    with pytest.raises(AssertionError) as failed:
        on_new_ranks(3, stuck_in_rule, how, timeout=40)
    assert failed.value.returncode not in (0, None)
    if how == "asleep":
        assert set(failed.value.errors) <= {0, 2}
        for rank, text in failed.value.errors.items():
            assert (
                f"TimeoutError: rank {rank} waited 1 s for chunk 0 of the center, rank 0: the holder" in text
            )
    # What was there for a moment only belongs to another job, which was just beginning or ending.
    time.sleep(1)
    first = orphans() - before
    time.sleep(1)
    assert first & orphans() == set()
