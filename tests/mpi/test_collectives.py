"""Small collectives and mailboxes on real ranks."""

import time

import numpy as np
import pytest

pytestmark = pytest.mark.mpi


def collectives():
    from mpi4py import MPI

    from hvdkeras.mpi.collectives import broadcast, check_equal, gathered, mean

    comm = MPI.COMM_WORLD
    own = np.random.default_rng(comm.rank).normal(size=1001).astype(np.float32)
    own[::7] = -0.0
    before = own.copy()
    averaged = mean(comm, own, 60, "the means")
    assert own.tobytes() == before.tobytes()
    assert mean(comm, own[:0], 60, "nothing").shape == (0,)
    assert (broadcast(comm, np.full(3, comm.rank), 60, "rank 0") == 0).all()
    np.testing.assert_array_equal(
        gathered(comm, np.full(2, comm.rank), 60, "all ranks"), [[rank] * 2 for rank in range(comm.size)]
    )
    check_equal(comm, 7, "nothing may differ", 60, "all ranks")
    if comm.size > 1:
        expected = r"initial must have the same length on every rank. Received: \[3, 4"
        with pytest.raises(ValueError, match=expected):
            check_equal(comm, 3 + comm.rank, "initial must have the same length", 60, "all ranks")
    return averaged


@pytest.mark.parametrize("size", [1, 3])
def test_collectives(on_ranks, size):
    results = on_ranks(size, collectives)
    vectors = [np.random.default_rng(rank).normal(size=1001).astype(np.float32) for rank in range(size)]
    expected = np.mean(vectors, axis=0, dtype=np.float64)
    expected[::7] = 0
    for averaged in results:
        assert averaged.dtype == np.float32
        assert averaged.tobytes() == results[0].tobytes()
        np.testing.assert_allclose(averaged, expected, rtol=1e-6, atol=1e-7)
        assert not np.signbit(averaged[::7]).any()


def late():
    from mpi4py import MPI

    from hvdkeras.mpi.waiting import wait

    comm = MPI.COMM_WORLD
    if comm.rank == 1:
        time.sleep(1.5)
    request = comm.Ibarrier()
    try:
        wait(request.Test, 0.5, "the late rank")
    except TimeoutError as error:
        request.Wait()
        return str(error)
    return None


def test_a_wait_is_bounded_and_says_what_it_waited_for(on_ranks):
    assert on_ranks(2, late) == ["rank 0 waited 0.5 s for the late rank", None]


def letters(count, large):
    """Each rank sends numbered messages of different sizes to each rank, itself too."""
    from mpi4py import MPI

    from hvdkeras.mpi.mailbox import Mailbox
    from hvdkeras.mpi.waiting import wait

    comm = MPI.COMM_WORLD
    mailbox = Mailbox(comm, 60)
    for number in range(count):
        for rank in range(comm.size):
            mailbox.send(rank, (number, np.full(large if number % 3 == 0 else 1, comm.rank)))
    found = {rank: [] for rank in range(comm.size)}

    def complete():
        for source, (number, values) in mailbox.arrived():
            assert (values == source).all()
            found[source].append(number)
        return mailbox.received == count * comm.size

    wait(complete, 60, "all messages")
    mailbox.close()
    return found


def test_messages_of_a_sender_keep_their_order(on_ranks):
    for found in on_ranks(3, letters, 9, 1_000_000):
        assert found == {rank: list(range(9)) for rank in range(3)}
