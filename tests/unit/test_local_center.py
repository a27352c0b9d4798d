"""A center in one process, by numbers that a reader can check in the head; and without MPI."""

import subprocess
import sys

import numpy as np
import pytest

from hvdkeras.center.local import LocalCenter


def vector(*values):
    return np.array(values, np.float32)


def halfway(local, center):
    half = np.float32(0.5) * (local - center)
    return local - half, half


def counting(local, center, sums, counts, gradient):
    """A rule with two slots and one further vector."""
    return center + gradient, gradient, gradient * gradient, np.ones_like(gradient)


def test_it_loads_without_mpi():
    program = "import sys; import hvdkeras.center.local; print('mpi4py' in sys.modules)"
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "False"


def test_the_verbs():
    initial = vector(1, 2)
    center = LocalCenter(initial)
    center.push(vector(3, 2))
    assert center.pull().tolist() == [4, 4]
    local = vector(8, 0)
    assert center.exchange(halfway, local).tolist() == [6, 2]
    assert center.pull().tolist() == [6, 2]
    assert (initial.tolist(), local.tolist()) == ([1, 2], [8, 0])
    assert (center.size, center.staleness()) == (1, 0)
    out = np.empty(2, np.float32)
    assert center.pull(out) is out
    assert center.exchange(halfway, local, out=out) is out


def test_workers_exchange_in_turn():
    center = LocalCenter(vector(0))
    workers = [vector(8), vector(8)]
    workers = [center.exchange(halfway, local) for local in workers]
    assert [local.tolist() for local in workers] == [[4], [6]]
    assert center.pull().tolist() == [6]


def test_slots_take_their_own_pushes():
    center = LocalCenter(vector(1, 1), slots=2)
    for _ in range(2):
        local = center.exchange(counting, vector(0, 0), vector(2, -3))
    contents = center.contents()
    assert local.tolist() == contents.center.tolist() == [5, -5]
    assert contents.slots.tolist() == [[8, 18], [2, 2]]
    again = LocalCenter(contents.center, slots=contents.slots)
    again.exchange(counting, vector(0, 0), vector(1, 1))
    assert again.contents().slots.tolist() == [[9, 19], [3, 3]]
    assert contents.slots.tolist() == [[8, 18], [2, 2]]


def test_long_vectors_are_worked_on_in_blocks():
    lengths = []

    def rule(local, center):
        lengths.append(len(local))
        return halfway(local, center)

    values = np.arange(150_000, dtype=np.float32)
    center = LocalCenter(np.zeros_like(values))
    np.testing.assert_array_equal(center.exchange(rule, values), values / 2)
    np.testing.assert_array_equal(center.pull(), values / 2)
    assert lengths == [65_536, 65_536, 18_928]


def in_place(local, center):
    center += local
    return local, center


@pytest.mark.parametrize(
    ("error", "message", "call"),
    [
        (
            TypeError,
            "initial must be a NumPy vector of float32. Received: float64",
            lambda c: LocalCenter(np.ones(2)),
        ),
        (ValueError, "slots must not be negative. Received: -1", lambda c: LocalCenter(vector(1), slots=-1)),
        (ValueError, "update must have the center's 2 elements. Received: 1", lambda c: c.push(vector(1))),
        (ValueError, "vector 0 must have", lambda c: c.exchange(halfway, vector(1, 1), vector(1))),
        (ValueError, "a rule must return 2 vectors", lambda c: c.exchange(lambda x, m: (x,), vector(1, 1))),
        (ValueError, "read-only", lambda c: c.exchange(in_place, vector(1, 1))),
    ],
)
def test_errors_are_those_of_the_real_centers(error, message, call):
    with pytest.raises(error, match=message):
        call(LocalCenter(vector(1, 2)))
