"""Which rows a rank trains on, in which batches, and in which order in each epoch."""

from __future__ import annotations

import numpy as np

from hvdkeras.data.split import permutation


class Share:
    """One rank's share of the rows; see `hvdkeras.data.rows.Rows`, which reads them.

    Args:
        total: rows that the ranks share.
        rank: this rank, from 0.
        size: number of ranks.
        batch_size: rows in a batch.
        seed: seed of the orders, not negative; the same on all ranks.
        shuffle: whether each epoch distributes all rows over the ranks anew.

    Attributes:
        start: the rank's first row, without `shuffle`.
        stop: the end of the rank's rows, without `shuffle`.
        rows: rows of this rank in an epoch.
        steps: batches in an epoch, equal on all ranks.
    """

    def __init__(self, total: int, rank: int, size: int, batch_size: int, seed: int, shuffle: bool) -> None:
        self._total, self._rank, self._batch_size = total, rank, batch_size
        self._seed, self._shuffle = seed, shuffle
        self.start, self.stop = (total * at // size for at in (rank, rank + 1))
        self.rows = self.stop - self.start
        fewest, most = total // size, -(-total // size)
        # Every batch has at least one row on every rank; without the bound batches of one row could be empty.
        self.steps = min(-(-most // batch_size), fewest)

    def cuts(self, first: int, last: int) -> np.ndarray:
        """Returns the first row of each batch from `first` to `last`, counted in the epoch's order."""
        steps = np.arange(first, last + 1)
        # Every later batch has at least one row.
        begins = np.minimum(steps * self._batch_size, self.rows - (self.steps - steps))
        return np.where(steps == self.steps, self.rows, begins)

    def order(self, epoch: int) -> np.ndarray:
        """Returns the numbers of the rank's rows in an epoch, in the order of the batches, shape `(rows,)`.

        They are counted from `start`; with `shuffle` from the first of all rows.
        """
        if self._shuffle:
            return permutation(self._total, (self._seed, epoch))[self.start : self.stop]
        return permutation(self.rows, (self._seed, epoch, self._rank))
