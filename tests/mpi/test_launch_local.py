"""Launches on this machine, with real ranks: what comes back, and what is left when something fails."""

import ctypes
import os
import signal
import subprocess
import sys
import textwrap
import time

import psutil
import pytest

from hvdkeras.launch import environment, gpu, local, rank
from hvdkeras.launch.driver import MARK
from hvdkeras.launch.failure import TrainingError

pytestmark = pytest.mark.mpi


def run_script(folder, text, *command):
    """Writes a script without any main guard and runs it to its end."""
    script = folder / "script.py"
    script.write_text(textwrap.dedent(text))
    return subprocess.run(
        [*(command or [sys.executable]), str(script)],
        env={**os.environ, **environment.variables()},
        capture_output=True,
        text=True,
        timeout=100,
    )


def test_results_messages_and_logs(no_process_left, capsys):
    def work(word, *, times):
        from mpi4py import MPI

        me = MPI.COMM_WORLD.rank
        rank.send({"from": me})
        print(f"{word} {os.environ['GREETED']}")
        print("to stderr", file=sys.stderr)
        return word * times, MPI.COMM_WORLD.allreduce(me), environment.job().local_size

    messages = []
    results = local.run(
        work,
        ("hello",),
        {"times": 2},
        num_proc=2,
        env={"GREETED": "world"},
        on_message=lambda sender, message: messages.append((sender, message)),
    )
    assert results == [("hellohello", 1, 2)] * 2
    assert sorted(messages, key=str) == [(0, {"from": 0}), (1, {"from": 1})]
    printed = capsys.readouterr()
    assert printed.out == ""
    lines, host = sorted(printed.err.splitlines()), os.uname().nodename
    assert lines == [f"[rank {i}, {host}] {text}" for i in (0, 1) for text in ("hello world", "to stderr")]


def raise_error():
    raise ValueError("the layer is bad")


def segfault():
    ctypes.string_at(0)


FAILURES = {
    "raise": (raise_error, {"signal": None, "exitcode": None}, "ValueError: the layer is bad"),
    "sys.exit": (lambda: sys.exit(4), {"signal": None, "exitcode": 4}, "SystemExit: 4"),
    "sys.exit(0)": (lambda: sys.exit(), {"signal": None, "exitcode": 0}, "SystemExit"),
    "os._exit(0)": (lambda: os._exit(0), {"signal": None, "exitcode": 0}, None),
    "os._exit(3)": (lambda: os._exit(3), {"signal": None, "exitcode": 3}, None),
    "SIGKILL": (lambda: os.kill(os.getpid(), signal.SIGKILL), {"signal": 9, "exitcode": None}, None),
    "SIGSEGV": (segfault, {"signal": 11, "exitcode": None}, None),
}


@pytest.mark.parametrize("name", FAILURES)
def test_one_error_tells_who_failed_and_how(name, no_process_left):
    fail, ending, traceback_end = FAILURES[name]
    moments = []

    def work():
        from mpi4py import MPI

        if MPI.COMM_WORLD.rank == 1:
            rank.send(None)
            fail()
        MPI.COMM_WORLD.Barrier()

    with pytest.raises(TrainingError) as caught:
        local.run(work, num_proc=2, verbose=0, on_message=lambda *_: moments.append(time.monotonic()))
    assert time.monotonic() - moments[0] < 15
    error = caught.value
    assert error.rank == 1
    assert error.host == os.uname().nodename
    assert {"signal": error.signal, "exitcode": error.exitcode} == ending
    if traceback_end is None:
        assert error.remote_traceback is None
    else:
        assert error.remote_traceback.rstrip().endswith(traceback_end)
    assert f"rank 1 on {error.host}" in str(error)


def test_a_result_that_cannot_travel_is_an_error_of_its_rank(no_process_left):
    def work():
        return (step for step in range(3))

    with pytest.raises(TrainingError, match="generator") as caught:
        local.run(work, num_proc=1, verbose=0)
    assert caught.value.rank == 0


def test_an_error_in_the_receiver_of_messages_ends_the_job(no_process_left):
    def work():
        rank.send("hello")
        time.sleep(60)

    def receive(sender, message):
        raise KeyError(message)

    with pytest.raises(KeyError, match="hello"):
        local.run(work, num_proc=2, on_message=receive)


def test_ranks_that_do_not_start_in_time(no_process_left, tmp_path):
    (tmp_path / "sitecustomize.py").write_text(
        "import os, time\nif os.environ.get('OMPI_COMM_WORLD_RANK') == '1': time.sleep(60)\n"
    )
    expected = r"3 s for 2 ranks: ranks \[1\] did not connect; ranks \[0\] connected and wait for MPI"
    with pytest.raises(TimeoutError, match=expected):
        local.run(os.getpid, num_proc=2, start_timeout=3, env={"PYTHONPATH": str(tmp_path)})


def test_more_ranks_than_gpus_share_them(no_process_left, capsys):
    def work():
        here = environment.job()
        return gpu.pin(here.local_rank, here.local_size), os.environ["CUDA_VISIBLE_DEVICES"]

    assert local.run(work, num_proc=3, env={"CUDA_VISIBLE_DEVICES": "3,5"}) == [
        ("3", "3"),
        ("5", "5"),
        ("3", "3"),
    ]
    assert "3 ranks of this host share 2 GPUs: 3, 5" in capsys.readouterr().err


def test_threads_of_ranks():
    def work():
        gpu.limit_threads(environment.job().local_size)
        return os.environ["TF_NUM_INTRAOP_THREADS"], os.environ["OMP_NUM_THREADS"]

    expected = max(1, gpu.cores() // 2)
    assert local.run(work, num_proc=2) == [(str(expected),) * 2] * 2


ENDLESS = """
    import os, time
    from hvdkeras.launch import local

    print("script starts", flush=True)

    def work():
        print("rank works", flush=True)
        time.sleep(100)

    local.run(work, num_proc=2)
"""


@pytest.mark.parametrize("way", ["to the driver", "to its group", "SIGKILL"])
def test_nothing_outlives_the_driver(way, tmp_path):
    script = tmp_path / "script.py"
    script.write_text(textwrap.dedent(ENDLESS))
    driver = subprocess.Popen(
        [sys.executable, script],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
        # Where the tests run in a shell's background, SIGINT is ignored, and children inherit that.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    read = []
    while "rank works" not in "".join(read[-1:]):
        read.append(driver.stdout.readline())
        assert read[-1], "".join(read)
    if way == "to the driver":
        driver.send_signal(signal.SIGINT)
    elif way == "to its group":
        os.killpg(driver.pid, signal.SIGINT)
    else:
        driver.kill()
    rest = driver.communicate(timeout=30)[0]
    assert driver.returncode == (-signal.SIGKILL if way == "SIGKILL" else -signal.SIGINT)
    if way != "SIGKILL":
        assert rest.rstrip().endswith("KeyboardInterrupt")
    assert "".join(read).count("script starts") == 1

    deadline = time.monotonic() + 15
    while left := marked(driver.pid):
        assert time.monotonic() < deadline, left
        time.sleep(0.1)


def marked(driver_pid):
    found = []
    for process in psutil.process_iter():
        try:
            if process.environ().get(MARK, "").startswith(f"{driver_pid}-"):
                found.append(process.cmdline())
        except (psutil.NoSuchProcess, psutil.AccessDenied):
            continue
    return found


IN_JOB = """
    import logging, sys
    from hvdkeras.launch import environment, local, rank

    def work(factor):
        from mpi4py import MPI

        if FAIL == "inside" and MPI.COMM_WORLD.rank == 1:
            raise ValueError("bad inside")
        MPI.COMM_WORLD.Barrier()
        rank.send("here")
        logging.getLogger("hvdkeras").warning("listen")
        return MPI.COMM_WORLD.rank * factor

    sent = []
    got = local.run(work, (10,), on_message=lambda *message: sent.append(message))
    root = local.once(lambda: environment.job().rank)
    rank.send("to nobody")
    sys.stdout.write(f"got {got} and {root} and {sent}\\n")
    sys.stdout.flush()
    if FAIL == "outside" and environment.job().rank == 1:
        raise ValueError("bad outside")
    if FAIL == "exit" and environment.job().rank == 1:
        sys.exit(5)
    from mpi4py import MPI

    MPI.COMM_WORLD.Barrier()
"""


def test_inside_horovodrun_nothing_is_launched(tmp_path):
    ran = run_script(
        tmp_path, "FAIL = None" + textwrap.dedent(IN_JOB), "horovodrun", "-np", "2", sys.executable
    )
    assert ran.returncode == 0, ran.stderr
    for me in (0, 1):
        assert f"got [0, 10] and 0 and [({me}, 'here')]" in ran.stdout
        assert f"[rank {me}, {os.uname().nodename}] WARNING hvdkeras: listen" in ran.stderr


@pytest.mark.parametrize("fail", ["inside", "outside", "exit"])
def test_a_failing_rank_ends_the_job_it_runs_in(fail, tmp_path):
    command = [sys.executable, "-m", "hvdkeras.launch.cli", "run", "-np", "2"]
    if fail != "exit":
        command = ["mpirun", "--allow-run-as-root", "--oversubscribe", "-np", "2", sys.executable]
    ran = run_script(tmp_path, f"FAIL = {fail!r}" + textwrap.dedent(IN_JOB), *command)
    assert ran.returncode == (5 if fail == "exit" else 1)
    if fail != "exit":
        assert f"ValueError: bad {fail}" in ran.stderr


@pytest.mark.slow
def test_doctor_finds_nothing_wrong_here():
    environ = {**os.environ, "PYSPARK_PYTHON": sys.executable}
    ran = subprocess.run(
        [sys.executable, "-m", "hvdkeras.launch.cli", "doctor"],
        env=environ,
        capture_output=True,
        text=True,
        timeout=200,
    )
    assert ran.returncode == 0, ran.stdout + ran.stderr
    assert "two ranks" in ran.stdout
    assert "WRONG" not in ran.stdout
