"""A rank's rows: mapped from the shards and read in batches, in a new order each epoch."""

from __future__ import annotations

import itertools
import math
import socket
from collections.abc import Collection, Sequence
from dataclasses import replace

import numpy as np

from hvdkeras.data.columns import Column, row_bytes
from hvdkeras.data.encoded import EncodedRows
from hvdkeras.data.mapping import dense, map_columns
from hvdkeras.data.parts import Part
from hvdkeras.data.ragged import from_bytes
from hvdkeras.data.shards import Shards
from hvdkeras.data.share import Share
from hvdkeras.data.vectors import Coordinates, SparseRows

# A block costs a call into Python, and each piece of the data that it reads from costs a few microseconds,
# however few the rows. So a block has many batches: as many as make the calls cheap and still fit in a cache,
# more where there are many pieces, within a bound on the memory.
_BLOCK_BYTES = 4 << 20
_BLOCK_PIECES = 2
_MOST_BYTES = 32 << 20
# TensorFlow uses memory without a copy if it is aligned to so many bytes.
_ALIGNMENT = 64


class Rows:
    """The rows of one rank.

    The ranks' numbers of rows differ by at most one. Their numbers of batches are equal, because synchronous
    algorithms exchange on all ranks after the same number of batches. An epoch has every row once. Its order
    depends on the seed and the epoch (without shuffle on the rank, too); within a batch the rows are in the
    data's order.

    The columns are memory-mapped: private memory has only blocks of a few batches and the order of an epoch,
    four bytes a row. From shards behind a URL the rows that this rank maps are first copied to this machine,
    to files without a name that vanish with the process.

    Args:
        shards: the data.
        rank: this rank, from 0.
        size: number of ranks.
        batch_size: rows in a batch. The last batch of an epoch has the remaining rows. With a batch size of
            1, the last batch of the ranks that have a row more than others has two rows.
        seed: seed of the orders, not negative; the same on all ranks.
        shuffle: False: the rank keeps a contiguous share of the rows, in a new order each epoch. True: each
            epoch distributes all rows over the ranks anew, so that the rank maps all of them.
        chosen: ascending numbers of the rows that the ranks share, shape `(n,)`. Default: all.

    Attributes:
        columns: the columns, in their order in batches.
        rows: rows of this rank in an epoch.
        steps: batches in an epoch, equal on all ranks.
        block_steps: batches in a block; the last block of an epoch may have fewer.

    Raises:
        ValueError: there are fewer rows than ranks, a number is out of range, or `chosen` does not ascend.
        FileNotFoundError: the store does not exist on this rank's host.
    """

    def __init__(
        self,
        shards: Shards,
        rank: int,
        size: int,
        batch_size: int,
        seed: int,
        shuffle: bool = False,
        chosen: np.ndarray | None = None,
    ) -> None:
        if not 0 <= rank < size:
            raise ValueError(f"rank must be from 0 to size - 1. Received: rank={rank}, size={size}")
        if batch_size < 1:
            raise ValueError(f"batch_size must be positive. Received: {batch_size}")
        _check_chosen(chosen, shards.rows)
        shards.check_rows(size, None if chosen is None else len(chosen))
        self.columns = shards.columns
        total = shards.rows if chosen is None else len(chosen)
        self._share = Share(total, rank, size, batch_size, seed, shuffle)
        self.rows, self.steps = self._share.rows, self._share.steps
        first, last = (0, total - 1) if shuffle else (self._share.start, self._share.stop - 1)
        self._chosen = None
        if chosen is not None:
            share, (first, last) = chosen[first : last + 1], chosen[[first, last]].tolist()
            self._chosen = share - first
        try:
            self._bounds, self._pieces = map_columns(shards, first, last + 1)
        except FileNotFoundError as error:
            raise FileNotFoundError(
                f"rank {rank} on {socket.gethostname()} does not find the shards in {shards.url} "
                f"({error}). Give a folder or URL that all hosts share as store"
            ) from error
        self._sparse = {
            column for column, own in self._pieces.items() if any(isinstance(one, SparseRows) for one in own)
        }
        # An encoded column counts with its size after decoding.
        decoded = [replace(column, encoded=False) for column in shards.distinct]
        batch_bytes = batch_size * row_bytes(decoded)
        wanted = max(_BLOCK_BYTES // batch_bytes, -(-(len(self._bounds) - 1) // _BLOCK_PIECES))
        self.block_steps = max(1, min(wanted, _MOST_BYTES // batch_bytes))
        if any(column.padding is not None for column in shards.columns):
            # Each batch is padded to its own longest row.
            self.block_steps = 1
        self._ordered: tuple[int, np.ndarray] | None = None

    @property
    def batch_sizes(self) -> np.ndarray:
        """Rows of each batch of an epoch, shape `(steps,)`, int64."""
        return np.diff(self._share.cuts(0, self.steps))

    def block(
        self, epoch: int, step: int, sparse: Collection[int] = ()
    ) -> tuple[tuple[np.ndarray | Coordinates, ...], np.ndarray]:
        """Gathers `block_steps` batches, or the remaining ones of the epoch.

        Args:
            epoch: number of the epoch, from 0.
            step: the first of the batches.
            sparse: numbers of columns whose rows, of one axis, are returned as `Coordinates`.

        Returns:
            columns: for each column the batches' rows one after the other, shape `(rows, *shape)`, in memory
                that TensorFlow can use without a copy. For an encoded column an array of `Encoded`, shape
                `(rows,)`; with padding, rows as long as the longest one.
            sizes: number of rows in each batch, shape `(k,)`, int64.
        """
        cuts = self._share.cuts(step, min(step + self.block_steps, self.steps))
        rows = self._order(epoch)[cuts[0] : cuts[-1]]
        rows = rows.astype(np.intp) if self._chosen is None else self._chosen[rows].astype(np.intp)
        for low, high in itertools.pairwise(cuts - cuts[0]):
            rows[low:high].sort()
        return self._gather(rows, sparse), np.diff(cuts)

    def _order(self, epoch: int) -> np.ndarray:
        """Returns the numbers of this rank's rows in an epoch, in the order of the batches."""
        if self._ordered is None or self._ordered[0] != epoch:
            # Frees the old order before the new one is made.
            self._ordered = None
            self._ordered = epoch, self._share.order(epoch)
        return self._ordered[1]

    def _gather(self, rows: np.ndarray, sparse: Collection[int]) -> tuple[np.ndarray | Coordinates, ...]:
        """Gathers mapped rows, in the order of `rows`."""
        parts = self._by_piece(rows) if len(self._bounds) > 2 else []
        wanted = [(column, number in sparse) for number, column in enumerate(self.columns)]
        taken = {}
        for column, is_sparse in dict.fromkeys(wanted):
            if column.of_bytes:
                found = _gathered(self._pieces[column], rows, parts)
                taken[column, False] = found if column.encoded else from_bytes(column, found)
            else:
                gather = self._coordinates if is_sparse else self._numbers
                taken[column, is_sparse] = gather(column, rows, parts)
        return tuple(taken[each] for each in wanted)

    def _numbers(
        self, column: Column, rows: np.ndarray, parts: Sequence[tuple[int, np.ndarray, np.ndarray]]
    ) -> np.ndarray:
        pieces = self._pieces[column]
        out = aligned((len(rows), *column.shape), column.dtype, column in self._sparse)
        if not parts and isinstance(pieces[0], np.ndarray):
            # All numbers are in range. NumPy writes straight to `out` only in the mode "clip".
            return np.take(pieces[0], rows, 0, out, "clip")
        for piece, places, local in parts or [(0, np.arange(len(rows)), rows)]:
            source = pieces[piece]
            if isinstance(source, SparseRows):
                source.fill(local, out, places)
            else:
                out[places] = np.take(source, local, 0)
        return out

    def _coordinates(
        self, column: Column, rows: np.ndarray, parts: Sequence[tuple[int, np.ndarray, np.ndarray]]
    ) -> Coordinates:
        found = []
        for piece, places, local in parts or [(0, np.arange(len(rows)), rows)]:
            source = self._pieces[column][piece]
            if isinstance(source, SparseRows):
                row, indices, values = source.stored(local, column.size)
            else:
                whole = np.take(source, local, 0)
                row, indices = np.nonzero(whole)
                values = whole[row, indices]
            found.append((places[row], indices, values))
        row, indices, values = map(np.concatenate, zip(*found, strict=True))
        order = np.lexsort((indices, row))
        order = order[values[order] != 0]
        return Coordinates(np.stack([row, indices], axis=1)[order].astype(np.int64), values[order])

    def _by_piece(self, rows: np.ndarray) -> list[tuple[int, np.ndarray, np.ndarray]]:
        """Groups rows by piece: the piece's number, their places in `rows`, their numbers in the piece."""
        ascending = np.argsort(rows)
        cuts = np.searchsorted(rows, self._bounds, sorter=ascending)
        places = [ascending[low:high] for low, high in itertools.pairwise(cuts)]
        return [(i, at, rows[at] - self._bounds[i]) for i, at in enumerate(places) if len(at)]


def _gathered(
    pieces: Sequence[EncodedRows], rows: np.ndarray, parts: Sequence[tuple[int, np.ndarray, np.ndarray]]
) -> np.ndarray:
    """Gathers mapped rows of an encoded column, as an array of `Encoded`."""
    if not parts:
        return pieces[0].take(rows)
    out = np.empty(len(rows), object)
    for piece, places, local in parts:
        out[places] = pieces[piece].take(local)
    return out


def _check_chosen(chosen: np.ndarray | None, rows: int) -> None:
    if chosen is None or len(chosen) == 0:
        return
    if chosen[0] < 0 or chosen[-1] >= rows or (chosen[:-1] >= chosen[1:]).any():
        raise ValueError(f"chosen must be ascending numbers of the {rows} rows. Received: {chosen}")


def aligned(shape: tuple[int, ...], dtype: str, zeros: bool = False) -> np.ndarray:
    """Makes an array, of zeros or not initialized, that TensorFlow can use without a copy."""
    size = math.prod(shape) * np.dtype(dtype).itemsize
    memory = (np.zeros if zeros else np.empty)(size + _ALIGNMENT, np.uint8)
    start = -memory.ctypes.data % _ALIGNMENT
    return memory[start : start + size].view(dtype).reshape(shape)


def read_column(shards: Shards, column: Column) -> np.ndarray:
    """Returns all rows of a column of numbers, in the data's order, shape `(rows, *shape)`."""
    number = shards.distinct.index(column)
    parts = tuple(Part(part.rows, (part.files[number],)) for part in shards.parts)
    _, pieces = map_columns(Shards(shards.url, (column,), parts), 0, shards.rows)
    return dense(pieces[column], column)
