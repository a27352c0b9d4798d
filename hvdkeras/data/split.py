"""Random orders of rows, and the split of rows into those for training and those for validation."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


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


def permutation(rows: int, seed: tuple[int, ...]) -> np.ndarray:
    """Returns the numbers from 0 to `rows - 1` in a random order, in four bytes each if they fit."""
    order = np.arange(rows, dtype=np.uint32 if rows <= np.iinfo(np.uint32).max else np.int64)
    np.random.default_rng(seed).shuffle(order)
    return order
