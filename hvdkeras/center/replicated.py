"""The center variable that every rank holds, kept equal by one nonblocking sum an exchange."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from functools import partial

import numpy as np
from mpi4py import MPI

from hvdkeras.center.chunks import on_one_host
from hvdkeras.center.contents import Contents
from hvdkeras.center.sums import FloatSums, HalfSums, Request
from hvdkeras.center.vectors import blocks, check_operands, checked, destination, read_only, vector
from hvdkeras.mpi.collectives import broadcast, check_equal, duplicate
from hvdkeras.mpi.waiting import poll, wait


class ReplicatedCenter:
    """A center that every rank holds; one nonblocking reduction sums the ranks' pushes.

    `push` and `exchange` start the reduction and return; the next verb completes it. So the communication
    runs beside the computation in between. The numbers are those of a reduction that is completed at once,
    because only verbs read the center. Every rank must call the same verbs in the same order. All ranks hold
    the same center, bit by bit. A communicator of one rank sends no messages.

    Args:
        comm: communicator of the ranks that share the center.
        initial: vector of shape `(n,)`, float32, that the center starts from. Rank 0's values are used.
        timeout: seconds that a wait for the other ranks may take. It must exceed the time that the slowest
            rank computes between two exchanges. The default, ten minutes, is far above that.
        exchange_dtype: `"float16"` or `"bfloat16"`: the dtype in which pushes travel between hosts; see
            `HalfSums`. On one host nothing is converted. Default: float32.

    Attributes:
        size: number of ranks that share the center.

    Raises:
        RankTimeoutError: from any verb, if the other ranks have not called it within `timeout` seconds.
        ValueError: the ranks' vectors have different lengths.
    """

    def __init__(
        self,
        comm: MPI.Comm,
        initial: np.ndarray,
        timeout: float = 600.0,
        exchange_dtype: str | None = None,
    ):
        self._center = vector("initial", initial).copy()
        self._timeout = timeout
        self._update = np.empty_like(self._center)
        self._request: Request | None = None
        self._pending = False
        self._lock = threading.Lock()
        self._started = threading.Event()
        self._freed = False
        self._exchanges, self._verbs, self._waiting = 0, 0.0, 0.0
        self.size = comm.size
        self._alone = comm.size == 1
        if self._alone:
            return
        ranks = f"all {comm.size} ranks to make the center"
        self._comm = duplicate(comm, timeout, ranks)
        check_equal(self._comm, self._center.size, "initial must have the same length", timeout, ranks)
        broadcast(self._comm, self._center, timeout, "rank 0's initial center")
        self._sums: FloatSums | HalfSums = FloatSums(self._comm)
        if exchange_dtype is not None and not on_one_host(self._comm):
            self._sums = HalfSums(self._comm, self._center.size, exchange_dtype)
        # Without MPI_THREAD_MULTIPLE only one thread may call MPI: then only the verbs advance the reduction.
        self._thread = threading.Thread(target=self._progress, name="hvdkeras-reduction", daemon=True)
        if MPI.Query_thread() == MPI.THREAD_MULTIPLE:
            self._thread.start()

    @property
    def telemetry(self) -> dict[str, float]:
        """What this rank has done so far.

        - `exchanges`: calls of `exchange` and `push`.
        - `seconds_waiting`: seconds in the verbs in which this rank waited for other ranks.
        - `seconds_communication`: the other seconds in the verbs, for the rule and the copies.
        """
        return {
            "exchanges": self._exchanges,
            "seconds_communication": self._verbs - self._waiting,
            "seconds_waiting": self._waiting,
        }

    def pull(self, out: np.ndarray | None = None) -> np.ndarray:
        """Returns a copy of the center with all pushes so far, shape `(n,)`, in `out` if given."""
        begin = time.perf_counter()
        self._complete()
        out = destination(out, self._center.size)
        np.copyto(out, self._center)
        self._verbs += time.perf_counter() - begin
        return out

    def contents(self) -> Contents:
        """Returns a copy of the center with all pushes so far; it has no slots."""
        return Contents(self.pull(), np.empty((0, self._center.size), np.float32))

    def staleness(self) -> int:
        """Returns 0: all ranks exchange together."""
        return 0

    def push(self, update: np.ndarray) -> None:
        """Adds the sum of all ranks' `update`, shape `(n,)`, to the center.

        The caller may change `update` as soon as the method has returned.
        """
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
            rule: rule(local, center, *vectors) -> (kept, push), see `hvdkeras.center`. The rules of all ranks
                get the same center; the sum of all ranks' pushes is added to it.
            local: the rank's vector, shape `(n,)`. It is not changed, unless it is `out` too.
            *vectors: more vectors of shape `(n,)` for the rule.
            out: where the kept vector goes; a new array by default.

        Returns:
            The vector that the rank keeps, shape `(n,)`.
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
        """Completes the reduction under way and frees the communicator. Collective.

        A second call does nothing. The verbs raise RuntimeError from then on.
        """
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
        self._sums.free()
        self._comm.Free()

    def _reduce(self) -> None:
        """Starts the sum of all ranks' updates, in place."""
        self._exchanges += 1
        self._pending = True
        if not self._alone:
            with self._lock:
                self._request = self._sums.start(self._update)
                self._started.set()

    def _complete(self) -> None:
        """Waits for the reduction under way, if there is one, and adds the sum to the center."""
        if self._freed:
            raise RuntimeError("the center was freed")
        if not self._pending:
            return
        if not self._alone:
            self._waiting += wait(
                self._reduced,
                self._timeout,
                f"the updates of the other {self._comm.size - 1} ranks (reduction {self._exchanges} of "
                f"{self._center.size} numbers): each rank must exchange as often as the others",
            )
        self._pending = False
        self._center += self._update

    def _reduced(self, blocking: bool = True) -> bool:
        """Returns whether the reduction is complete, or False where another thread tests it.

        Locked: two threads must not test one request.
        """
        if not self._lock.acquire(blocking):
            return False
        try:
            if self._request is not None and not self._request.Test():
                return False
            self._request = None
            if not self._freed:
                self._started.clear()
            return True
        finally:
            self._lock.release()

    def _progress(self) -> None:
        """Advances a reduction between two verbs: MPI moves messages only while it is called."""
        while self._started.wait() and not self._freed:
            # While a verb waits, this thread sleeps: one that waited for the lock would seem to move data.
            poll(partial(self._reduced, blocking=False))
