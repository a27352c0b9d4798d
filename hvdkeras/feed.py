"""A rank's rows as the dataset that `model.fit` reads."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import keras
import tensorflow as tf

from hvdkeras.data.rows import Rows


class Feed(keras.callbacks.Callback):
    """Batches of a rank's rows, in the order of the epoch that Keras is in.

    It is a callback, too, because Keras reads its dataset anew each epoch without saying which one it is.

    Args:
        rows: the rank's rows; their columns are the model's inputs followed by its outputs.
        num_inputs: how many of the columns are inputs.
    """

    def __init__(self, rows: Rows, num_inputs: int) -> None:
        super().__init__()
        self._rows, self._num_inputs, self._epoch = rows, num_inputs, 0

    def on_epoch_begin(self, epoch: int, logs: dict[str, float] | None = None) -> None:
        self._epoch = epoch

    def dataset(self) -> tf.data.Dataset:
        """Returns `(inputs, outputs)` batches, single ones unwrapped; its length is the epoch's steps."""
        signature = [
            tf.TensorSpec((None, *column.shape), tf.as_dtype(column.dtype)) for column in self._rows.columns
        ]
        dataset = tf.data.Dataset.from_generator(self._batches, output_signature=self._nested(signature))
        # Batches come from one Python generator: more threads and their tuning only take time from training.
        options = tf.data.Options()
        options.autotune.enabled = False
        options.threading.private_threadpool_size = 1
        options.threading.max_intra_op_parallelism = 1
        cardinality = tf.data.experimental.assert_cardinality(self._rows.steps)
        return dataset.apply(cardinality).prefetch(4).with_options(options)

    def _batches(self) -> Iterator[tuple[Any, Any]]:
        return map(self._nested, self._rows.batches(self._epoch))

    def _nested(self, columns: Sequence[Any]) -> tuple[Any, Any]:
        inputs, outputs = tuple(columns[: self._num_inputs]), tuple(columns[self._num_inputs :])
        return (inputs if len(inputs) > 1 else inputs[0], outputs if len(outputs) > 1 else outputs[0])
