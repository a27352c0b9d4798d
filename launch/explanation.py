"""Which rank ended a job, and why: the one error of a failed launch."""

from __future__ import annotations

import signal as signals

from hvdkeras.launch.failure import Failure, TrainingError
from hvdkeras.launch.output import Death, Output
from hvdkeras.launch.report import Reports
from hvdkeras.launch.supervisor import Verdict


def explain(
    reports: Reports,
    output: Output,
    ended: BaseException | None,
    verdict: Verdict | None = None,
) -> TrainingError:
    """Finds out which rank ended a job, and why.

    Args:
        reports: what the ranks told.
        output: what mpirun and the ranks printed.
        ended: what the launcher raised, if it did.
        verdict: why the supervisor took the job for over; by default it ended by itself.
    """
    death = output.death()
    reported = {failure.rank for failure in reports.failures}
    killed = (signals.SIGTERM, signals.SIGKILL) if verdict and verdict.kind != "ended" else (signals.SIGTERM,)
    # A rank that is killed makes others raise; one that reports makes mpirun end others, as the driver does.
    ended_by_others = (reported or len(killed) > 1) and death is not None and death.signal in killed
    silent = bool(verdict and verdict.silent)
    if death is not None and death.rank not in reported and not ended_by_others and not silent:
        return _died(death, reports.hosts.get(death.rank), output)
    if silent:
        return _silent(verdict, reports.hosts)
    if reports.failures:
        return _raised(reports.failures[0], reports.hosts, verdict.said if verdict else "")
    if reports.lost:
        rank = next(iter(reports.lost))
        message = f"rank {rank} on {reports.hosts[rank]} ended without a word{_last_lines(output, rank)}"
        trouble = f"\n\n{verdict.words}" if verdict and verdict.words else ""
        return TrainingError(
            message + trouble + _mpirun_words(output, ended), rank=rank, host=reports.hosts[rank]
        )
    missing = sorted(set(range(reports.size)) - set(reports.results))
    return TrainingError(
        f"the job ended without a result of ranks {missing}"
        + (f": {verdict.words}" if verdict and verdict.words else "")
        + _last_lines(output, *missing)
        + _mpirun_words(output, ended)
    )


def _silent(verdict: Verdict, hosts: dict[int, str]) -> TrainingError:
    rank = verdict.silent[0]
    return TrainingError(
        f"rank {rank} on {hosts[rank]} is silent: {verdict.words}\n\nHeard last:\n{verdict.said}",
        rank=rank,
        host=hosts[rank],
    )


def _raised(failure: Failure, hosts: dict[int, str], said: str) -> TrainingError:
    host = hosts[failure.rank]
    # Who waited in vain may not be who is stuck.
    heard = f"\n\nHeard last:\n{said}" if said and failure.waited else ""
    return TrainingError(
        f"rank {failure.rank} on {host} raised {failure.summary}\n\n"
        f"The traceback there:\n{failure.traceback}{heard}",
        rank=failure.rank,
        host=host,
        remote_traceback=failure.traceback,
        exitcode=failure.exitcode,
        waited=failure.waited,
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
