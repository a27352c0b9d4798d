"""Random orders of rows, and splits of rows into those for training and for validation."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from hvdkeras.data.columns import DataError


@dataclass(frozen=True)
class Split:
    """Rows held out for validation, chosen at random. Plain data: every process finds the same rows.

    Attributes:
        rows: number of all rows, at least two.
        fraction: the part of them for validation, between 0 and 1. Both sides get at least one row.
        seed: decides which rows are held out; not negative.

    Raises:
        ValueError: `fraction` is out of range, or there are fewer than two rows.
    """

    rows: int
    fraction: float
    seed: int

    def __post_init__(self) -> None:
        if not 0 < self.fraction < 1:
            raise ValueError(f"fraction must lie between 0 and 1. Received: {self.fraction}")
        if self.rows < 2:
            raise ValueError(f"rows must be at least 2 for a split. Received: {self.rows}")

    @property
    def validation_rows(self) -> int:
        """Number of the rows for validation: `rows * fraction`, rounded."""
        return min(max(round(self.rows * self.fraction), 1), self.rows - 1)

    @property
    def training_rows(self) -> int:
        """Number of the rows for training."""
        return self.rows - self.validation_rows

    def indices(self) -> tuple[np.ndarray, np.ndarray]:
        """Draws the rows.

        Returns:
            The ascending numbers of the rows for training, shape `(training_rows,)`, and of those for
            validation, shape `(validation_rows,)`.
        """
        # A longer seed than an epoch's, so that no epoch has this order.
        order = permutation(self.rows, (self.seed, *b"split"))
        count = self.validation_rows
        return np.sort(order[count:]), np.sort(order[:count])


@dataclass(frozen=True)
class MarkedSplit:
    """Rows held out for validation, marked by a column of the data. Plain data, a bit for each row.

    Attributes:
        rows: number of all rows.
        bits: `numpy.packbits` of the marks.
    """

    rows: int
    bits: bytes

    @classmethod
    def of(cls, marks: np.ndarray, name: str) -> MarkedSplit:
        """Makes a split of marks.

        Args:
            marks: whether each row is for validation, shape `(rows,)`, bool.
            name: of the column, for the message.

        Raises:
            DataError: a side gets no row.
        """
        marked = int(np.count_nonzero(marks))
        if not 0 < marked < len(marks):
            raise DataError(
                f"column {name!r} must be true for some rows, those for validation, and false for others. "
                f"Received: true for {marked} of {len(marks)} rows"
            )
        return cls(len(marks), np.packbits(marks).tobytes())

    @property
    def validation_rows(self) -> int:
        """Number of the rows for validation."""
        return int(np.count_nonzero(self._marks()))

    @property
    def training_rows(self) -> int:
        """Number of the rows for training."""
        return self.rows - self.validation_rows

    def indices(self) -> tuple[np.ndarray, np.ndarray]:
        """Returns the numbers of the rows, as `Split.indices` does."""
        marks = self._marks()
        return np.flatnonzero(~marks), np.flatnonzero(marks)

    def _marks(self) -> np.ndarray:
        return np.unpackbits(np.frombuffer(self.bits, np.uint8), count=self.rows).astype(bool)


def permutation(rows: int, seed: tuple[int, ...]) -> np.ndarray:
    """Returns the numbers from 0 to `rows - 1` in a random order, in four bytes each if they fit."""
    order = np.arange(rows, dtype=np.uint32 if rows <= np.iinfo(np.uint32).max else np.int64)
    np.random.default_rng(seed).shuffle(order)
    return order
