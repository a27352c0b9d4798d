"""The one error that a driver gets when a rank fails, and how it is put together."""

from __future__ import annotations

import signal as signals
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from hvdkeras.launch.output import Death, Output
    from hvdkeras.launch.report import Failure, Reports


class TrainingError(RuntimeError):
    """A rank raised, exited or was killed, and the job has ended.

    Attributes:
        rank: The rank that failed first, or None where the job ended before any rank could be told.
        host: The name of its host, or None where it is not known.
        remote_traceback: Its traceback as text, or None where the process died without raising.
        exitcode: The status that it exited with, or None.
        signal: The number of the signal that killed it, or None.
    """

    def __init__(
        self,
        message: str,
        *,
        rank: int | None = None,
        host: str | None = None,
        remote_traceback: str | None = None,
        exitcode: int | None = None,
        signal: int | None = None,
    ):
        super().__init__(message)
        self.rank = rank
        self.host = host
        self.remote_traceback = remote_traceback
        self.exitcode = exitcode
        self.signal = signal

    def __reduce__(self) -> tuple[Any, ...]:
        return _rebuild, (str(self), dict(vars(self)))


def _rebuild(message: str, attributes: dict[str, Any]) -> TrainingError:
    return TrainingError(message, **attributes)


def explain(reports: Reports, output: Output, ended: BaseException | None) -> TrainingError:
    """Finds out which rank ended a job, and why.

    Args:
        reports: What the ranks told.
        output: What mpirun and the ranks printed.
        ended: What the launcher raised, if it did.
    """
    death = output.death()
    reported = {failure.rank for failure in reports.failures}
    # A rank that is killed makes others raise; one that reports makes mpirun end others with SIGTERM.
    if (
        death is not None
        and death.rank not in reported
        and not (reported and death.signal == signals.SIGTERM)
    ):
        return _died(death, reports.hosts.get(death.rank), output)
    if reports.failures:
        return _raised(reports.failures[0], reports.hosts)
    if reports.lost:
        rank = reports.lost[0]
        message = f"rank {rank} on {reports.hosts[rank]} ended without a word{_last_lines(output, rank)}"
        return TrainingError(message + _mpirun_words(output, ended), rank=rank, host=reports.hosts[rank])
    silent = sorted(set(range(reports.size)) - set(reports.results))
    return TrainingError(
        f"the job ended without a result of ranks {silent}{_last_lines(output, *silent)}"
        + _mpirun_words(output, ended)
    )


def _raised(failure: Failure, hosts: dict[int, str]) -> TrainingError:
    host = hosts[failure.rank]
    summary = failure.traceback.rstrip().rsplit("\n", 1)[-1]
    return TrainingError(
        f"rank {failure.rank} on {host} raised {summary}\n\nThe traceback there:\n{failure.traceback}",
        rank=failure.rank,
        host=host,
        remote_traceback=failure.traceback,
        exitcode=failure.exitcode,
    )


def _died(death: Death, host: str | None, output: Output) -> TrainingError:
    who = f"rank {death.rank}" + (f" on {host}" if host else "")
    if death.signal is not None:
        how = f"was killed by signal {death.signal} ({signal_name(death.signal)})"
        if death.signal == signals.SIGKILL:
            how += "; the kernel does that when memory runs out"
    else:
        how = f"exited with status {death.exitcode} before its function returned"
    return TrainingError(
        f"{who} {how}{_last_lines(output, death.rank)}",
        rank=death.rank,
        host=host,
        exitcode=death.exitcode,
        signal=death.signal,
    )


def signal_name(number: int) -> str:
    """Names a signal: 9 is "SIGKILL"."""
    try:
        return signals.Signals(number).name
    except ValueError:
        return "unknown"


def _last_lines(output: Output, *ranks: int) -> str:
    printed = [f"\n\nRank {rank} printed last:\n{lines}" for rank in ranks if (lines := output.of_rank(rank))]
    return "".join(printed)


def _mpirun_words(output: Output, ended: BaseException | None) -> str:
    words = output.of_mpirun().strip()
    return (f"\n\nThe launcher: {ended}" if ended else "") + (f"\n\nmpirun:\n{words}" if words else "")
