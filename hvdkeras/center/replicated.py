"""The center variable that every rank holds, kept equal by one nonblocking reduction an exchange."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence

import numpy as np
from mpi4py import MPI

from hvdkeras.center.vectors import blocks, check_operands, checked, destination, read_only, vector
from hvdkeras.mpi.waiting import agree_on_length, duplicate, look, wait


class ReplicatedCenter:
    """A center that every rank holds; what the ranks push is summed by one nonblocking Iallreduce.

    `push` and `exchange` start the reduction and return; the next verb completes it. So the communication
    runs beside the computation in between, and the numbers are those of a reduction that is waited for at
    once, because only verbs look at the center. Every rank must call the same verbs in the same order. All
    ranks hold the same center, bit by bit. A communicator of one rank sends no messages.

    Args:
        comm: Communicator of the ranks that share the center.
        initial: Vector (n,) of float32 that the center starts from; rank 0's counts.
        timeout: Seconds that a wait for the other ranks may take. A window of computation of the slowest rank
            must fit in; the default of ten minutes is far above that and far below a night.

    Attributes:
        size: Number of ranks that share the center.

    Raises:
        TimeoutError: from any verb, when the other ranks did not come within `timeout` seconds.
    """

    def __init__(self, comm: MPI.Comm, initial: np.ndarray, timeout: float = 600.0):
        self._center = vector("initial", initial).copy()
        self._timeout = timeout
        self._update = np.empty_like(self._center)
        self._request: MPI.Request | None = None
        self._pending = False
        self._lock = threading.Lock()
        self._started = threading.Event()
        self._freed = False
        self._exchanges, self._verbs, self._waiting = 0, 0.0, 0.0
        self.size = comm.size
        self._alone = comm.size == 1
        if self._alone:
            return
        self._comm = duplicate(comm, timeout)
        agree_on_length(self._comm, self._center.size, timeout)
        wait(self._comm.Ibcast(self._center).Test, timeout, "rank 0's initial center")
        # Without MPI_THREAD_MULTIPLE one thread alone may be inside MPI: then the verbs move the reduction.
        self._thread = threading.Thread(target=self._progress, name="hvdkeras-reduction", daemon=True)
        if MPI.Query_thread() == MPI.THREAD_MULTIPLE:
            self._thread.start()

    @property
    def telemetry(self) -> dict[str, float]:
        """Counts `exchanges` (pushes too), `seconds_waiting` for other ranks and `seconds_communication`.

        The latter are the seconds in the verbs without the waiting: the rule and the copies.
        """
        return {
            "exchanges": self._exchanges,
            "seconds_communication": self._verbs - self._waiting,
            "seconds_waiting": self._waiting,
        }

    def pull(self, out: np.ndarray | None = None) -> np.ndarray:
        """Returns a copy (n,) of the center with all that was pushed so far, in `out` if given."""
        begin = time.perf_counter()
        self._complete()
        out = destination(out, self._center.size)
        np.copyto(out, self._center)
        self._verbs += time.perf_counter() - begin
        return out

    def contents(self) -> np.ndarray:
        """Returns a copy of the center, shape (1, n), as `WindowCenter.contents` does."""
        return self.pull()[np.newaxis]

    def push(self, update: np.ndarray) -> None:
        """Adds the sum over the ranks of `update` (n,) to the center; `update` may be reused at once."""
        begin = time.perf_counter()
        vector("update", update, self._center.size)
        self._complete()
        np.copyto(self._update, update)
        self._reduce()
        self._verbs += time.perf_counter() - begin

    def exchange(
        self,
        rule: Callable[..., Sequence[np.ndarray]],
        local: np.ndarray,
        *vectors: np.ndarray,
        out: np.ndarray | None = None,
    ) -> np.ndarray:
        """Applies `rule` to the local vector and the center.

        Args:
            rule: rule(local, center, *vectors) -> (new_local, push), see the module. Every rank's rule sees
                the same center; the sum over the ranks of the pushes is added to it.
            local: The rank's vector (n,), left as it is unless it is `out` too.
            *vectors: More vectors (n,) for the rule.
            out: Where the new local vector goes; a new array by default.

        Returns:
            The new local vector (n,).
        """
        begin = time.perf_counter()
        length = self._center.size
        check_operands(local, vectors, length)
        self._complete()
        out = destination(out, length)
        for block in blocks(0, length):
            results = rule(local[block], read_only(self._center[block]), *(more[block] for more in vectors))
            out[block], self._update[block] = checked(results, 2, local[block].shape)
        self._reduce()
        self._verbs += time.perf_counter() - begin
        return out

    def free(self) -> None:
        """Completes what is under way and gives the communicator back. Twice is once; verbs then raise."""
        if self._freed:
            return
        self._complete()
        with self._lock:
            self._freed = True
            self._started.set()
        if self._alone:
            return
        if self._thread.is_alive():
            self._thread.join()
        self._comm.Free()

    def _reduce(self) -> None:
        """Starts to sum the updates of all ranks, in place."""
        self._exchanges += 1
        self._pending = True
        if not self._alone:
            with self._lock:
                self._request = self._comm.Iallreduce(MPI.IN_PLACE, self._update)
                self._started.set()

    def _complete(self) -> None:
        """Waits for the reduction under way, if there is one, and adds its sum to the center."""
        if self._freed:
            raise RuntimeError("the center was freed")
        if not self._pending:
            return
        if not self._alone:
            self._waiting += wait(
                self._arrived,
                self._timeout,
                f"the updates of the other {self._comm.size - 1} ranks (reduction {self._exchanges} of "
                f"{self._center.size} numbers): each rank must exchange as often as the others",
            )
        self._pending = False
        self._center += self._update

    def _arrived(self) -> bool:
        """Looks whether the reduction has come; the lock, because two threads must not test one request."""
        with self._lock:
            if self._request is not None and not self._request.Test():
                return False
            self._request = None
            if not self._freed:
                self._started.clear()
            return True

    def _progress(self) -> None:
        """Looks after a reduction between two verbs: MPI moves messages only when it is called."""
        while self._started.wait() and not self._freed:
            look(self._arrived)


def mean(comm: MPI.Comm, values: np.ndarray, timeout: float) -> np.ndarray:
    """Returns the ranks' mean of a vector (m,) that no rule exchanges; collective."""
    if values.size == 0:
        return values
    center = ReplicatedCenter(comm, np.zeros_like(values), timeout=timeout)
    center.push(values / np.float32(comm.size))
    result = center.pull()
    center.free()
    return result
