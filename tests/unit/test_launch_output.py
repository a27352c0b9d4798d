"""What mpirun prints becomes tagged lines and one error; its texts are those of Open MPI 4.1.8."""

import os
import pickle
from types import SimpleNamespace

import pytest

from hvdkeras.launch.explanation import explain
from hvdkeras.launch.failure import Failure, TrainingError
from hvdkeras.launch.output import LONGEST_LINE, Death, Output, find_death

KILLED = """\
--------------------------------------------------------------------------
Primary job  terminated normally, but 1 process returned
a non-zero exit code. Per user-direction, the job has been aborted.
--------------------------------------------------------------------------
--------------------------------------------------------------------------
mpirun noticed that process rank 1 with PID 0 on node vm exited on signal 9 (Killed).
--------------------------------------------------------------------------
"""
EXITED = """\
--------------------------------------------------------------------------
mpirun detected that one or more processes exited with non-zero status, thus causing
the job to be terminated. The first process to do so was:

  Process name: [[18698,1],12]
  Exit code:    3
--------------------------------------------------------------------------
"""
EXITED_WITH_ZERO = """\
--------------------------------------------------------------------------
mpirun has exited due to process rank 1 with PID 0 on
node vm exiting improperly. There are three reasons this could occur:
"""
ABORTED = """\
MPI_ABORT was invoked on rank 1 in communicator MPI_COMM_WORLD
with errorcode 1.
"""


@pytest.mark.parametrize(
    ("text", "death"),
    [
        (KILLED, Death(1, signal=9)),
        (EXITED, Death(12, exitcode=3)),
        (EXITED_WITH_ZERO, Death(1, exitcode=0)),
        (ABORTED, None),
        ("", None),
    ],
)
def test_mpiruns_words_tell_who_died(text, death):
    assert find_death(text) == death


def shown(text, capsys, verbose=1):
    output = Output(verbose, {0: "a", 11: "b"})
    for start in range(0, len(text), 7):  # pieces end anywhere
        output.write(text[start : start + 7])
    output.finish()
    return output, capsys.readouterr().err.splitlines()


def test_lines_are_tagged_by_rank_and_host(capsys):
    text = "[1,0]<stdout>:first\n[1,11]<stderr>:  second\n[1,0]<stdout>:\n[1,0]<stdout>:no line break"
    _, lines = shown(text, capsys)
    assert lines == [
        "[rank 0, a] first",
        "[rank 11, b]   second",
        "[rank 0, a] ",
        "[rank 0, a] no line break",
    ]


def test_a_rank_whose_host_is_not_known_yet_has_its_number(capsys):
    _, lines = shown("[1,3]<stderr>:no module\n", capsys)
    assert lines == ["[rank 3] no module"]


def test_pieces_of_two_ranks_in_one_line_come_apart(capsys):
    text = "[1,1]<stdout>:hello[1,0]<stdout>:good[1,0]<stdout>: day\n[1,1]<stdout>: you\n"
    _, lines = shown(text, capsys)
    assert lines == ["[rank 0, a] good day", "[rank 1] hello you"]


def test_a_progress_bar_is_one_line(capsys):
    _, lines = shown("[1,0]<stdout>: 1/3\r[1,0]<stdout>: 2/3\r[1,0]<stdout>: 3/3 done\n", capsys)
    assert lines == ["[rank 0, a]  3/3 done"]


def test_start_up_noise_is_dropped(capsys):
    text = "[1,0]<stderr>:E0000 Unable to register cuDNN factory: twice\n[1,0]<stderr>:useful\n"
    _, lines = shown(text, capsys)
    assert lines == ["[rank 0, a] useful"]


@pytest.mark.parametrize(("verbose", "count"), [(0, 0), (1, 1), (2, 2)])
def test_how_much_is_shown_but_all_is_kept(verbose, count, capsys):
    output, lines = shown("[1,0]<stdout>:of a rank\nof mpirun\n", capsys, verbose)
    assert len(lines) == count
    assert (output.of_rank(0), output.of_mpirun()) == ("of a rank", "of mpirun")


def ended(said="", failures=(), lost=(), results=(), size=2):
    output = Output(0, {})
    output.write(said)
    output.finish()
    hosts = {rank: f"host{rank}" for rank in range(size)}
    reports = SimpleNamespace(
        failures=list(failures), lost=list(lost), hosts=hosts, size=size, results=dict.fromkeys(results)
    )
    return explain(reports, output, RuntimeError("mpirun failed with exit code 137"))


def test_the_killed_rank_is_the_cause_not_the_one_that_raised_because_of_it():
    error = ended(KILLED, failures=[Failure(0, "MPI_ERR_OTHER\n", None, "MPI_ERR_OTHER")], lost=[1])
    assert (error.rank, error.host, error.signal, error.remote_traceback) == (1, "host1", 9, None)
    assert "rank 1 on host1 was killed by signal 9 (SIGKILL)" in str(error)


def test_the_first_that_raised_is_the_cause():
    failures = [
        Failure(1, "Traceback\nValueError: bad\n", None, "ValueError: bad"),
        Failure(0, "Traceback\nKeyError: 1\n", None, "KeyError: 1"),
    ]
    error = ended(ABORTED, failures=failures, lost=[0])
    assert (error.rank, error.signal, error.exitcode) == (1, None, None)
    assert str(error).startswith("rank 1 on host1 raised ValueError: bad\n")
    assert error.remote_traceback == "Traceback\nValueError: bad\n"


def test_the_last_lines_of_a_rank_that_died_are_told():
    error = ended("[1,1]<stderr>:F0001 Check failed: shape\n" + KILLED)
    assert "Rank 1 printed last:\nF0001 Check failed: shape" in str(error)


def test_a_lost_rank_is_named_where_mpirun_says_nothing():
    error = ended("ORTE has lost communication with a remote daemon.\n", lost=[1])
    assert (error.rank, error.host) == (1, "host1")
    assert "ORTE has lost communication" in str(error)


def test_a_job_that_ends_before_its_ranks_start_tells_mpiruns_words():
    error = ended("There are not enough slots available\n", results=[0])
    assert error.rank is None
    assert "without a result of ranks [1]" in str(error)
    assert "not enough slots" in str(error)
    assert "exit code 137" in str(error)


def test_the_error_survives_pickling():
    error = pickle.loads(pickle.dumps(ended(KILLED)))
    assert isinstance(error, TrainingError)
    assert (error.rank, error.host, error.signal, str(error)) == (1, "host1", 9, str(ended(KILLED)))


def test_what_is_not_utf8_is_replaced_and_read_to_its_end(capsys):
    reader, writer = os.pipe()
    with os.fdopen(writer, "wb") as stream:
        stream.write(b"[1,0]<stdout>:gr\xc3\xbc\xdf\xff\n[1,0]<stdout>:after \xe2")
    output = Output(1, {})
    output.read(os.fdopen(reader, "rb", buffering=0))
    output.finish()
    bad = "\N{REPLACEMENT CHARACTER}"
    assert capsys.readouterr().err.splitlines() == [f"[rank 0] gr\u00fc{bad}{bad}", f"[rank 0] after {bad}"]


def test_a_bar_without_line_breaks_keeps_what_it_shows_last():
    # Were each piece read together with all before it, this would take minutes.
    output = Output(0, {})
    for step in range(100_000):
        output.write(f"[1,0]<stdout>: {step:6d} {'#' * 90}\r")
    output.write("[1,0]<stdout>: done\r")
    output.finish()
    assert output.of_rank(0) == " done"


def test_a_line_without_an_end_comes_in_pieces():
    output = Output(0, {})
    for _ in range(50):
        output.write("[1,0]<stdout>:" + "x" * 10_000)
    output.finish()
    lines = output.of_rank(0, lines=100).split("\n")
    assert sum(map(len, lines)) == 500_000
    assert max(map(len, lines)) <= LONGEST_LINE + 10_000
