"""A rank's rows: mapped from the shards, cut into batches, in a new order each epoch."""

from __future__ import annotations

import itertools
import os
import socket
from collections.abc import Iterator

import numpy as np

from hvdkeras.data.columns import Column, row_bytes
from hvdkeras.data.shards import Shards
from hvdkeras.data.store import local_path, map_rows, open_filesystem

# Each piece of the data that a gather touches costs a few microseconds, whatever it gives. Where there are
# many pieces, several batches are gathered at once, within this memory.
_BLOCK_PIECES = 2
_BLOCK_BYTES = 32 << 20


class Rows:
    """What one rank reads.

    The ranks' numbers of rows differ by at most one and their numbers of batches not at all, because
    synchronous algorithms exchange after so many batches on all ranks together. The columns are mapped, not
    read: private memory holds a batch and the order of an epoch, four bytes a row.

    Shards behind a URL are copied to this machine first, only the rows that this rank maps, to files without
    a name that vanish with the process.

    Args:
        shards: The data.
        rank: This rank, from 0.
        size: Number of ranks.
        batch_size: Rows in a batch. The last batch of an epoch has the remaining ones. Where it is 1 and some
            ranks have a row more than others, their last batch has two rows.
        seed: Not negative; the same on all ranks.
        shuffle: False: the rank keeps a contiguous share of the rows and takes them in a new order each
            epoch. True: each epoch deals all rows out anew, so that the rank maps all of them.

    Attributes:
        columns: The columns, in the order in which batches have them.
        rows: Rows that this rank sees in an epoch.
        steps: Batches in an epoch, equal on all ranks.

    Raises:
        ValueError: There are fewer rows than ranks, or a number is out of range.
        FileNotFoundError: This rank does not see the store.
    """

    def __init__(
        self, shards: Shards, rank: int, size: int, batch_size: int, seed: int, shuffle: bool = False
    ) -> None:
        if not 0 <= rank < size:
            raise ValueError(f"rank must be from 0 to size - 1. Received: rank={rank}, size={size}")
        if batch_size < 1:
            raise ValueError(f"batch_size must be positive. Received: {batch_size}")
        shards.check_rows(size)
        self.columns = shards.columns
        self._rank, self._seed, self._shuffle = rank, seed, shuffle
        self._total, self._batch_size = shards.rows, batch_size
        self._start, self._stop = (self._total * at // size for at in (rank, rank + 1))
        self.rows = self._stop - self._start
        fewest, most = self._total // size, -(-self._total // size)
        # Every batch needs a row on every rank, which only batches of one could break.
        self.steps = min(-(-most // batch_size), fewest)
        mapped = (0, self._total) if shuffle else (self._start, self._stop)
        try:
            self._bounds, self._pieces = _map(shards, *mapped)
        except FileNotFoundError as error:
            raise FileNotFoundError(
                f"rank {rank} on {socket.gethostname()} does not see the shards in {shards.url} "
                f"({error}). Give a folder or URL that all hosts share as store"
            ) from error
        batch_bytes = batch_size * row_bytes(shards.distinct)
        pieces = len(self._bounds) - 1
        self._block_steps = max(1, min(-(-pieces // _BLOCK_PIECES), _BLOCK_BYTES // batch_bytes))

    @property
    def batch_sizes(self) -> np.ndarray:
        """Rows of each batch of an epoch, shape (steps,)."""
        return np.diff([self._cut(step) for step in range(self.steps + 1)])

    def batches(self, epoch: int) -> Iterator[tuple[np.ndarray, ...]]:
        """Yields an epoch's batches, one array of shape (rows of the batch, *shape) for each column.

        Every row comes once. The order depends on the seed and the epoch alone (without shuffle on the rank,
        too); within a batch the rows are in the data's order.
        """
        order = self._order(epoch)
        for first in range(0, self.steps, self._block_steps):
            steps = range(first, min(first + self._block_steps, self.steps))
            cuts = [self._cut(step) for step in [*steps, steps.stop]]
            yield from self._block(order[cuts[0] : cuts[-1]], [cut - cuts[0] for cut in cuts])

    def _block(self, rows: np.ndarray, cuts: list[int]) -> Iterator[tuple[np.ndarray, ...]]:
        """Yields the batches rows[cuts[0]:cuts[1]], rows[cuts[1]:cuts[2]], ..."""
        if len(cuts) == 2:
            yield self._take(np.sort(rows).astype(np.intp))
            return
        by_place = np.argsort(rows)
        block = self._take(rows[by_place].astype(np.intp))
        place = np.empty_like(by_place)
        place[by_place] = np.arange(len(rows))
        for low, high in itertools.pairwise(cuts):
            chosen = np.sort(place[low:high])
            yield tuple(np.take(array, chosen, 0) for array in block)

    def _cut(self, step: int) -> int:
        """Where batch number `step` begins. Every later batch keeps at least one row."""
        if step == self.steps:
            return self.rows
        return min(step * self._batch_size, self.rows - (self.steps - step))

    def _order(self, epoch: int) -> np.ndarray:
        """The mapped rows that this rank takes in an epoch, in the order of the batches."""
        if self._shuffle:
            order = _permutation(self._total, (self._seed, epoch))
            return order[self._start : self._stop]
        return _permutation(self.rows, (self._seed, epoch, self._rank))

    def _take(self, rows: np.ndarray) -> tuple[np.ndarray, ...]:
        """Gathers rows, given by ascending numbers."""
        cuts = np.searchsorted(rows, self._bounds)
        counts = np.diff(cuts)
        local = rows - np.repeat(self._bounds[:-1], counts)
        used = [(piece, slice(cuts[piece], cuts[piece + 1])) for piece in np.flatnonzero(counts)]
        taken = {}
        for column, pieces in self._pieces.items():
            out = np.empty((len(rows), *column.shape), column.dtype)
            for piece, part in used:
                # The numbers are right by construction, and only with "clip" NumPy writes straight to out.
                np.take(pieces[piece], local[part], 0, out[part], "clip")
            taken[column] = out
        return tuple(taken[column] for column in self.columns)


def _permutation(rows: int, seed: tuple[int, ...]) -> np.ndarray:
    order = np.arange(rows, dtype=np.uint32 if rows <= np.iinfo(np.uint32).max else np.int64)
    np.random.default_rng(seed).shuffle(order)
    return order


def _map(shards: Shards, start: int, stop: int) -> tuple[np.ndarray, dict[Column, list[np.ndarray]]]:
    """Maps rows of the data.

    Returns:
        bounds: Where each mapped piece begins, counted from `start`, and the end of the last, shape (k + 1,).
        pieces: For every distinct column its k pieces.
    """
    ranges, at = [], 0
    for part in shards.parts:
        low, high = max(start - at, 0), min(stop - at, part.rows)
        if low < high:
            ranges.append((part, low, high))
        at += part.rows
    local = local_path(shards.url)
    distinct = shards.distinct
    if local is None:
        system, folder = open_filesystem(shards.url)
        pieces = {
            column: [
                map_rows(
                    system,
                    [(f"{folder}/{part.files[number]}", low, high) for part, low, high in ranges],
                    column.shape,
                    column.dtype,
                )
            ]
            for number, column in enumerate(distinct)
        }
        bounds = [0, stop - start]
    else:
        pieces = {
            column: [
                np.asarray(np.load(os.path.join(local, part.files[number]), mmap_mode="r"))[low:high]
                for part, low, high in ranges
            ]
            for number, column in enumerate(distinct)
        }
        bounds = np.cumsum([0, *(high - low for _, low, high in ranges)])
    return np.asarray(bounds), pieces
