"""Drivers in odd surroundings, whose launches must work or say what is wrong."""

import os
import signal
import subprocess
import sys
import textwrap
import time

import pytest

from hvdkeras.launch import environment, local

pytestmark = [pytest.mark.mpi, pytest.mark.chaos]

SCRIPT = """
    from hvdkeras.launch import local

    def work(text):
        from mpi4py import MPI

        print(text)
        window = MPI.Win.Allocate(1 << 20, comm=MPI.COMM_WORLD)
        MPI.COMM_WORLD.Barrier()
        window.Free()
        return MPI.COMM_WORLD.size

    print("got", local.run(work, ("gr\\u00fc\\u00df dich",), num_proc=2))
"""


@pytest.fixture
def ran(tmp_path):
    """`ran(shell_line)` runs the script as `$0` in a shell line; returns status and output."""
    script = tmp_path / "script.py"
    script.write_text(textwrap.dedent(SCRIPT), encoding="utf-8")

    def run(line, **variables):
        environ = {**os.environ, **environment.variables(), **variables}
        ended = subprocess.run(
            ["sh", "-c", line, f"{sys.executable} {script}"],
            env={name: value for name, value in environ.items() if value is not None},
            cwd=tmp_path,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            timeout=100,
            check=False,
        )
        return ended.returncode, ended.stdout.decode(errors="replace")

    return run


SURROUNDINGS = {
    "no HOME": ("exec $0", {"HOME": None}),
    "HOME read-only": ("exec $0", {"HOME": "/proc"}),
    "LANG=C": ("exec $0", {"LANG": "C", "LC_ALL": "C", "PYTHONUTF8": None}),
    "256 file descriptors": ("ulimit -n 256 && exec $0", {}),
}


@pytest.mark.parametrize("name", SURROUNDINGS)
def test_a_launch_works(ran, name):
    line, variables = SURROUNDINGS[name]
    status, output = ran(line, **variables)
    assert "got [2, 2]" in output
    assert status == 0


@pytest.mark.slow
@pytest.mark.parametrize("kilobytes", [250_000, 400_000])
def test_too_little_memory_is_an_error_with_a_bound(ran, kilobytes):
    # Too little for the driver's threads, or for MPI on a rank; which it is, if any, depends on the machine.
    status, output = ran(f"ulimit -v {kilobytes} && exec $0")
    assert ("got [2, 2]" in output) if status == 0 else ("Error" in output)


def test_a_user_without_root(ran, tmp_path):
    if os.getuid() != 0:
        pytest.skip("these tests run without root already")
    # The environment of the tests may lie where only root may read.
    for path in (sys.executable, str(tmp_path)):
        reachable = subprocess.run(
            ["setpriv", "--reuid", "65534", "--regid", "65534", "--clear-groups", "test", "-r", path],
            check=False,
        )
        if reachable.returncode:
            pytest.skip(f"NOT TESTED WITHOUT ROOT: {path} can't be read by others")
    line = "exec setpriv --reuid 65534 --regid 65534 --clear-groups $0"
    status, output = ran(line, HOME="/nonexistent", PYTHONDONTWRITEBYTECODE="1")
    assert "got [2, 2]" in output
    assert status == 0


def test_a_driver_that_ignores_ctrl_c_keeps_its_result(tmp_path):
    script = tmp_path / "script.py"
    working = tmp_path / "working"
    script.write_text(
        textwrap.dedent(f"""
            import pathlib, time
            from hvdkeras.launch import local

            def work():
                pathlib.Path({str(working)!r}).touch()
                time.sleep(3)
                return 7

            print("got", local.run(work, num_proc=1))
        """)
    )
    driver = subprocess.Popen(
        [sys.executable, script],
        stdout=subprocess.PIPE,
        start_new_session=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_IGN),
    )
    deadline = time.monotonic() + 60
    while not working.exists():
        assert time.monotonic() < deadline
        time.sleep(0.05)
    os.killpg(driver.pid, signal.SIGINT)
    assert driver.communicate(timeout=60)[0].decode() == "got [7]\n"


@pytest.mark.slow
@pytest.mark.timeout(580)
def test_fifty_launches_in_one_driver_leave_it_as_it_was(nothing_left):
    import threading

    import psutil

    def state():
        here = psutil.Process()
        return here.num_fds(), len(threading.enumerate()), sorted(os.listdir("/dev/shm"))

    local.run(os.getpid, num_proc=1)
    before, memory = state(), psutil.Process().memory_info().rss
    for _ in range(50):
        local.run(os.getpid, num_proc=1, on_message=print)
    time.sleep(1)  # the last threads see that their job is over
    fds, threads, shared = state()
    # What tests before this one have started may have ended.
    assert fds <= before[0]
    assert threads <= before[1]
    assert [name for name in shared if name not in before[2] and "hvdkeras" in name] == []
    assert psutil.Process().memory_info().rss - memory < 30e6
