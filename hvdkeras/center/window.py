"""The center variable in one-sided MPI windows: each rank exchanges with it at its own pace.

Its parts are the memory (`chunks`), what moves numbers between it and a rank (`transfers`), the locks
(`ticket_locks`), the counters of pushes (`counters`), and a thread that serves other hosts
(`progress_thread`).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

import numpy as np
from mpi4py import MPI

from hvdkeras.center.chunks import Chunk, allocate, alternating, check_shared_memory, fill, hosts_of
from hvdkeras.center.contents import Contents
from hvdkeras.center.counters import Counters
from hvdkeras.center.half import Half
from hvdkeras.center.progress_thread import ProgressThread
from hvdkeras.center.ticket_locks import TicketLocks
from hvdkeras.center.transfers import FloatTransfers, HalfTransfers
from hvdkeras.center.vectors import BLOCK, check_operands, destination, first_slots, vector
from hvdkeras.launch.failure import RankTimeoutError
from hvdkeras.mpi.collectives import check_equal, duplicate
from hvdkeras.mpi.waiting import wait

# Longest pause, in seconds, between two polls of a rank that waits for the others to finish, which may take
# minutes.
FINISH_INTERVAL = 0.05


class WindowCenter:
    """A center in the memory of rank 0, or of all ranks, that each rank reads and updates by itself.

    No update is lost, and within a chunk (a megabyte or more) a reader sees all of an update or none of it.
    Slots are more vectors beside the center, for rules with a state that all ranks share, such as Adagrad's
    accumulators.

    Making, finishing and freeing a center is collective; `pull`, `push` and `exchange` are not. A rank that
    fails must end the job. It must not free the center, because `free` waits for the other ranks.

    Args:
        comm: communicator of the ranks that share the center.
        initial: vector of shape `(n,)`, float32, that the center starts from. Rank 0's values are used.
        slots: number of vectors beside the center, which start with zeros; or their first values, shape
            `(slots, n)`, float32, of which rank 0's are used.
        sharded: spread the chunks over the hosts and their ranks, for vectors that outgrow the link of rank
            0's host.
        timeout: seconds that a wait may take in which no other rank makes progress.
        exchange_dtype: `"float16"` or `"bfloat16"`: the dtype in which the center travels between hosts; see
            `HalfTransfers`. On one host nothing is converted. Default: float32.

    Attributes:
        size: number of ranks that share the center.
        sharded: whether the chunks are spread.

    Raises:
        OSError: the host has too little shared memory.
        RuntimeError: the ranks are on several hosts and MPI has no MPI_THREAD_MULTIPLE.
        RankTimeoutError: from any verb, if the other ranks made no progress for `timeout` seconds. If a call
            of MPI itself does not return in that time, the error goes to `threading.excepthook` and the job
            is ended.
        ValueError: the ranks' vectors have different lengths.
    """

    def __init__(
        self,
        comm: MPI.Comm,
        initial: np.ndarray,
        slots: int | np.ndarray = 0,
        sharded: bool = False,
        timeout: float = 600.0,
        exchange_dtype: str | None = None,
    ):
        vector("initial", initial)
        contents = Contents(initial, first_slots(slots, initial.size))
        self.size, self.sharded = comm.size, sharded
        self._length, self._parts, self._timeout = initial.size, 1 + len(contents.slots), timeout
        ranks = f"all {comm.size} ranks to make the center"
        self._comm = duplicate(comm, timeout, ranks)
        check_equal(self._comm, self._length, "initial must have the same length", timeout, ranks)
        hosts = hosts_of(self._comm, timeout)
        one_host = len(set(hosts)) == 1
        if one_host and comm.size > 1:
            check_shared_memory(self._comm, self._length, self._parts, timeout)
        if not one_host and MPI.Query_thread() < MPI.THREAD_MULTIPLE:
            raise RuntimeError(
                "ranks on several hosts need MPI_THREAD_MULTIPLE, for a thread that serves the windows. "
                f"Received: thread level {MPI.Query_thread()}"
            )
        holders = alternating(hosts) if sharded else [0]
        self._chunks = allocate(self._comm, self._length, self._parts, holders, timeout)
        self._locks = TicketLocks(self._comm, [chunk.host for chunk in self._chunks], timeout)
        # Each rank begins with another chunk.
        first = comm.rank * len(self._chunks) // comm.size
        self._own_order = [_Locked(self, chunk) for chunk in self._chunks[first:] + self._chunks[:first]]
        self._counters = Counters(self._comm)
        # On one host a block stays in the cache from Get to Put; between hosts each piece is a round trip.
        piece = min(BLOCK, self._length) if one_host else self._chunks[0].stop
        self._transfers: FloatTransfers | HalfTransfers = FloatTransfers(self._parts, piece)
        if exchange_dtype is not None and not one_host:
            half = Half(exchange_dtype)
            self._transfers = HalfTransfers(self._comm, self._chunks, hosts, self._parts, half, self._locks)
            if comm.rank == 0:
                self._transfers.fill(contents.center)
        self._verbs = self._waiting = 0.0
        self._pushes = 0
        self._freed = False
        # Only ranks that hold memory serve the other hosts; on one host all ranks reach it by themselves.
        serving = not one_host and comm.rank in {0, *(chunk.host for chunk in self._chunks)}
        self._progress = ProgressThread(self._comm, timeout, self._serve if serving else None)
        if comm.rank == 0:
            fill(self._chunks, contents)
        self._meet("the center's first values")

    @property
    def telemetry(self) -> dict[str, float]:
        """What this rank has done so far.

        - `exchanges`: calls of `exchange` and `push`.
        - `staleness_sum`, `staleness_mean`, `staleness_max`: over these calls; the staleness is the number of
          pushes of other ranks since this rank's exchange or pull before.
        - `seconds_waiting`: seconds in the verbs in which this rank waited for locks and for other ranks.
        - `seconds_communication`: the other seconds in the verbs, for the copies and the rule.
        """
        waiting = self._waiting + self._locks.seconds_waiting
        return {
            **self._counters.telemetry,
            "seconds_communication": self._verbs - waiting,
            "seconds_waiting": waiting,
        }

    def pull(self, out: np.ndarray | None = None) -> np.ndarray:
        """Returns a copy of the center, shape `(n,)`, in `out` if given.

        With `exchange_dtype` it is rounded where it is held by another host.
        """
        with _Verb(self, "pull"):
            out = destination(out, self._length)
            self._counters.count_pull()
            for locked in self._own_order:
                with locked as chunk:
                    self._transfers.pull(chunk, out)
        return out

    def contents(self) -> Contents:
        """Returns a copy of the center and its slots.

        It is for checkpoints, evaluation and results: unlike `pull` it is exact, and does not change this
        rank's staleness.
        """
        center, slots = (
            np.empty(self._length, np.float32),
            np.empty((self._parts - 1, self._length), np.float32),
        )
        with _Verb(self, "copy"):
            for part, values in enumerate((center, *slots)):
                for locked in self._own_order:
                    with locked as chunk:
                        self._transfers.get(chunk, values, part)
        return Contents(center, slots)

    def push(self, update: np.ndarray) -> None:
        """Adds `update`, shape `(n,)`, to the center."""
        vector("update", update, self._length)
        with _Verb(self, "push"):
            self._counters.count_push(pulls=False)
            for locked in self._own_order:
                with locked as chunk:
                    self._transfers.push(chunk, update)

    def exchange(
        self,
        rule: Callable[..., Sequence[np.ndarray]],
        local: np.ndarray,
        *vectors: np.ndarray,
        out: np.ndarray | None = None,
    ) -> np.ndarray:
        """Applies `rule` to the local vector and the center.

        No other rank reads or changes a chunk between the call of the rule and the addition of its pushes.

        Args:
            rule: rule(local, center, *slots, *vectors) -> (kept, push, *slot_pushes), see `hvdkeras.center`.
            local: the rank's vector, shape `(n,)`. It is not changed, unless it is `out` too.
            *vectors: more vectors of shape `(n,)` for the rule.
            out: where the kept vector goes; a new array by default.

        Returns:
            The vector that the rank keeps, shape `(n,)`.
        """
        check_operands(local, vectors, self._length)
        with _Verb(self, "exchange"):
            out = destination(out, self._length)
            self._counters.count_push(pulls=True)
            for locked in self._own_order:
                with locked as chunk:
                    self._transfers.exchange(chunk, rule, (local, *vectors), out)
        return out

    def staleness(self) -> int:
        """Returns how many pushes and exchanges of other ranks followed this rank's last exchange or pull."""
        with _Verb(self, "count"):
            return self._counters.staleness()

    def finish(self) -> None:
        """Waits until every rank has called `finish`: then the center holds all pushes. Collective.

        Raises:
            RankTimeoutError: no rank has pushed or finished for `timeout` seconds. As long as one does, the
                wait continues.
        """
        with _Verb(self, "finish") as verb:
            self._counters.count_finished()
            begin = moved = time.perf_counter()
            before = self._counters.read()
            while not before[1:].all():
                time.sleep(min(FINISH_INTERVAL, (time.perf_counter() - begin) / 10))
                self._progress.watch(verb)
                counters = self._counters.read()
                if (counters != before).any():
                    before, moved = counters, time.perf_counter()
                elif time.perf_counter() - moved > self._timeout:
                    missing = np.flatnonzero(counters[1:] == 0).tolist()
                    raise RankTimeoutError(
                        f"rank {self._comm.rank} waited for ranks {missing} to finish: "
                        f"none has pushed or finished for {self._timeout:g} s"
                    )
            self._waiting += time.perf_counter() - begin

    def free(self) -> None:
        """Frees the memory once all ranks have called `free`. Collective.

        A second call does nothing. The verbs raise RuntimeError from then on.
        """
        if self._freed:
            return
        self._meet("free")
        self._freed = True
        self._progress.stop()
        self._transfers.free()
        for chunk in self._chunks:
            chunk.window.Free()
        self._locks.free()
        self._counters.free()
        self._comm.Free()

    def _serve(self) -> bool:
        """Applies what was handed over to this rank, and returns whether other ranks use its memory."""
        self._transfers.serve()
        before, self._pushes = self._pushes, self._counters.pushes_here
        return self._pushes != before or self._locks.requested()

    def _meet(self, what: str) -> None:
        """Waits for all ranks."""
        wait(self._comm.Ibarrier().Test, self._timeout, f"all {self._comm.size} ranks: {what}")


class _Verb:
    """A call of a verb: refuses a freed center, measures the time, and has the progress thread watch it.

    A class, like `_Locked`: the generator behind `contextmanager` would cost a tenth of a small pull.
    """

    def __init__(self, center: WindowCenter, name: str):
        self._center, self._name = center, name

    def __str__(self) -> str:
        return f"the counters at rank 0, to {self._name}"

    def __enter__(self) -> _Verb:
        center = self._center
        if center._freed:
            raise RuntimeError("the center was freed")
        self._begin = time.perf_counter()
        center._progress.watch(self)
        return self

    def __exit__(self, *error: object) -> None:
        self._center._progress.watch(None)
        self._center._verbs += time.perf_counter() - self._begin


class _Locked:
    """Acquires a chunk's lock and opens the chunk; at the end closes it, and gives the lock up."""

    def __init__(self, center: WindowCenter, chunk: Chunk):
        self._center, self._chunk = center, chunk

    def __enter__(self) -> Chunk:
        self._center._progress.watch(self._chunk)
        self._center._locks.acquire(self._chunk.index)
        self._chunk.open()
        return self._chunk

    def __exit__(self, *error: object) -> None:
        self._chunk.close()
        if self._center._transfers.hands_over:
            self._center._locks.hand_over(self._chunk.index)
        else:
            self._center._locks.release(self._chunk.index)
