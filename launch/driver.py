"""What every launch does on the driver, whichever way mpirun is started."""

from __future__ import annotations

import logging
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from itertools import pairwise
from types import FrameType
from typing import Any

import cloudpickle
import psutil

from hvdkeras.launch import environment
from hvdkeras.launch.failure import explain
from hvdkeras.launch.output import Output
from hvdkeras.launch.report import Reports

log = logging.getLogger(__name__)

# In mpirun's environment, so that a launch can tell its own mpirun from that of another.
MARK = "HVDKERAS_LAUNCH"
# Horovod gives both already; mpirun refuses a second one, even with the same value.
TAKEN_MPI_PARAMETERS = ("pml", "btl")


def check_arguments(
    num_proc: int, start_timeout: float, env: Mapping[str, str] | None, mpi_args: str | None
) -> None:
    """Refuses what `mpirun` would refuse later and less clearly.

    Raises:
        TypeError: `env` is not a mapping of strings, or `mpi_args` is not a string.
        ValueError: A number is not positive, or `mpi_args` sets what Horovod sets.
    """
    if isinstance(num_proc, bool) or not isinstance(num_proc, int) or num_proc < 1:
        raise ValueError(f"num_proc must be a positive integer. Received: {num_proc!r}")
    if isinstance(start_timeout, bool) or not isinstance(start_timeout, int | float) or start_timeout <= 0:
        raise ValueError(f"start_timeout must be a positive number of seconds. Received: {start_timeout!r}")
    for name, value in (env or {}).items():
        if not isinstance(name, str) or not isinstance(value, str):
            raise TypeError(f"env must map strings to strings. Received: {name!r}: {value!r}")
    if mpi_args is not None and not isinstance(mpi_args, str):
        raise TypeError(f"mpi_args must be one string, as on mpirun's command line. Received: {mpi_args!r}")
    words = (mpi_args or "").split()
    for flag, name in pairwise(words):
        if flag in ("-mca", "--mca") and name in TAKEN_MPI_PARAMETERS:
            raise ValueError(
                f"mpi_args must not set the parameter {name}: Horovod does. Received: {mpi_args!r}"
            )


def pack(fn: Callable[..., Any], args: tuple, kwargs: Mapping[str, Any] | None) -> bytes:
    """Pickles a call for the ranks.

    Raises:
        TypeError: Something in it can't be sent to another process.
    """
    if not callable(fn):
        raise TypeError(f"fn must be callable. Received: {fn!r}")
    try:
        return cloudpickle.dumps((fn, tuple(args), dict(kwargs or {})))
    except Exception as error:
        name = getattr(fn, "__qualname__", repr(fn))
        raise TypeError(f"{name} and its arguments can't be sent to other processes: {error}") from error


def launch(
    start: Callable[[Reports, dict[str, str], Output], None],
    task: bytes,
    num_proc: int,
    *,
    driver_host: str | None,
    start_timeout: float,
    env: Mapping[str, str],
    verbose: int,
    on_message: Callable[[int, Any], None] | None,
) -> list[Any]:
    """Starts ranks, waits for their end, and tells what came of it.

    Args:
        start: Runs mpirun to its end, given the reports that the ranks must reach, the environment and where
            the output goes; raises if mpirun fails.
        task: What `pack` made.
        num_proc: Number of ranks.
        driver_host: See `Reports`.
        start_timeout: Seconds until all ranks must have started.
        env: The environment of mpirun.
        verbose: See `Output`.
        on_message: See `Reports`.

    Returns:
        The results, by rank.

    Raises:
        TrainingError: A rank failed, or mpirun did.
        TimeoutError: Not all ranks started in time.
    """
    mark = f"{os.getpid()}-{time.monotonic_ns()}"
    late, interrupted, ended = threading.Event(), threading.Event(), None
    with Reports(task, num_proc, driver_host, on_message) as reports:
        output = Output(verbose, reports.hosts)

        def watch() -> None:
            if not reports.wait_started(start_timeout):
                late.set()
                _end_mpirun(mark)

        threading.Thread(target=watch, name="watch-start", daemon=True).start()
        try:
            with _script_hidden(), _interrupts(interrupted):
                start(reports, {**env, MARK: mark}, output)
        except Exception as error:
            ended = error
        output.finish()
        reports.settle()
    if interrupted.is_set():
        raise KeyboardInterrupt
    if reports.broken is not None:
        raise reports.broken
    if late.is_set() or _is_timeout(ended):
        raise TimeoutError(_late(reports, start_timeout, ended)) from ended
    return _results(reports, output, ended)


def _results(reports: Reports, output: Output, ended: BaseException | None) -> list[Any]:
    if len(reports.results) < reports.size:
        raise explain(reports, output, ended) from ended
    if ended is not None:
        # Nothing is lost then, but a crash at exit should not pass unseen.
        words = output.of_mpirun()
        log.warning("every rank had sent its result when the job ended badly: %s\n%s", ended, words)
    return [reports.results[rank] for rank in range(reports.size)]


def _late(reports: Reports, start_timeout: float, ended: BaseException | None) -> str:
    silent = sorted(set(range(reports.size)) - set(reports.hosts))
    waiting = sorted(set(reports.hosts) - reports.started)
    states = [f"ranks {silent} did not connect"] if silent else []
    states += [f"ranks {waiting} connected and wait for MPI to start"] if waiting else []
    reason = f": {ended}" if _is_timeout(ended) else ""
    return f"waited start_timeout={start_timeout:g} s for {reports.size} ranks: {'; '.join(states)}{reason}"


def _is_timeout(error: BaseException | None) -> bool:
    return type(error).__name__ == "TimeoutException"  # Horovod's, which is not imported for its name


def _end_mpirun(mark: str) -> None:
    for process in psutil.Process().children(recursive=True):
        with suppress(psutil.NoSuchProcess, psutil.AccessDenied):
            if process.cmdline()[:1] == ["mpirun"] and process.environ().get(MARK) == mark:
                process.terminate()


@contextmanager
def _interrupts(interrupted: threading.Event) -> Iterator[None]:
    """Notes that Ctrl-C was pressed: Horovod ends mpirun on it, and then tells only that mpirun failed."""
    if threading.current_thread() is not threading.main_thread():
        yield  # signals are the main thread's
        return
    before = signal.getsignal(signal.SIGINT)

    def note(number: int, frame: FrameType | None) -> None:
        interrupted.set()
        if callable(before):
            before(number, frame)

    signal.signal(signal.SIGINT, note)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


@contextmanager
def _script_hidden() -> Iterator[None]:
    """Keeps Horovod from running the caller's script a second time.

    Horovod starts mpirun from a process that multiprocessing spawns, and such a process first imports the
    main script; one without `if __name__ == "__main__"` would start over in it, Spark session and all.
    """
    main = sys.modules["__main__"]
    hidden = {name: main.__dict__.pop(name) for name in ("__file__", "__spec__") if name in main.__dict__}
    main.__spec__ = None
    try:
        yield
    finally:
        main.__dict__.update(hidden)


def rank_variables(env: Mapping[str, str] | None) -> dict[str, str]:
    """Lists the variables that every rank gets: those of `environment`, then the caller's."""
    return {**environment.UNSCHEDULED, **environment.variables(), **(env or {})}
