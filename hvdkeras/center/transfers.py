"""How a rank moves numbers between itself and an open chunk of a WindowCenter."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import numpy as np
from mpi4py import MPI

from hvdkeras.center.chunks import Chunk
from hvdkeras.center.half import Half, Rounding
from hvdkeras.center.ticket_locks import TicketLocks
from hvdkeras.center.vectors import apply_rule, blocks, results_of


class FloatTransfers:
    """Moves float32 numbers, which the rank adds up.

    Args:
        parts: 1 + slots.
        piece: elements that are moved at a time.

    Attributes:
        hands_over: whether the chunk's holder still has to apply what was pushed last.
    """

    hands_over = False

    def __init__(self, parts: int, piece: int) -> None:
        self._held = np.empty((parts, piece), np.float32)

    def get(self, chunk: Chunk, out: np.ndarray, part: int = 0) -> None:
        """Copies a part of a chunk into `out`, shape `(n,)`. It is there once the chunk is closed."""
        chunk.window.Get(out[chunk.elements], chunk.host, target=chunk.place(chunk.elements, part))

    # As of `HalfTransfers`, of which a pull is not exact.
    pull = get

    def push(self, chunk: Chunk, update: np.ndarray) -> None:
        """Adds the elements of a chunk of `update`, shape `(n,)`, to the center."""
        place = chunk.place(chunk.elements)
        chunk.window.Accumulate(update[chunk.elements], chunk.host, target=place, op=MPI.SUM)

    def exchange(
        self,
        chunk: Chunk,
        rule: Callable[..., Sequence[np.ndarray]],
        vectors: Sequence[np.ndarray],
        out: np.ndarray,
    ) -> None:
        """Applies a rule to a chunk.

        Args:
            chunk: the chunk, open.
            rule: as of `WindowCenter.exchange`.
            vectors: the local vector and the rule's further vectors, each of shape `(n,)`.
            out: vector of shape `(n,)` that gets what the rank keeps.
        """
        for piece in blocks(chunk.start, chunk.stop, self._held.shape[1]):
            held = self.read(chunk, piece)
            apply_rule(rule, vectors, held, piece, out)
            self.write(chunk, piece, held)

    def read(self, chunk: Chunk, piece: slice, parts: slice = slice(None)) -> np.ndarray:
        """Returns parts of a piece of a chunk, shape `(parts, k)`, until the next call."""
        held = self._held[parts, : piece.stop - piece.start]
        # The Puts of the piece before this one must have read the buffer.
        chunk.window.Flush_local(chunk.host)
        for part, values in zip(range(len(self._held))[parts], held, strict=True):
            chunk.window.Get(values, chunk.host, target=chunk.place(piece, part))
        chunk.window.Flush(chunk.host)
        return held

    def write(self, chunk: Chunk, piece: slice, held: np.ndarray, first: int = 0) -> None:
        """Writes what `read` returned, changed. `first` is the part with which it begins."""
        for part, values in enumerate(held, first):
            chunk.window.Put(values, chunk.host, target=chunk.place(piece, part))

    def serve(self) -> None:
        """Does nothing: ranks apply what they push."""

    def free(self) -> None:
        """Does nothing: the windows are the center's."""


class HalfTransfers:
    """Moves the center between hosts in half precision; it is float32 where it is held.

    Beside a chunk its holder has a shadow, which is the center rounded, and a push buffer. A rank of another
    host reads the shadow, writes its push, rounded, into the push buffer, and hands the chunk's lock over to
    the holder. The holder's progress thread adds the buffer to the center, renews the shadow, and releases
    the lock. What a rank rounds off of a push it adds to its next one, so that nothing is lost. Ranks of the
    holder's host read and write the center as FloatTransfers does, and renew the shadow. Slots are float32
    everywhere.

    Making and freeing it is collective.

    Args:
        comm: communicator of the ranks.
        chunks: the chunks of the center.
        hosts: for each rank the number of its host.
        parts: 1 + slots.
        half: the half precision.
        locks: the chunks' locks.

    Attributes:
        hands_over: as of FloatTransfers.
    """

    def __init__(
        self,
        comm: MPI.Comm,
        chunks: Sequence[Chunk],
        hosts: Sequence[int],
        parts: int,
        half: Half,
        locks: TicketLocks,
    ) -> None:
        self._comm, self._chunks, self._half, self._locks = comm, chunks, half, locks
        longest = max(_length(chunk) for chunk in chunks)
        self._floats = FloatTransfers(parts, longest)
        self._push, self._halves = np.empty(longest, np.float32), np.empty(longest, np.uint16)
        self._near = [hosts[chunk.host] == hosts[comm.rank] for chunk in chunks]
        self._roundings = [
            None if near else Rounding(_length(chunk), half)
            for chunk, near in zip(chunks, self._near, strict=True)
        ]
        self._windows = [
            MPI.Win.Allocate(4 * _length(chunk) if chunk.host == comm.rank else 0, 2, comm=comm)
            for chunk in chunks
        ]
        self.hands_over = False

    def fill(self, center: np.ndarray) -> None:
        """Writes the first shadow, before any rank reads it."""
        for chunk in self._chunks:
            self._renew_shadow(chunk, center[chunk.elements])

    def get(self, chunk: Chunk, out: np.ndarray, part: int = 0) -> None:
        """As of FloatTransfers: exact, for checkpoints and results."""
        self.hands_over = False
        self._floats.get(chunk, out, part)

    def pull(self, chunk: Chunk, out: np.ndarray) -> None:
        """Copies the center at a chunk into `out`, shape `(n,)`, rounded if it is on another host."""
        if self._near[chunk.index]:
            self.get(chunk, out)
            return
        self.hands_over = False
        with self._opened(chunk):
            out[chunk.elements] = self._shadow(chunk)

    def push(self, chunk: Chunk, update: np.ndarray) -> None:
        """As of FloatTransfers."""
        self.hands_over = False
        if not self._near[chunk.index]:
            with self._opened(chunk):
                self._write_push(chunk, update[chunk.elements])
            # Not before: after an error the holder must not add what the buffer holds.
            self.hands_over = True
            return
        center = self._floats.read(chunk, chunk.elements, slice(1))
        center[0] += update[chunk.elements]
        self._floats.write(chunk, chunk.elements, center)
        self._renew_shadow(chunk, center[0])

    def exchange(
        self,
        chunk: Chunk,
        rule: Callable[..., Sequence[np.ndarray]],
        vectors: Sequence[np.ndarray],
        out: np.ndarray,
    ) -> None:
        """As of FloatTransfers. A rank of another host applies the rule to the rounded center."""
        self.hands_over = False
        if self._near[chunk.index]:
            held = self._floats.read(chunk, chunk.elements)
            apply_rule(rule, vectors, held, chunk.elements, out)
            self._floats.write(chunk, chunk.elements, held)
            self._renew_shadow(chunk, held[0])
            return
        with self._opened(chunk):
            held = self._floats.read(chunk, chunk.elements, slice(1, None))
            held = np.vstack([self._shadow(chunk), held])
            push = self._push[: _length(chunk)]
            for block, kept, (pushed, *more) in results_of(rule, vectors, held, chunk.elements):
                within = slice(block.start - chunk.start, block.stop - chunk.start)
                out[block], push[within] = kept, pushed
                for slot, slot_push in zip(held[1:, within], more, strict=True):
                    slot += slot_push
            self._floats.write(chunk, chunk.elements, held[1:], 1)
            self._write_push(chunk, push)
            # `held` is a copy that Put reads until then.
            chunk.window.Flush_local(chunk.host)
        self.hands_over = True

    def serve(self) -> None:
        """Applies what ranks of other hosts have pushed to this rank's chunks; for the progress thread."""
        for index in self._locks.handed_over():
            chunk = self._chunks[index]
            halves = np.frombuffer(self._windows[index].tomemory(), np.uint16).reshape(2, -1)
            center = np.frombuffer(chunk.window.tomemory(), np.float32)[chunk.first :]
            for block in blocks(0, _length(chunk)):
                center[block] += self._half.read(halves[1, block])
                self._half.write(center[block], halves[0, block])
                # Meanwhile other ranks read other chunks.
                self._comm.Iprobe()
            self._locks.release_for_another(index)

    def free(self) -> None:
        """Frees the memory."""
        for window in self._windows:
            window.Free()

    @contextmanager
    def _opened(self, chunk: Chunk) -> Iterator[None]:
        """Opens the shadow and the push buffer; at the end all calls are complete."""
        window = self._windows[chunk.index]
        window.Lock(chunk.host, MPI.LOCK_SHARED, MPI.MODE_NOCHECK)
        try:
            yield
        finally:
            window.Unlock(chunk.host)

    def _shadow(self, chunk: Chunk) -> np.ndarray:
        """Returns the shadow of a chunk that is open, as float32."""
        halves, window = self._halves[: _length(chunk)], self._windows[chunk.index]
        window.Get([halves, MPI.UINT16_T], chunk.host, [0, halves.size, MPI.UINT16_T])
        window.Flush(chunk.host)
        return self._half.read(halves)

    def _write_push(self, chunk: Chunk, push: np.ndarray) -> None:
        """Writes a push, shape `(k,)`, into the push buffer of a chunk that is open."""
        halves = self._halves[: _length(chunk)]
        self._roundings[chunk.index](push, halves)
        place = [halves.size, halves.size, MPI.UINT16_T]
        self._windows[chunk.index].Put([halves, MPI.UINT16_T], chunk.host, place)

    def _renew_shadow(self, chunk: Chunk, center: np.ndarray) -> None:
        halves = self._halves[: _length(chunk)]
        self._half.write(center, halves)
        with self._opened(chunk):
            place = [0, halves.size, MPI.UINT16_T]
            self._windows[chunk.index].Put([halves, MPI.UINT16_T], chunk.host, place)


def _length(chunk: Chunk) -> int:
    return chunk.stop - chunk.start
