"""A rank's rows: mapped from the shards, cut into batches, in a new order each epoch."""

from __future__ import annotations

import itertools
import math
import os
import socket
from collections.abc import Iterator

import numpy as np

from hvdkeras.data.columns import Column, row_bytes
from hvdkeras.data.shards import Shards
from hvdkeras.data.store import local_path, map_rows, open_filesystem

# Each block costs a call into Python and each piece of the data that it touches a few microseconds, whatever
# they give. So many batches are gathered at once: as many as make the calls cheap and still fit in a cache,
# more where there are many pieces, within a bound on the memory.
_BLOCK_BYTES = 4 << 20
_BLOCK_PIECES = 2
_MOST_BYTES = 32 << 20
# What TensorFlow asks of memory that it takes over instead of copying it.
_ALIGNMENT = 64


def split(rows: int, fraction: float, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Chooses rows for validation.

    Args:
        rows: How many there are, at least two.
        fraction: The part for validation, between 0 and 1.
        seed: Not negative; decides which.

    Returns:
        The numbers of the rows for training and of the `round(rows * fraction)` for validation, sorted. Both
        get at least one.

    Raises:
        ValueError: There is nothing to split, or `fraction` is out of range.
    """
    if not 0 < fraction < 1:
        raise ValueError(f"fraction must lie between 0 and 1. Received: {fraction}")
    if rows < 2:
        raise ValueError(f"rows must be at least 2 for a split. Received: {rows}")
    count = min(max(round(rows * fraction), 1), rows - 1)
    # A longer seed than an epoch's, so that no epoch has this order.
    order = _permutation(rows, (seed, *b"split"))
    return np.sort(order[count:]), np.sort(order[:count])


class Rows:
    """What one rank reads.

    The ranks' numbers of rows differ by at most one and their numbers of batches not at all, because
    synchronous algorithms exchange after so many batches on all ranks together. The columns are mapped, not
    read: private memory holds blocks of a few batches and the order of an epoch, four bytes a row.

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
        chosen: Ascending numbers of the rows that the ranks share, shape (n,). Default: all.

    Attributes:
        columns: The columns, in the order in which batches have them.
        rows: Rows that this rank sees in an epoch.
        steps: Batches in an epoch, equal on all ranks.
        block_steps: Batches in a block, the last of an epoch excepted.

    Raises:
        ValueError: There are fewer rows than ranks, a number is out of range, or `chosen` does not ascend.
        FileNotFoundError: This rank does not see the store.
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
        shards.check_rows(size, chosen)
        self.columns = shards.columns
        self._rank, self._seed, self._shuffle = rank, seed, shuffle
        self._total = shards.rows if chosen is None else len(chosen)
        self._batch_size = batch_size
        self._start, self._stop = (self._total * at // size for at in (rank, rank + 1))
        self.rows = self._stop - self._start
        fewest, most = self._total // size, -(-self._total // size)
        # Every batch needs a row on every rank, which only batches of one could break.
        self.steps = min(-(-most // batch_size), fewest)
        first, last = (0, self._total - 1) if shuffle else (self._start, self._stop - 1)
        self._chosen = None
        if chosen is not None:
            share, (first, last) = chosen[first : last + 1], chosen[[first, last]].tolist()
            self._chosen = share - first
        try:
            self._bounds, self._pieces = _map(shards, first, last + 1)
        except FileNotFoundError as error:
            raise FileNotFoundError(
                f"rank {rank} on {socket.gethostname()} does not see the shards in {shards.url} "
                f"({error}). Give a folder or URL that all hosts share as store"
            ) from error
        batch_bytes = batch_size * row_bytes(shards.distinct)
        wanted = max(_BLOCK_BYTES // batch_bytes, -(-(len(self._bounds) - 1) // _BLOCK_PIECES))
        self.block_steps = max(1, min(wanted, _MOST_BYTES // batch_bytes))
        self._ordered: tuple[int, np.ndarray] | None = None

    @property
    def batch_sizes(self) -> np.ndarray:
        """Rows of each batch of an epoch, shape (steps,)."""
        return np.diff(self._cuts(0, self.steps))

    def batches(self, epoch: int, first_step: int = 0) -> Iterator[tuple[np.ndarray, ...]]:
        """Yields an epoch's batches, one array of shape (rows of the batch, *shape) for each column.

        Every row comes once. The order depends on the seed and the epoch alone (without shuffle on the rank,
        too); within a batch the rows are in the data's order.

        Args:
            epoch: Its number, from 0.
            first_step: The batch to start with: those before it are left out.
        """
        for step in range(first_step, self.steps, self.block_steps):
            columns, sizes = self.block(epoch, step)
            cuts = np.cumsum([0, *sizes])
            for low, high in itertools.pairwise(cuts):
                yield tuple(column[low:high] for column in columns)

    def block(self, epoch: int, step: int) -> tuple[tuple[np.ndarray, ...], np.ndarray]:
        """Gathers `block_steps` batches at once, or those that the epoch still has.

        Args:
            epoch: Its number, from 0.
            step: The first of the batches.

        Returns:
            columns: For each column the batches' rows one after the other, shape (rows, *shape), in memory
                that TensorFlow can take without a copy.
            sizes: The rows of each of the batches, shape (k,), int64.
        """
        cuts = self._cuts(step, min(step + self.block_steps, self.steps))
        rows = self._order(epoch)[cuts[0] : cuts[-1]]
        rows = rows.astype(np.intp) if self._chosen is None else self._chosen[rows].astype(np.intp)
        for low, high in itertools.pairwise(cuts - cuts[0]):
            rows[low:high].sort()
        return self._gather(rows), np.diff(cuts)

    def _cuts(self, first: int, last: int) -> np.ndarray:
        """Where batches begin: those from `first` on, and as the end of them `last`."""
        steps = np.arange(first, last + 1)
        # Every later batch keeps at least one row.
        begins = np.minimum(steps * self._batch_size, self.rows - (self.steps - steps))
        return np.where(steps == self.steps, self.rows, begins)

    def _order(self, epoch: int) -> np.ndarray:
        """The rows that this rank takes in an epoch, in the order of the batches."""
        if self._ordered is None or self._ordered[0] != epoch:
            # Before another one is made: not two orders at a time.
            self._ordered = None
            self._ordered = epoch, self._new_order(epoch)
        return self._ordered[1]

    def _new_order(self, epoch: int) -> np.ndarray:
        if self._shuffle:
            order = _permutation(self._total, (self._seed, epoch))
            return order[self._start : self._stop]
        return _permutation(self.rows, (self._seed, epoch, self._rank))

    def _gather(self, rows: np.ndarray) -> tuple[np.ndarray, ...]:
        """Gathers mapped rows in the order in which they are given."""
        parts = self._by_piece(rows) if len(self._bounds) > 2 else []
        taken = {}
        for column, pieces in self._pieces.items():
            out = _aligned((len(rows), *column.shape), column.dtype)
            if not parts:
                # The numbers are right by construction, and only with "clip" NumPy writes straight to out.
                np.take(pieces[0], rows, 0, out, "clip")
            for piece, places, local in parts:
                out[places] = np.take(pieces[piece], local, 0)
            taken[column] = out
        return tuple(taken[column] for column in self.columns)

    def _by_piece(self, rows: np.ndarray) -> list[tuple[int, np.ndarray, np.ndarray]]:
        """Of each piece with some of the rows: its number, their places in `rows`, their numbers in it."""
        ascending = np.argsort(rows)
        cuts = np.searchsorted(rows, self._bounds, sorter=ascending)
        places = [ascending[low:high] for low, high in itertools.pairwise(cuts)]
        return [(i, at, rows[at] - self._bounds[i]) for i, at in enumerate(places) if len(at)]


def _check_chosen(chosen: np.ndarray | None, rows: int) -> None:
    if chosen is None or len(chosen) == 0:
        return
    if chosen[0] < 0 or chosen[-1] >= rows or (chosen[:-1] >= chosen[1:]).any():
        raise ValueError(f"chosen must be ascending numbers of the {rows} rows. Received: {chosen}")


def _aligned(shape: tuple[int, ...], dtype: str) -> np.ndarray:
    size = math.prod(shape) * np.dtype(dtype).itemsize
    memory = np.empty(size + _ALIGNMENT, np.uint8)
    start = -memory.ctypes.data % _ALIGNMENT
    return memory[start : start + size].view(dtype).reshape(shape)


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
