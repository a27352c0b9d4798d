"""A rank's batches, one after the other, for tests that compare with what a rank trains on."""

import itertools

import numpy as np


def batches_of(rows, epoch, first_step=0):
    """Yields an epoch's batches from `first_step` on, one array for each column.

    Args:
        rows: the rank's `Rows` or `DecodedRows`.
        epoch: number of the epoch, from 0.
        first_step: the batch to start with.
    """
    for step in range(first_step, rows.steps, rows.block_steps):
        columns, sizes = rows.block(epoch, step)
        for low, high in itertools.pairwise(np.cumsum([0, *sizes])):
            yield tuple(column[low:high] for column in columns)
