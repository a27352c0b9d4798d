"""What every launch does on the driver, whichever way mpirun is started."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable, Mapping
from typing import Any

import cloudpickle

from hvdkeras.launch import environment
from hvdkeras.launch.explanation import explain
from hvdkeras.launch.mpirun import MARK
from hvdkeras.launch.options import Options
from hvdkeras.launch.output import Output
from hvdkeras.launch.report import Reports
from hvdkeras.launch.supervisor import Job, Supervisor, late_ranks

log = logging.getLogger(__name__)


def pack(fn: Callable[..., Any], args: tuple, kwargs: Mapping[str, Any] | None) -> bytes:
    """Pickles a call for the ranks.

    Raises:
        TypeError: something in it can't be sent to another process.
    """
    if not callable(fn):
        raise TypeError(f"fn must be callable. Received: {fn!r}")
    try:
        return cloudpickle.dumps((fn, tuple(args), dict(kwargs or {})))
    except Exception as error:
        name = getattr(fn, "__qualname__", repr(fn))
        raise TypeError(f"{name} and its arguments can't be sent to other processes: {error}") from error


def launch(
    make_job: Callable[[Reports, dict[str, str], Output], Job],
    task: bytes,
    num_proc: int,
    options: Options,
    *,
    driver_host: str | None,
    begun: float,
    env: Mapping[str, str],
) -> list[Any]:
    """Starts ranks, waits for their end, and returns what came of it.

    Args:
        make_job: makes the job, given the reports that the ranks must reach, the environment and where the
            output goes.
        task: what `pack` made.
        num_proc: number of ranks.
        options: all options of the launch. `start_timeout` counts from `begun`.
        driver_host: see `Reports`.
        begun: when the caller's launch began, by `time.monotonic`.
        env: the environment of mpirun.

    Returns:
        The results, by rank.

    Raises:
        TrainingError: a rank failed or fell silent, or mpirun failed.
        TimeoutError: not all ranks started in time.
    """
    timeout, start_timeout = options["timeout"], options["start_timeout"]
    mark = f"{os.getpid()}-{time.monotonic_ns()}"
    with Reports(task, num_proc, driver_host, options["on_message"], timeout) as reports:
        output = Output(options["verbose"], reports.hosts)
        job = make_job(reports, {**env, MARK: mark}, output)
        supervisor = Supervisor(reports, job, start_timeout, timeout, begun)
        verdict = supervisor.watch()
        output.finish()
        reports.settle()
    if reports.broken is not None:
        raise reports.broken
    if verdict.kind == "late":
        raise TimeoutError(verdict.words)
    if _is_timeout(supervisor.ended):
        late = late_ranks(reports, start_timeout)
        raise TimeoutError(f"{late}: {supervisor.ended}") from supervisor.ended
    if len(reports.results) < reports.size:
        raise explain(reports, output, supervisor.ended, verdict) from supervisor.ended
    if verdict.kind != "ended" or supervisor.ended is not None:
        # Nothing is lost then, but it should not pass unseen.
        how = verdict.words or supervisor.ended
        log.warning("all results had come when the job ended badly: %s %s", how, output.of_mpirun().strip())
    return [reports.results[rank] for rank in range(reports.size)]


def _is_timeout(error: BaseException | None) -> bool:
    return type(error).__name__ == "TimeoutException"  # Horovod's, which is not imported for its name


def rank_variables(env: Mapping[str, str] | None) -> dict[str, str]:
    """Lists the variables that every rank gets: those of `environment`, then the caller's."""
    return {**environment.UNSCHEDULED, **environment.variables(), **(env or {})}
