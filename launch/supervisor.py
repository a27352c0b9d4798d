"""Decides that a job is over, and sees to it that it ends.

The driver hears of its ranks by their connections (heartbeats, results, failures, the end of a connection),
of mpirun by its end, and on Spark of failed tasks. The first of these that ends the job starts a grace
period, in which mpirun usually ends by itself and says why; after it the job is ended. Ranks whose results
have come are idle: no bound applies to them until they get another task.
"""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass, replace
from typing import Protocol

from hvdkeras.launch.report import Reports

# The others are ended by MPI's abort, and mpirun tells who died.
GRACE_SECONDS = 5.0
# Ranks that have sent their results leave MPI, and run what was registered for their exit.
EXIT_SECONDS = 20.0
# A thread that imports or loads large libraries may keep heartbeats back for seconds.
SILENCE_SECONDS = 10.0
LOOK_SECONDS = 0.5
# When this process itself was stopped, heartbeats wait to be read.
STOPPED_SECONDS = 5.0


class Job(Protocol):
    """A way to run mpirun."""

    def run(self) -> None:
        """Runs mpirun to its end; raises if that is not a good one."""

    def trouble(self) -> str | None:
        """Says what else is known to have ended the job: a lost executor."""

    def end(self) -> None:
        """Ends mpirun and the ranks for certain; `run` returns then."""


@dataclass
class Verdict:
    """Why a job is over.

    Attributes:
        kind: `"ended"` by itself, `"late"`, `"failed"`, `"silent"`, `"trouble"`, `"finished"` or `"broken"`.
        words: what was waited for, and since when.
        silent: the ranks of which nothing was heard.
        said: what was heard of each rank last, as text.
    """

    kind: str
    words: str = ""
    silent: tuple[int, ...] = ()
    said: str = ""


class Supervisor:
    """Watches one job.

    Args:
        reports: what the ranks say.
        job: the job, which is not running yet.
        start_timeout: seconds from `begun` until all ranks must have started.
        timeout: seconds that a rank may be silent after that.
        begun: when the launch began, by `time.monotonic`.
    """

    def __init__(self, reports: Reports, job: Job, start_timeout: float, timeout: float, begun: float):
        self._reports, self._job = reports, job
        self._start_timeout, self._begun = start_timeout, begun
        self._silence = max(timeout, SILENCE_SECONDS)
        self._over = self._ended = False
        self._trouble: tuple[float, str] | None = None
        self._excused = begun
        self._runner = threading.Thread(target=self._run, name="run-mpirun", daemon=True)
        self.ended: BaseException | None = None

    def start(self) -> None:
        """Starts the job."""
        self._runner.start()

    def watch(self) -> Verdict | None:
        """Waits for the results of a task.

        Returns:
            None once all have come. Otherwise why the job is over: it has ended then, or is not waited for
            any more.
        """
        # The time since the task before does not count.
        self._excused = time.monotonic()
        try:
            verdict = self._wait()
            said = last_said(self._reports)
        except BaseException:
            self.end()
            raise
        if verdict is None:
            return None
        self.end()
        return replace(self._silent_at_failure() or verdict, said=said)

    def is_running(self) -> bool:
        """Whether the job runs, for all that is known."""
        return not self._over and self._job.trouble() is None

    def finish(self) -> Verdict:
        """Waits for the end of ranks that have no more to do."""
        deadline = time.monotonic() + EXIT_SECONDS
        with self._reports.changed:
            while not self._over:
                if time.monotonic() > deadline:
                    return Verdict("finished", f"ranks still ran {EXIT_SECONDS:g} s after the last result")
                self._reports.changed.wait(LOOK_SECONDS)
        return Verdict("ended")

    def end(self) -> None:
        """Ends the job for certain. A second call does nothing."""
        if not self._ended:
            self._ended = True
            self._job.end()
            self._runner.join(GRACE_SECONDS)

    def _run(self) -> None:
        try:
            self._job.run()
        except BaseException as error:
            self.ended = error
        with self._reports.changed:
            self._over = True
            self._reports.changed.notify_all()

    def _wait(self) -> Verdict | None:
        looked = time.monotonic()
        while True:
            if self._trouble is None and (words := self._job.trouble()):
                self._trouble = time.monotonic(), words
            with self._reports.changed:
                now = time.monotonic()
                if now - looked > STOPPED_SECONDS:
                    self._excused = now
                looked = now
                if self._reports.broken is None and len(self._reports.results) == self._reports.size:
                    return None
                if verdict := self._verdict(now):
                    return verdict
                self._reports.changed.wait(LOOK_SECONDS)

    def _verdict(self, now: float) -> Verdict | None:
        reports = self._reports
        if self._over:
            return Verdict("ended")
        if reports.broken is not None:
            return Verdict("broken")
        moments = [failure.moment for failure in reports.failures] + list(reports.lost.values())
        if moments and now - min(moments) > GRACE_SECONDS:
            return Verdict("failed")
        if self._trouble and now - self._trouble[0] > GRACE_SECONDS:
            return Verdict("trouble", self._trouble[1])
        if not reports.all_started():
            late = not moments and now - self._begun > self._start_timeout
            return Verdict("late", late_ranks(reports, self._start_timeout)) if late else None
        return self._silent(now)

    def _silent(self, now: float) -> Verdict | None:
        silence = {
            rank: now - max(word.moment, self._excused)
            for rank, word in self._reports.last_words().items()
            if rank not in self._reports.results
        }
        if max(silence.values(), default=0.0) <= self._silence:
            return None
        # Ranks that fell silent together, or nearly, are named together.
        near = [rank for rank in silence if silence[rank] > self._silence / 2]
        silent = sorted(near, key=silence.get, reverse=True)
        return Verdict(
            "silent",
            f"waited timeout={self._silence:g} s for a sign of life of ranks {sorted(silent)}",
            tuple(silent),
        )

    def _silent_at_failure(self) -> Verdict | None:
        """Looks for ranks that were silent when another gave up waiting: they are the cause."""
        first = self._reports.failures[0] if self._reports.failures else None
        if first is None or not first.waited:
            return None
        # Also of ranks that have not started: others wait for them in their first call of MPI.
        silence = {rank: first.moment - max(moment, self._excused) for rank, moment in first.heard.items()}
        silent = sorted(rank for rank in silence if silence[rank] > SILENCE_SECONDS / 2)
        if not silent:
            return None
        return Verdict(
            "silent",
            f"nothing was heard of ranks {silent} for {max(silence.values()):.0f} s when rank {first.rank} "
            f"raised {first.summary}",
            tuple(silent),
        )


def late_ranks(reports: Reports, start_timeout: float) -> str:
    """Says which ranks have not started in time, and how far they are."""
    connected = set(reports.hosts)
    states = {
        "did not connect": set(range(reports.size)) - connected,
        "connected and wait for MPI to start": connected - reports.inside - reports.started,
        "are inside MPI and load their function": reports.inside - reports.started,
    }
    found = [f"ranks {sorted(ranks)} {state}" for state, ranks in states.items() if ranks]
    return f"waited start_timeout={start_timeout:g} s for {reports.size} ranks: {'; '.join(found)}"


def last_said(reports: Reports) -> str:
    """Lists what was heard last of each rank that has started, and where its main thread was."""
    now, lines = time.monotonic(), []
    for rank, word in sorted(reports.last_words().items()):
        place = f", {now - word.since:.0f} s in {word.place}" if word.place else ""
        ended = " and sent its result" if rank in reports.results else ""
        lines.append(
            f"rank {rank} on {reports.hosts[rank]}: heard {now - word.moment:.0f} s ago{place}{ended}"
        )
    return "\n".join(lines)
