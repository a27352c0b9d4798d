"""The center variable in one-sided MPI windows: each rank exchanges with it at its own pace.

`chunks` is the memory, `turns` the locks, `ledger` counts, `attendant` serves other hosts.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

import numpy as np
from mpi4py import MPI

from hvdkeras.center.attendant import Attendant
from hvdkeras.center.chunks import Chunk, allocate, check_shared_memory, fill, on_one_host
from hvdkeras.center.ledger import Ledger
from hvdkeras.center.turns import Turns
from hvdkeras.center.vectors import BLOCK, blocks, check_operands, checked, destination, read_only, vector
from hvdkeras.mpi.waiting import agree_on_length, duplicate, wait

# Seconds between two looks of a rank that waits for the others to finish, which may take minutes.
PATIENCE = 0.05


class WindowCenter:
    """A center in the memory of rank 0, or of all ranks, that each rank reads and updates by itself.

    No update is lost, and within a chunk (a megabyte or more) a reader sees all of an update or none of it.
    Slots are more vectors beside the center, for rules with a state that all ranks share, such as Adagrad's
    accumulators. Their rules are::

        rule(local, center, *slots, *vectors) -> (new_local, push, *slot_pushes)

    Making, finishing and freeing a center is collective, `pull`, `push` and `exchange` are not. A rank that
    fails must end the job; it must not free the center, which waits for the others.

    Args:
        comm: Communicator of the ranks that share the center.
        initial: Vector (n,) of float32 that the center starts from; rank 0's counts. Or (1 + slots, n), what
            `contents` returned: the slots' first values, too.
        slots: Number of vectors beside the center. They start with zeros.
        sharded: Spreads the chunks over the ranks, for vectors that outgrow the link of rank 0's host.
        timeout: Seconds that a wait for other ranks may take without anything happening.

    Attributes:
        size: Number of ranks that share the center.

    Raises:
        OSError: The host has not enough shared memory.
        RuntimeError: The ranks are on several hosts and MPI has no MPI_THREAD_MULTIPLE.
        TimeoutError: The other ranks do nothing for `timeout` seconds. Where a call of MPI itself does not
            return in that time, the error goes to `threading.excepthook` and the job is ended.
    """

    def __init__(
        self,
        comm: MPI.Comm,
        initial: np.ndarray,
        slots: int = 0,
        sharded: bool = False,
        timeout: float = 600.0,
    ):
        if slots < 0:
            raise ValueError(f"slots must not be negative. Received: {slots}")
        rows = initial if np.ndim(initial) == 2 and len(initial) == 1 + slots else [initial]
        for row in rows:
            vector("initial", row)
        self.size = comm.size
        self._length, self._parts, self._timeout = rows[0].size, 1 + slots, timeout
        self._comm = duplicate(comm, timeout)
        agree_on_length(self._comm, self._length, timeout)
        one_host = on_one_host(self._comm)
        if one_host and comm.size > 1:
            check_shared_memory(self._comm, self._length, self._parts, timeout)
        if not one_host and MPI.Query_thread() < MPI.THREAD_MULTIPLE:
            raise RuntimeError(
                "ranks on several hosts need MPI_THREAD_MULTIPLE, for a thread that serves the windows. "
                f"Received: thread level {MPI.Query_thread()}"
            )
        self._chunks = allocate(self._comm, self._length, self._parts, sharded, timeout)
        self._turns = Turns(self._comm, [chunk.host for chunk in self._chunks], timeout)
        # Each rank begins at another chunk.
        first = comm.rank * len(self._chunks) // comm.size
        self._own_order = [_Turn(self, chunk) for chunk in self._chunks[first:] + self._chunks[:first]]
        self._ledger = Ledger(self._comm)
        # On one host a block stays in the cache from Get to Put; between hosts each step is a round trip.
        self._piece = min(BLOCK, self._length) if one_host else self._chunks[0].stop
        self._held = np.empty((self._parts, self._piece), np.float32)
        self._verbs = self._waiting = 0.0
        self._pushes = 0
        self._freed = False
        # Only a rank that holds something serves the other hosts; on one host all reach it by themselves.
        serving = not one_host and comm.rank in {0, *(chunk.host for chunk in self._chunks)}
        self._attendant = Attendant(self._comm, timeout, self._requested if serving else None)
        if comm.rank == 0:
            fill(self._chunks, self._parts, np.atleast_2d(initial))
        self._meet("the center's first values")

    @property
    def telemetry(self) -> dict[str, float]:
        """What this rank has done so far.

        `exchanges` (pushes are some too); `staleness_sum`, `staleness_mean` and `staleness_max` over them, in
        pushes of other ranks since this rank last looked at the center; `seconds_waiting` for turns and for
        other ranks to finish; `seconds_communication`, the rest of the time in the verbs, for copies and the
        rule.
        """
        waiting = self._waiting + self._turns.seconds_waiting
        return {
            **self._ledger.telemetry,
            "seconds_communication": self._verbs - waiting,
            "seconds_waiting": waiting,
        }

    def pull(self, out: np.ndarray | None = None, part: int = 0) -> np.ndarray:
        """Returns a copy (n,) of the center.

        Args:
            out: Where it goes; a new array by default.
            part: 0 is the center itself, 1 the first slot, and so on.
        """
        if not 0 <= part < self._parts:
            raise ValueError(f"part must be in 0..{self._parts - 1}. Received: {part}")
        with _Verb(self, "pull"):
            out = destination(out, self._length)
            if part == 0:
                self._ledger.enter_pull()
            self._get(out, part)
        return out

    def contents(self) -> np.ndarray:
        """Returns a copy of the center and its slots, shape (1 + slots, n).

        For checkpoints and evaluation: unlike `pull` it leaves the staleness as it is.
        """
        out = np.empty((self._parts, self._length), np.float32)
        with _Verb(self, "copy"):
            for part, values in enumerate(out):
                self._get(values, part)
        return out

    def push(self, update: np.ndarray) -> None:
        """Adds `update` (n,) to the center."""
        vector("update", update, self._length)
        with _Verb(self, "push"):
            self._ledger.enter_push(pulls=False)
            for turn in self._own_order:
                with turn as chunk:
                    place = chunk.place(chunk.elements)
                    chunk.window.Accumulate(update[chunk.elements], chunk.host, target=place, op=MPI.SUM)

    def exchange(
        self,
        rule: Callable[..., Sequence[np.ndarray]],
        local: np.ndarray,
        *vectors: np.ndarray,
        out: np.ndarray | None = None,
    ) -> np.ndarray:
        """Applies `rule` to the local vector and the center, which no other rank touches in between.

        Args:
            rule: rule(local, center, *slots, *vectors) -> (new_local, push, *slot_pushes), see the class. The
                push is added to the center, each slot's push to the slot.
            local: The rank's vector (n,), left as it is unless it is `out` too.
            *vectors: More vectors (n,) for the rule.
            out: Where the new local vector goes; a new array by default.

        Returns:
            The new local vector (n,).
        """
        check_operands(local, vectors, self._length)
        with _Verb(self, "exchange"):
            out = destination(out, self._length)
            self._ledger.enter_push(pulls=True)
            for turn in self._own_order:
                with turn as chunk:
                    for piece in blocks(chunk.start, chunk.stop, self._piece):
                        self._exchange_piece(chunk, piece, rule, (local, *vectors), out)
        return out

    def staleness(self) -> int:
        """Counts the pushes and exchanges of other ranks since this rank's last exchange or pull."""
        with _Verb(self, "count"):
            return self._ledger.staleness()

    def finish(self) -> None:
        """Waits until every rank has come here; then the center holds all that was pushed.

        Raises:
            TimeoutError: For `timeout` seconds no rank has pushed or finished. As long as one does, the wait
                goes on.
        """
        with _Verb(self, "finish") as verb:
            self._ledger.enter_finish()
            begin = moved = time.perf_counter()
            before = self._ledger.state()
            while not before[1:].all():
                time.sleep(min(PATIENCE, (time.perf_counter() - begin) / 10))
                self._attendant.note(verb)
                state = self._ledger.state()
                if (state != before).any():
                    before, moved = state, time.perf_counter()
                elif time.perf_counter() - moved > self._timeout:
                    missing = np.flatnonzero(state[1:] == 0).tolist()
                    raise TimeoutError(
                        f"rank {self._comm.rank} waited for ranks {missing} to finish: "
                        f"none has pushed or finished for {self._timeout:g} s"
                    )
            self._waiting += time.perf_counter() - begin

    def free(self) -> None:
        """Gives the memory back when all ranks have come here. Twice is once; verbs then raise."""
        if self._freed:
            return
        self._meet("free")
        self._freed = True
        self._attendant.stop()
        for chunk in self._chunks:
            chunk.window.Free()
        self._turns.free()
        self._ledger.free()
        self._comm.Free()

    def _get(self, out: np.ndarray, part: int) -> None:
        for turn in self._own_order:
            with turn as chunk:
                place = chunk.place(chunk.elements, part)
                chunk.window.Get(out[chunk.elements], chunk.host, target=place)

    def _exchange_piece(
        self,
        chunk: Chunk,
        piece: slice,
        rule: Callable[..., Sequence[np.ndarray]],
        vectors: Sequence[np.ndarray],
        out: np.ndarray,
    ) -> None:
        """Gets a piece of an open chunk, applies the rule block by block, and puts the piece back."""
        window, held = chunk.window, self._held[:, : piece.stop - piece.start]
        # The piece before this one must have left the buffer.
        window.Flush_local(chunk.host)
        for part, values in enumerate(held):
            window.Get(values, chunk.host, target=chunk.place(piece, part))
        window.Flush(chunk.host)
        for block in blocks(piece.start, piece.stop):
            parts = held[:, block.start - piece.start : block.stop - piece.start]
            local, *more = (values[block] for values in vectors)
            results = checked(rule(local, *map(read_only, parts), *more), 1 + self._parts, local.shape)
            out[block] = results[0]
            for values, push in zip(parts, results[1:], strict=True):
                values += push
        for part, values in enumerate(held):
            window.Put(values, chunk.host, target=chunk.place(piece, part))

    def _requested(self) -> bool:
        """Tells the attendant whether other ranks use what this rank holds."""
        before, self._pushes = self._pushes, self._ledger.here
        return self._pushes != before or self._turns.wanted()

    def _meet(self, what: str) -> None:
        """Waits for all ranks."""
        wait(self._comm.Ibarrier().Test, self._timeout, f"all {self._comm.size} ranks: {what}")


class _Verb:
    """A call of a center: refuses a freed one, measures the time, and has the attendant watch it.

    A class, like `_Turn`: the generator behind `contextmanager` would cost a tenth of a small pull.
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
        center._attendant.note(self)
        return self

    def __exit__(self, *error: object) -> None:
        self._center._attendant.note(None)
        self._center._verbs += time.perf_counter() - self._begin


class _Turn:
    """Opens a chunk of a center for this rank alone."""

    def __init__(self, center: WindowCenter, chunk: Chunk):
        self._center, self._chunk = center, chunk

    def __enter__(self) -> Chunk:
        self._center._attendant.note(self._chunk)
        self._center._turns.take(self._chunk.index)
        self._chunk.open()
        return self._chunk

    def __exit__(self, *error: object) -> None:
        self._chunk.close()
        self._center._turns.give(self._chunk.index)
