"""A thread beside the training of a rank that uses one-sided windows."""

from __future__ import annotations

import os
import sys
import threading
import time
from collections.abc import Callable

from mpi4py import MPI

from hvdkeras.mpi.waiting import LOOK

# Seconds for which the thread stays awake after the last request that it saw: an exchange makes several, one
# after the other, and each would wait for the thread's next look.
AWAKE = 0.002


class Attendant:
    """Ends a job that is stuck, and serves what other hosts ask of this rank's memory.

    MPI serves them only while this rank is inside MPI. So the thread looks in each millisecond, for 3.5% of a
    core, and as long as requests come it does not sleep. On one host there is nothing to serve.

    Args:
        comm: The center's communicator.
        timeout: Seconds that one step of a verb may take.
        requested: Tells whether requests come, for a rank that holds memory for other hosts; else None.
    """

    def __init__(self, comm: MPI.Comm, timeout: float, requested: Callable[[], bool] | None):
        # Waits that can give up do so first, after `timeout`.
        self._comm, self._timeout, self._requested = comm, 1.2 * timeout, requested
        self._noted: tuple[float, object] | None = None
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._run, name="hvdkeras-window", daemon=True)
        self._thread.start()

    def note(self, what: object) -> None:
        """Notes what the training waits for from now on; None when it is in no verb."""
        self._noted = None if what is None else (time.perf_counter(), what)

    def stop(self) -> None:
        """Ends the thread."""
        self._stopped.set()
        self._thread.join()

    def _run(self) -> None:
        pause = LOOK if self._requested else min(1.0, self._timeout / 4)
        awake = 0.0
        while not self._stopped.wait(pause):
            now, noted = time.perf_counter(), self._noted
            if self._requested is not None:
                self._comm.Iprobe()
                if self._requested():
                    awake = now + AWAKE
                pause = 0 if now < awake else LOOK
                os.sched_yield()
            if noted is not None and now - noted[0] > self._timeout:
                self._end_job(noted[1])

    def _end_job(self, what: object) -> None:
        """The training is inside MPI, where no exception reaches it: reports the error and ends all ranks."""
        try:
            raise TimeoutError(f"rank {self._comm.rank} waited {self._timeout:g} s for {what}")
        except TimeoutError:
            threading.excepthook(threading.ExceptHookArgs((*sys.exc_info(), self._thread)))
            MPI.COMM_WORLD.Abort(1)
