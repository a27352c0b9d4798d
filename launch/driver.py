"""What every launch does on the driver, whichever way mpirun is started."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from hvdkeras.launch import environment
from hvdkeras.launch.explanation import explain
from hvdkeras.launch.mpirun import MARK
from hvdkeras.launch.options import Options
from hvdkeras.launch.output import Output
from hvdkeras.launch.report import Reports
from hvdkeras.launch.supervisor import Job, Supervisor, Verdict, late_ranks
from hvdkeras.launch.wire import in_parts

log = logging.getLogger(__name__)


def pack(fn: Callable[..., Any], args: tuple, kwargs: Mapping[str, Any] | None) -> list[bytes | memoryview]:
    """Pickles a call for the ranks, see `hvdkeras.launch.wire.in_parts`.

    Raises:
        TypeError: something in it can't be sent to another process.
    """
    if not callable(fn):
        raise TypeError(f"fn must be callable. Received: {fn!r}")
    try:
        return in_parts((fn, tuple(args), dict(kwargs or {})))
    except Exception as error:
        name = getattr(fn, "__qualname__", repr(fn))
        raise TypeError(f"{name} and its arguments can't be sent to other processes: {error}") from error


class Ranks:
    """Ranks that were launched. They run one task after another until they are let go.

    Args:
        make_job: makes the job, given the reports that the ranks must reach, the environment and where the
            output goes.
        task: the first task, which `pack` made.
        num_proc: number of ranks.
        options: all options of the launch. `start_timeout` counts from `begun`.
        driver_host: see `Reports`.
        begun: when the caller's launch began, by `time.monotonic`.
        env: the environment of mpirun.
    """

    def __init__(
        self,
        make_job: Callable[[Reports, dict[str, str], Output], Job],
        task: Sequence[bytes | memoryview],
        num_proc: int,
        options: Options,
        *,
        driver_host: str | None,
        begun: float,
        env: Mapping[str, str],
    ):
        self._start_timeout = options["start_timeout"]
        timeout, mark = options["timeout"], f"{os.getpid()}-{time.monotonic_ns()}"
        self._closed = False
        self._reports = Reports(task, num_proc, driver_host, options["on_message"], timeout)
        try:
            self._output = Output(options["verbose"], self._reports.hosts)
            job = make_job(self._reports, {**env, MARK: mark}, self._output)
            self._supervisor = Supervisor(self._reports, job, self._start_timeout, timeout, begun)
            self._supervisor.start()
        except BaseException:
            self._reports.close()
            raise

    def __enter__(self) -> Ranks:
        return self

    def __exit__(self, *_: object) -> None:
        self.let_go()

    def give(self, task: Sequence[bytes | memoryview]) -> None:
        """Gives the ranks a further task; the results of the one before have come."""
        self._reports.give(task)

    def results(self) -> list[Any]:
        """Waits for the results of the newest task, and returns them by rank.

        Raises:
            TrainingError: a rank failed or fell silent, or mpirun failed. All ranks have ended then.
            TimeoutError: not all ranks started in time.
        """
        try:
            verdict = self._supervisor.watch()
            if verdict is not None:
                self._output.finish()
            self._reports.settle()
        except BaseException:
            self._close()
            raise
        if verdict is None and self._reports.broken is None:
            return self._reports.take_results()
        self._close()
        raise self._error(verdict)

    def are_ready(self) -> bool:
        """Whether, for all that is known, the ranks can take a task: none has ended meanwhile."""
        return not self._closed and self._supervisor.is_running() and self._reports.all_connected()

    def let_go(self) -> None:
        """Lets the ranks end, and ends those that do not."""
        if self._closed:
            return
        try:
            self._reports.give([])
            verdict = self._supervisor.finish()
        finally:
            self._close()
        ended = self._supervisor.ended
        if verdict.kind != "ended" or ended is not None:
            # Nothing is lost then, but it should not pass unseen.
            how, words = verdict.words or ended, self._output.of_mpirun().strip()
            log.warning("all results had come when the job ended badly: %s %s", how, words)

    def _close(self) -> None:
        self._closed = True
        self._supervisor.end()
        self._output.finish()
        self._reports.close()

    def _error(self, verdict: Verdict | None) -> BaseException:
        reports, ended = self._reports, self._supervisor.ended
        if reports.broken is not None:
            return reports.broken
        if verdict.kind == "late":
            return TimeoutError(verdict.words)
        if _is_timeout(ended):
            error = TimeoutError(f"{late_ranks(reports, self._start_timeout)}: {ended}")
        else:
            error = explain(reports, self._output, ended, verdict)
        error.__cause__ = ended
        return error


def _is_timeout(error: BaseException | None) -> bool:
    return type(error).__name__ == "TimeoutException"  # Horovod's, which is not imported for its name


def rank_variables(env: Mapping[str, str] | None) -> dict[str, str]:
    """Lists the variables that every rank gets: those of `environment`, then the caller's."""
    defaults = {**environment.UNSCHEDULED, **environment.PLAIN_DISTUTILS}
    return {**defaults, **environment.variables(), **(env or {})}
