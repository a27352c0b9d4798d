"""The center that every rank holds, on real ranks: its numbers, its equality over ranks, its errors."""

import time

import numpy as np
import pytest

pytestmark = pytest.mark.mpi


def elastic(local, center, alpha=np.float32(0.2)):  # noqa: B008
    difference = alpha * (local - center)
    return local - difference, difference


def noise(rank, step, length):
    return np.random.default_rng((rank, step)).normal(size=length).astype(np.float32)


def easgd(length, steps):
    """Each rank makes a random step, exchanges, and pushes something of its own."""
    from mpi4py import MPI

    from hvdkeras.center import ReplicatedCenter

    comm = MPI.COMM_WORLD
    # Rank 0's vector counts, whatever the others bring.
    center = ReplicatedCenter(comm, noise(100 + comm.rank, 0, length))
    local = center.pull()
    for step in range(steps):
        local += noise(comm.rank, step, length)
        local = center.exchange(elastic, local)
        center.push(noise(50 + comm.rank, step, length))
    pulled, telemetry = center.pull(), center.telemetry
    center.free()
    return pulled, local, telemetry


@pytest.mark.parametrize(("size", "length"), [(1, 1000), (2, 1), (3, 1000), (4, 300_001)])
def test_equals_the_recursion_in_numpy(on_ranks, size, length):
    steps = 5
    results = on_ranks(size, easgd, length, steps)
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


def waits_and_errors():
    from mpi4py import MPI

    from hvdkeras.center import ReplicatedCenter

    comm = MPI.COMM_WORLD
    seen = {}
    ones = np.ones(1000, np.float32)
    center = ReplicatedCenter(comm, np.zeros(1000, np.float32), timeout=0.5)

    center.push(ones)
    time.sleep(0.2)
    seen["reduced between two verbs"] = center._request is None

    # Rank 1 comes too late for rank 0's patience; the reduction still completes afterwards.
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

    for name, call in {
        "float64": lambda: center.push(np.ones(1000)),
        "length": lambda: center.push(ones[:999]),
        "strides": lambda: center.push(np.ones(2000, np.float32)[::2]),
        "shape": lambda: center.push(ones.reshape(10, 100)),
        "vector": lambda: center.exchange(lambda x, c, v: (x, v), ones, ones[1:]),
        "scalar": lambda: center.exchange(lambda x, c: (x, np.float32(1)), ones),
        "count": lambda: center.exchange(lambda x, c: (x, c, c), ones),
        "out": lambda: center.pull(out=np.frombuffer(ones.tobytes(), np.float32)),
    }.items():
        try:
            call()
        except (TypeError, ValueError) as error:
            seen[name] = f"{type(error).__name__}: {error}"
    center.free()
    center.free()
    for verb in (center.pull, lambda: center.push(ones), lambda: center.exchange(elastic, ones)):
        with pytest.raises(RuntimeError, match="freed"):
            verb()
    with pytest.raises(ValueError, match=r"same length on every rank. Received: \[5, 6\]"):
        ReplicatedCenter(comm, np.zeros(5 + comm.rank, np.float32))
    return seen


def test_waits_are_bounded_and_errors_speak(on_ranks):
    zero, one = on_ranks(2, waits_and_errors)
    assert zero["reduced between two verbs"]
    text, seconds = zero.pop("timeout")
    assert "rank 0 waited 0.5 s for the updates of the other 1 ranks" in text
    assert 0.4 < seconds < 1.4
    for seen in (zero, one):
        assert (seen["center"] == 4).all()
        assert seen["float64"].startswith(
            "TypeError: update must be a NumPy vector of float32. Received: float64"
        )
        assert "center's 1000 elements. Received: 999" in seen["length"]
        assert "strides (8,)" in seen["strides"]
        assert "shape (10, 100)" in seen["shape"]
        assert "vector 0" in seen["vector"]
        assert "must return 2 vectors" in seen["scalar"]
        assert "must return 2 vectors" in seen["count"]
        assert "read-only" in seen["out"]
