"""Losses whose gradients, weighed by the ranks' shares of the rows, add up to those of the joined batch.

A rank's gradient counts by its share of a step's rows. That is right as it is for a mean over rows, and only
for that. Other losses are corrected on the way: what Keras divides by another number than the rows (those
that a mask leaves, sample weights) by a factor, and what is no sum over rows at all is computed on the
predictions of all ranks.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from mpi4py import MPI

from hvdkeras.mpi.collectives import gathered, gathered_rows
from hvdkeras.rank.batches import Batches


class JoinedLosses:
    """Corrects the losses that a training step computes through `keras.losses.Loss`.

    A loss that returns one value for each row is taken to depend on that row alone (but for Keras's Circle).
    What a step computes without a `Loss` (`add_loss`, formulas in a `train_step` of the user's own) is taken
    to be a mean over rows, or to have nothing to do with rows, as regularisers.

    Args:
        comm: the ranks.
        batches: the rows that the ranks have in a step.
        timeout: seconds that a rank waits for the others.
    """

    def __init__(self, comm: MPI.Comm, batches: Batches, timeout: float) -> None:
        self._comm, self._batches, self._timeout = comm, batches, timeout
        self._inside = False

    @contextlib.contextmanager
    def corrected(self) -> Iterator[None]:
        """While it is open, losses of this process are those of the joined batch."""
        loss_class, original = keras.losses.Loss, keras.losses.Loss.__call__

        def joined(loss: Any, y_true: Any, y_pred: Any, sample_weight: Any = None) -> tf.Tensor:
            if self._inside:  # a loss that another one calls is a part of its formula
                return original(loss, y_true, y_pred, sample_weight)
            self._inside = True
            try:
                return self._joined(original, loss, y_true, y_pred, sample_weight)
            finally:
                self._inside = False

        loss_class.__call__ = joined
        try:
            yield
        finally:
            loss_class.__call__ = original

    def _joined(self, original: Any, loss: Any, y_true: Any, y_pred: Any, sample_weight: Any) -> tf.Tensor:
        with _recorded(loss) as returned:
            value = original(loss, y_true, y_pred, sample_weight)
        (values,) = returned
        reduction = loss.reduction
        if _concerns_the_batch(loss, values, y_pred):
            return self._on_all_rows(original, loss, y_true, y_pred, sample_weight)
        if reduction in ("sum", "none", None):
            return value / tf.cast(self._batches.share(), value.dtype)
        weighted = reduction == "mean_with_sample_weight" and sample_weight is not None
        masked = any(_mask(tensor) is not None for tensor in (y_pred, values))
        if not (weighted or masked or None in values.shape[1:]):
            return value  # a mean over rows
        weights = original(_Weights(values), y_true, y_pred, sample_weight if weighted else None)
        part = tf.math.divide_no_nan(weights, self._sum(weights))
        return value * tf.cast(part / self._batches.share(), value.dtype)

    def _sum(self, number: tf.Tensor) -> tf.Tensor:
        """The sum over the ranks of a number that every rank has."""

        def total(own: np.ndarray) -> np.ndarray:
            what = f"the weights of the rows of the other {self._comm.size - 1} ranks"
            return gathered(self._comm, own, self._timeout, what).sum(axis=0)

        return tf.ensure_shape(tf.numpy_function(total, [number], number.dtype), ())

    def _on_all_rows(
        self, original: Any, loss: Any, y_true: Any, y_pred: Any, sample_weight: Any
    ) -> tf.Tensor:
        """The loss of all ranks' predictions, of which this rank's alone have gradients."""
        mask = _mask(y_pred)
        y_true, predicted, sample_weight = keras.tree.map_structure(
            lambda tensor: None if tensor is None else self._all_rows(tf.convert_to_tensor(tensor)),
            (y_true, y_pred, sample_weight),
        )
        if mask is not None:
            predicted._keras_mask = self._all_rows(mask)
        value = original(loss, y_true, predicted, sample_weight)
        # The value is every rank's; the gradient is this rank's addend, whatever its share.
        factor = tf.cast(1.0 / self._batches.share() - 1.0, value.dtype)
        return value + (value - tf.stop_gradient(value)) * factor

    def _all_rows(self, tensor: tf.Tensor) -> tf.Tensor:
        everyone, start = tf.numpy_function(self._gather, [tensor], [tensor.dtype, tf.int64])
        end = start + tf.shape(tensor, tf.int64)[0]
        everyone.set_shape((None, *tensor.shape[1:]))
        return tf.concat([everyone[:start], tensor, everyone[end:]], axis=0)

    def _gather(self, own: np.ndarray) -> tuple[np.ndarray, np.int64]:
        """All ranks' rows, in the ranks' order, and the place of this rank's own."""
        comm, what = self._comm, f"the predictions of the other {self._comm.size - 1} ranks"
        counts = gathered(comm, np.array(len(own)), self._timeout, what)
        everyone = gathered_rows(comm, own, counts, self._timeout, what)
        return everyone, np.int64(counts[: comm.rank].sum())


class _Weights(keras.losses.Loss):
    """The sum of the weights by which Keras multiplies the values that a loss has returned."""

    def __init__(self, values: tf.Tensor) -> None:
        super().__init__(reduction="sum", dtype="float32")
        self._values = values

    def call(self, y_true: Any, y_pred: Any) -> tf.Tensor:
        ones = tf.ones_like(self._values, tf.float32)
        if (mask := _mask(self._values)) is not None:
            ones._keras_mask = mask
        return ones


@contextlib.contextmanager
def _recorded(loss: Any) -> Iterator[list[tf.Tensor]]:
    """Notes what the loss's `call` returns: the values before they are weighed and reduced."""
    returned, call = [], loss.call

    def recording(y_true: Any, y_pred: Any) -> Any:
        values = call(y_true, y_pred)
        returned.append(tf.convert_to_tensor(values))
        return values

    loss.call = recording
    try:
        yield returned
    finally:
        del loss.call


def _concerns_the_batch(loss: Any, values: tf.Tensor, y_pred: Any) -> bool:
    """Whether a loss does not return a value for each row, or one that depends on other rows, too."""
    if values.shape.rank == 0 or isinstance(loss, getattr(keras.losses, "Circle", ())):
        return True
    return values.shape[0] != keras.tree.flatten(y_pred)[0].shape[0]


def _mask(tensor: Any) -> tf.Tensor | None:
    return getattr(tensor, "_keras_mask", None)
