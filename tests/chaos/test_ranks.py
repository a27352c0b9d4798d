"""Ranks that hang, stop, or say what no driver expects."""

import builtins
import os
import signal
import sys
import threading
import time

import psutil
import pytest

from hvdkeras.launch import local, rank, supervisor
from hvdkeras.launch.failure import TrainingError

pytestmark = [pytest.mark.mpi, pytest.mark.chaos, pytest.mark.usefixtures("nothing_left")]


class Slow:
    """Takes long to unpickle."""

    def __reduce__(self):
        return time.sleep, (100,)


class Unreadable:
    """Can't be unpickled by a driver."""

    def __reduce__(self):
        return exec, ("import no_such_module",)


def test_output_that_is_no_text(capfd):
    def work():
        from mpi4py import MPI

        if MPI.COMM_WORLD.rank == 1:
            os.write(1, b"a wrong byte: \xff\n")
            for line in range(2000):
                print(line, "x" * 100)
        MPI.COMM_WORLD.Barrier()

    local.run(work, num_proc=2)
    printed = capfd.readouterr().err
    assert "a wrong byte: \N{REPLACEMENT CHARACTER}" in printed
    assert " 1999 xxx" in printed


def test_results_are_kept_though_a_rank_does_not_end(monkeypatch, caplog):
    monkeypatch.setattr(supervisor, "EXIT_SECONDS", 2.0)

    def work():
        from mpi4py import MPI

        if MPI.COMM_WORLD.rank == 1:
            threading.Thread(target=time.sleep, args=(100,)).start()
        return MPI.COMM_WORLD.rank

    assert local.run(work, num_proc=2) == [0, 1]
    assert "ranks still ran 2 s after the last result" in caplog.text


def test_loading_the_task_belongs_to_the_start():
    with pytest.raises(
        TimeoutError, match=r"start_timeout=10 s for 1 ranks: ranks \[0\] are inside MPI and load"
    ):
        local.run(print, (Slow(),), num_proc=1, start_timeout=10)


def test_the_start_is_over_before_mpirun_exists():
    # How far the ranks are when the driver gives up depends on the machine.
    with pytest.raises(TimeoutError, match=r"start_timeout=0.01 s for 2 ranks: ranks \["):
        local.run(os.getpid, num_proc=2, start_timeout=0.01)


@pytest.mark.parametrize("stopped", [{0}, {0, 1}])
def test_stopped_ranks_are_named(stopped, monkeypatch):
    monkeypatch.setattr(supervisor, "SILENCE_SECONDS", 4.0)

    def work():
        from mpi4py import MPI

        if MPI.COMM_WORLD.rank in stopped:
            os.kill(os.getpid(), signal.SIGSTOP)
        time.sleep(100)

    with pytest.raises(TrainingError, match="is silent: waited timeout=4 s") as caught:
        local.run(work, num_proc=2, timeout=4, verbose=0)
    assert caught.value.rank in stopped
    assert caught.value.remote_traceback is None  # whoever restarts lost ranks restarts this one
    assert "Heard last:\nrank 0 on" in str(caught.value)


class StopsRankOne:
    """Stops the process that loads it, at rank 1."""

    def __reduce__(self):
        return _stop_rank_one, ()


def _stop_rank_one():
    if os.environ["OMPI_COMM_WORLD_RANK"] == "1":
        os.kill(os.getpid(), signal.SIGSTOP)


def test_a_rank_that_is_stopped_before_it_starts_is_named(monkeypatch):
    monkeypatch.setattr(supervisor, "SILENCE_SECONDS", 4.0)

    def work(_):
        from mpi4py import MPI

        # Rank 1 may start some seconds after this one, and must be silent for two when this one gives up.
        with rank.limit(8, "all ranks to meet"):
            MPI.COMM_WORLD.Barrier()

    with pytest.raises(
        TrainingError, match=r"rank 1 on .* is silent: nothing was heard of ranks \[1\]"
    ) as caught:
        local.run(work, (StopsRankOne(),), num_proc=2, verbose=0)
    assert caught.value.remote_traceback is None  # whoever restarts lost ranks restarts this one


def test_a_wait_inside_mpi_ends_with_an_error():
    def work():
        from mpi4py import MPI

        if MPI.COMM_WORLD.rank == 1:
            time.sleep(100)
        with rank.limit(2, "all ranks to meet"):
            MPI.COMM_WORLD.Barrier()

    with pytest.raises(
        TrainingError, match="RankTimeoutError: rank 0 waited 2 s for all ranks to meet"
    ) as caught:
        local.run(work, num_proc=2, verbose=0)
    assert (caught.value.rank, caught.value.waited) == (0, True)
    assert "time.sleep(100)" not in str(caught.value)
    assert "rank 1 on" in str(caught.value).split("Heard last:")[1]


def test_a_slow_receiver_gets_all_messages():
    received = []

    def work():
        for number in range(50):
            rank.send(number)
        return "done"

    def receive(sender, message):
        time.sleep(0.06)
        received.append(message)

    assert local.run(work, num_proc=1, on_message=receive) == ["done"]
    assert received == list(range(50))


def test_a_result_that_the_driver_cannot_read_names_its_rank():
    def work():
        from mpi4py import MPI

        return Unreadable() if MPI.COMM_WORLD.rank == 1 else None

    with pytest.raises(
        TrainingError, match="a result of rank 1 on .* can't be unpickled.* No module named"
    ) as caught:
        local.run(work, num_proc=2, verbose=0)
    assert caught.value.rank == 1


def test_a_huge_message_becomes_a_short_error():
    def work():
        raise ValueError("first line\n" + "x" * 20_000_000)

    with pytest.raises(TrainingError, match="raised ValueError: first line\n") as caught:
        local.run(work, num_proc=1, verbose=0)
    assert len(str(caught.value)) < 200_000
    assert "characters left out" in str(caught.value)


@pytest.mark.skipif(sys.version_info < (3, 11), reason="ExceptionGroup and notes are of Python 3.11")
def test_notes_and_groups_are_summed_up_by_type_and_first_line():
    def work():
        error = builtins.ExceptionGroup("two went wrong", [ValueError("a"), KeyError("b")])
        error.add_note("  * mask=None")
        raise error

    with pytest.raises(TrainingError, match="raised ExceptionGroup: two went wrong"):
        local.run(work, num_proc=1, verbose=0)


def test_ranks_of_one_host_open_no_port():
    def work():
        from mpi4py import MPI

        window = MPI.Win.Allocate(1 << 20, comm=MPI.COMM_WORLD)
        MPI.COMM_WORLD.Barrier()
        ports = [c.laddr for c in psutil.Process().net_connections() if c.status == psutil.CONN_LISTEN]
        window.Free()
        return ports

    assert local.run(work, num_proc=2) == [[], []]


def test_two_launches_in_threads_of_one_driver():
    def work(seconds):
        from mpi4py import MPI

        time.sleep(seconds)
        return MPI.COMM_WORLD.size

    results = {}

    def launch(name, seconds):
        results[name] = local.run(work, (seconds,), num_proc=2)

    hook, main = threading.excepthook, dict(vars(sys.modules["__main__"]))
    threads = [
        threading.Thread(target=launch, args=(name, seconds)) for name, seconds in (("a", 3), ("b", 0))
    ]
    for thread in threads:
        thread.start()
        time.sleep(1)
    for thread in threads:
        thread.join(100)
    assert results == {"a": [2, 2], "b": [2, 2]}
    assert (threading.excepthook, dict(vars(sys.modules["__main__"]))) == (hook, main)
