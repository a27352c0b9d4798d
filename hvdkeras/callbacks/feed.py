"""A rank's rows as the dataset that `model.fit` reads."""

from __future__ import annotations

from typing import Any

import keras
import numpy as np
import tensorflow as tf

from hvdkeras.data.decoding import DecodedRows
from hvdkeras.data.rows import Rows
from hvdkeras.models.targets import Batch, nested


class Feed(keras.callbacks.Callback):
    """Batches of a rank's rows, in the order of the epoch under way.

    It is a callback, too: Keras iterates over its dataset anew in each epoch, but gives the number of the
    epoch to callbacks only.

    Args:
        rows: the rank's rows.
        batch: how their columns make up a batch.
        first_epoch: the epoch in which the training starts or resumes.
        first_step: the batch of that epoch from which it does. Keras numbers an epoch's batches from 0
            nevertheless.

    Raises:
        ValueError: if an epoch has no batch `first_step`.
    """

    def __init__(
        self, rows: Rows | DecodedRows, batch: Batch, first_epoch: int = 0, first_step: int = 0
    ) -> None:
        super().__init__()
        if not 0 <= first_step < rows.steps:
            raise ValueError(
                f"first_step must be from 0 to {rows.steps - 1}, the last batch of an epoch. "
                f"Received: {first_step}"
            )
        self._rows, self._first_epoch, self._first_step = rows, first_epoch, first_step
        self._batch = batch
        self.begin(first_epoch)

    def begin(self, epoch: int) -> int:
        """Sets the epoch that the next iteration over the dataset yields; returns its number of batches."""
        first_step = self._first_step if epoch == self._first_epoch else 0
        self._next = epoch, first_step
        return self._rows.steps - first_step

    def on_epoch_begin(self, epoch: int, logs: dict[str, float] | None = None) -> None:
        # All callbacks share Keras's dict, in which it can't know that the first epoch is shorter.
        self.params["steps"] = self.begin(epoch)

    def dataset(self) -> tf.data.Dataset:
        """Returns batches: `(inputs, labels)`, `(inputs, labels, weights)`, or inputs as Keras's `fit` packs
        them where there are no labels.

        An iteration yields the epoch that `begin` has set. The dataset's length is that of a whole epoch.
        After an epoch that began in its middle Keras warns "Your input ran out of data" and continues with
        the next one.
        """
        # One Python function makes all batches: more threads, and their tuning, would only slow the training.
        options = tf.data.Options()
        options.autotune.enabled = False
        options.threading.private_threadpool_size = 1
        options.threading.max_intra_op_parallelism = 1
        rows = self._rows
        # Each iteration keeps its own epoch, so that a second one that begins meanwhile does not change it.
        offsets = tf.data.Dataset.range(0, rows.steps, rows.block_steps)
        places = offsets.scan((np.int64(0), np.int64(0)), self._place)
        places = places.take_while(lambda epoch, step: step < rows.steps)
        blocks = places.map(self._block).prefetch(1)
        batches = blocks.flat_map(lambda block, sizes: tf.data.Dataset.from_tensors(block).rebatch(sizes))
        # `repeat` and `take` make the length known to Keras, which would otherwise cut all epochs to the
        # length of the first. Nothing is repeated: an iteration yields its epoch once. Two batches are
        # prefetched, or the step before would wait while a batch is cut out of its block.
        return batches.repeat().take(rows.steps).prefetch(2).with_options(options)

    def _place(self, iteration: tuple[tf.Tensor, tf.Tensor], offset: tf.Tensor) -> tuple[Any, Any]:
        """Returns the iteration's epoch and first step, then the epoch and step of the block at `offset`."""
        epoch, first_step = tf.numpy_function(self._start, [*iteration, offset], [tf.int64] * 2)
        epoch.set_shape(())
        first_step.set_shape(())
        return (epoch, first_step), (epoch, first_step + offset)

    def _start(self, epoch: np.int64, first_step: np.int64, offset: np.int64) -> tuple[np.int64, np.int64]:
        """Takes the epoch that `begin` has set, at an iteration's first block; keeps it for the others."""
        if offset == 0:
            (epoch, first_step), self._next = self._next, (0, self._rows.steps)
        return np.int64(epoch), np.int64(first_step)

    def _block(self, epoch: tf.Tensor, step: tf.Tensor) -> tuple[Any, tf.Tensor]:
        columns = self._rows.columns
        types = [tf.as_dtype(column.dtype) for column in columns]
        places = [tf.int64 for _ in self._batch.sparse]
        # TensorFlow takes over the arrays of a numpy_function; those of from_generator it would copy.
        sizes, *found = tf.numpy_function(self._gather, [epoch, step], [tf.int64, *types, *places])
        tensors, places = found[: len(columns)], found[len(columns) :]
        sizes.set_shape((None,))
        for number, indices in zip(self._batch.sparse, places, strict=True):
            shape = tf.stack([tf.reduce_sum(sizes), columns[number].size])
            tensors[number] = tf.SparseTensor(
                tf.ensure_shape(indices, (None, 2)), tf.ensure_shape(tensors[number], (None,)), shape
            )
        for number, (tensor, column) in enumerate(zip(tensors, columns, strict=True)):
            if number not in self._batch.sparse:
                tensor.set_shape((None, *column.shape))
        return nested(self._batch, tensors), sizes

    def _gather(self, epoch: np.int64, step: np.int64) -> list[np.ndarray]:
        sparse = self._batch.sparse
        columns, sizes = self._rows.block(int(epoch), int(step), sparse)
        numbers = [column.values if at in sparse else column for at, column in enumerate(columns)]
        return [sizes, *numbers, *(columns[at].places for at in sparse)]
