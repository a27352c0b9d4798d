"""A thread that works beside the training of a rank that uses one-sided windows."""

from __future__ import annotations

import os
import sys
import threading
import time
from collections.abc import Callable

from mpi4py import MPI

from hvdkeras.launch.failure import RankTimeoutError
from hvdkeras.mpi.waiting import POLL_INTERVAL

# Seconds for which the thread does not sleep after the last request that it saw: an exchange makes several
# requests, one after the other, and each would wait for the end of the thread's sleep.
AWAKE = 0.002


class ProgressThread:
    """Serves the requests of other hosts to this rank's memory, and ends a job that is stuck.

    MPI serves the requests only while this rank is inside MPI. So the thread calls MPI each millisecond,
    which takes 3.5% of a core, and without a pause as long as requests arrive. On one host no rank sends
    requests.

    Args:
        comm: the center's communicator.
        timeout: seconds that one step of a verb may take.
        serve: does what other ranks ask of this rank, and returns whether they use its memory; None for a
            rank that holds no memory for other hosts.
    """

    def __init__(self, comm: MPI.Comm, timeout: float, serve: Callable[[], bool] | None):
        # The verbs' own waits end first, after `timeout`, with an exception on the rank that waited.
        self._comm, self._timeout, self._serve = comm, 1.2 * timeout, serve
        self._watched: tuple[float, object] | None = None
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._run, name="hvdkeras-window", daemon=True)
        self._thread.start()

    def watch(self, what: object) -> None:
        """Sets what the training waits for from now on; None when it is in no verb."""
        self._watched = None if what is None else (time.perf_counter(), what)

    def stop(self) -> None:
        """Ends the thread."""
        self._stopped.set()
        self._thread.join()

    def _run(self) -> None:
        pause = POLL_INTERVAL if self._serve else min(1.0, self._timeout / 4)
        awake = 0.0
        while not self._stopped.wait(pause):
            now, watched = time.perf_counter(), self._watched
            if self._serve is not None:
                self._comm.Iprobe()
                if self._serve():
                    awake = now + AWAKE
                pause = 0 if now < awake else POLL_INTERVAL
                os.sched_yield()
            if watched is not None and now - watched[0] > self._timeout:
                self._end_job(watched[1])

    def _end_job(self, what: object) -> None:
        """Reports the error and ends all ranks: the training is inside MPI, where no exception reaches it."""
        try:
            raise RankTimeoutError(f"rank {self._comm.rank} waited {self._timeout:g} s for {what}")
        except RankTimeoutError:
            threading.excepthook(threading.ExceptHookArgs((*sys.exc_info(), self._thread)))
            MPI.COMM_WORLD.Abort(1)
