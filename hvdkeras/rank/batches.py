"""The rows that the ranks train on in each step."""

from __future__ import annotations

import numpy as np
import tensorflow as tf


class Batches:
    """Counts the steps of an epoch, and has this rank's part of the rows of each.

    Args:
        shares: for each batch of an epoch the rank's part of the rows that all ranks train on in it, shape
            `(steps,)`: batches of unequal size then count as one joined batch would.

    Attributes:
        step: steps that are done, int64.
    """

    def __init__(self, shares: np.ndarray) -> None:
        self._shares = tf.constant(shares, tf.float32)
        self.step = tf.Variable(0, trainable=False, dtype=tf.int64)

    def share(self) -> tf.Tensor:
        """Returns the rank's part of the rows of the step under way, shape `()`, float32."""
        return self._shares[self.step % self._shares.shape[0]]

    def is_last(self) -> tf.Tensor:
        """Returns whether the epoch ends with the step under way, shape `()`, bool."""
        return (self.step + 1) % self._shares.shape[0] == 0
