"""The center that every rank holds, on real ranks: its numbers, its equality over ranks, its errors."""

import time

import numpy as np
import pytest

pytestmark = pytest.mark.mpi


ALPHA = np.float32(0.2)


def elastic(local, center):
    difference = ALPHA * (local - center)
    return local - difference, difference


def noise(rank, step, length):
    return np.random.default_rng((rank, step)).normal(size=length).astype(np.float32)


def easgd(length, steps):
    """Each rank makes a random step, exchanges, and pushes something of its own."""
    from mpi4py import MPI

    from hvdkeras.center.replicated import ReplicatedCenter

    comm = MPI.COMM_WORLD
    # Rank 0's vector counts, whatever the others bring.
    center = ReplicatedCenter(comm, noise(100 + comm.rank, 0, length))
    local = center.pull()
    for step in range(steps):
        local += noise(comm.rank, step, length)
        local = center.exchange(elastic, local)
        center.push(noise(50 + comm.rank, step, length))
    pulled, telemetry, contents = center.pull(), center.telemetry, center.contents()
    assert contents.center.tobytes() == pulled.tobytes()
    assert contents.slots.shape == (0, length)
    center.free()
    return pulled, local, telemetry


@pytest.mark.parametrize(("size", "length"), [(1, 1000), (2, 1), (3, 1000), (4, 300_001)])
def test_equals_the_recursion_in_numpy(on_new_ranks, size, length):
    steps = 5
    results = on_new_ranks(size, easgd, length, steps)
    center = noise(100, 0, length)
    locals_ = [center.copy() for _ in range(size)]
    for step in range(steps):
        moved = [local + noise(rank, step, length) for rank, local in enumerate(locals_)]
        locals_, differences = zip(*(elastic(local, center) for local in moved), strict=True)
        center = center + sum(differences)
        center = center + sum(noise(50 + rank, step, length) for rank in range(size))
    for rank, (pulled, local, telemetry) in enumerate(results):
        np.testing.assert_allclose(pulled, center, rtol=1e-6, atol=3e-6)
        np.testing.assert_allclose(local, locals_[rank], rtol=1e-6, atol=3e-6)
        assert pulled.tobytes() == results[0][0].tobytes(), "the ranks' centers differ"
        assert telemetry["exchanges"] == 2 * steps
        assert telemetry["seconds_communication"] > 0
        assert telemetry["seconds_waiting"] >= 0


def on_one_host(length):
    """Sums by the leader of a single host, and a center that is asked for half precision on one host."""
    from mpi4py import MPI

    from hvdkeras.center.replicated import ReplicatedCenter
    from hvdkeras.center.sums import FloatSums, HalfSums
    from hvdkeras.mpi.waiting import wait

    comm = MPI.COMM_WORLD
    sums, totals = HalfSums(comm, length, "float16"), []
    for step in range(3):
        totals.append(noise(comm.rank, step, length))
        wait(sums.start(totals[-1]).Test, 60, "the sum")
    sums.free()
    center = ReplicatedCenter(comm, np.zeros(length, np.float32), exchange_dtype="float16")
    converts = not isinstance(center._sums, FloatSums)
    center.push(noise(comm.rank, 0, length))
    pulled = center.pull()
    center.free()
    return np.array(totals), converts, pulled


def test_half_precision_is_for_links_between_hosts(on_ranks):
    results = on_ranks(3, on_one_host, 1001)
    exact = np.array([sum(noise(rank, step, 1001) for rank in range(3)) for step in range(3)])
    for totals, converts, pulled in results:
        assert totals.tobytes() == results[0][0].tobytes()
        # The host's sum, 8 at most, is rounded twice: as its push, and as the total.
        assert 1e-6 < np.abs(totals - exact).max() < 2 * 8 * 2.0**-11
        np.testing.assert_allclose(totals.sum(axis=0), exact.sum(axis=0), atol=2 * 8 * 2.0**-11)
        assert not converts
        np.testing.assert_allclose(pulled, exact[0], atol=3e-6)


def waits():
    from mpi4py import MPI

    from hvdkeras.center.replicated import ReplicatedCenter

    comm = MPI.COMM_WORLD
    ones, seen = np.ones(1000, np.float32), {}
    center = ReplicatedCenter(comm, np.zeros(1000, np.float32), timeout=0.5)
    center.push(ones)
    time.sleep(0.2)
    seen["reduced between two verbs"] = center._request is None

    # Rank 1 pushes after rank 0's timeout; the reduction still completes afterwards.
    comm.Barrier()
    if comm.rank == 1:
        center.pull()
        time.sleep(1.5)
    center.push(ones)
    begin = time.perf_counter()
    try:
        center.pull()
    except TimeoutError as error:
        seen["timeout"] = (str(error), time.perf_counter() - begin)
        time.sleep(1.5)
    seen["center"] = center.pull()
    center.free()
    return seen


def test_waits_are_bounded(on_new_ranks):
    zero, one = on_new_ranks(2, waits)
    assert zero["reduced between two verbs"]
    text, seconds = zero["timeout"]
    assert "rank 0 waited 0.5 s for the updates of the other 1 ranks" in text
    assert 0.4 < seconds < 1.4
    assert (zero["center"] == 4).all()
    assert (one["center"] == 4).all()


def errors():
    from mpi4py import MPI

    from hvdkeras.center.replicated import ReplicatedCenter

    comm = MPI.COMM_WORLD
    ones = np.ones(1000, np.float32)
    center = ReplicatedCenter(comm, np.zeros(1000, np.float32), timeout=30)
    for error, text, call in [
        (
            TypeError,
            "must be a NumPy vector of float32. Received: float64",
            lambda: center.push(np.ones(1000)),
        ),
        (ValueError, "center's 1000 elements. Received: 999", lambda: center.push(ones[:999])),
        (ValueError, r"strides \(8,\)", lambda: center.push(np.ones(2000, np.float32)[::2])),
        (ValueError, r"shape \(10, 100\)", lambda: center.push(ones.reshape(10, 100))),
        (ValueError, "vector 0", lambda: center.exchange(lambda x, c, v: (x, v), ones, ones[1:])),
        (ValueError, "return 2 vectors", lambda: center.exchange(lambda x, c: (x, np.float32(1)), ones)),
        (ValueError, "return 2 vectors", lambda: center.exchange(lambda x, c: (x, c, c), ones)),
        (ValueError, "read-only", lambda: center.pull(out=np.frombuffer(ones.tobytes(), np.float32))),
        (ValueError, r"Received: \[5, 6\]", lambda: ReplicatedCenter(comm, ones[: 5 + comm.rank])),
    ]:
        with pytest.raises(error, match=text):
            call()
    center.free()
    center.free()
    for verb in (center.pull, lambda: center.push(ones), lambda: center.exchange(elastic, ones)):
        with pytest.raises(RuntimeError, match="freed"):
            verb()
    return True


def test_errors_say_what_was_received(on_new_ranks):
    assert all(on_new_ranks(2, errors))


def writes_to_the_center():
    from mpi4py import MPI

    from hvdkeras.center.replicated import ReplicatedCenter
    from hvdkeras.center.window import WindowCenter

    def rule(local, center):
        center -= local
        return local, center

    for kind in (ReplicatedCenter, WindowCenter):
        center = kind(MPI.COMM_WORLD, np.zeros(3, np.float32))
        with pytest.raises(ValueError, match="read-only"):
            center.exchange(rule, np.ones(3, np.float32))
        center.free()
    return True


def test_a_rule_can_not_change_the_center_in_place(on_new_ranks):
    assert on_new_ranks(1, writes_to_the_center) == [True]
