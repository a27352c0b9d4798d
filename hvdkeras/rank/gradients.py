"""Gradients averaged over the ranks before a Keras optimizer sees them.

Horovod's own `DistributedOptimizer` does nothing under Keras 3, without a word. Here the optimizer's `apply`
is given the mean gradient, so that clipping, loss scaling, constraints and moving averages stay Keras's own.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import tensorflow as tf
from mpi4py import MPI

from hvdkeras.algorithm import GradientAveraging
from hvdkeras.data.decoding import DecodedRows
from hvdkeras.data.rows import Rows
from hvdkeras.models.optimizers import check_accumulation, optimizers_of, others_refused
from hvdkeras.mpi.collectives import gathered
from hvdkeras.rank.batches import Batches
from hvdkeras.rank.losses import JoinedLosses
from hvdkeras.rank.sums import OverHorovod, OverMPI, horovod_has_nccl


def average(
    model: Any, rows: Rows | DecodedRows, comm: MPI.Comm, averaging: GradientAveraging, timeout: float
) -> tuple[list[Any], OverMPI | OverHorovod]:
    """Has every step of the model's optimizers use the mean gradient of all ranks; collective.

    On GPUs the gradients go through Horovod's allreduce where Horovod was built with NCCL; otherwise through
    MPI, on one flat buffer. Gradients of a few rows of a variable, such as an embedding's, travel as rows.

    Args:
        model: the rank's compiled Keras model.
        rows: the rows that it trains on.
        comm: the ranks that train it together.
        averaging: how gradients are averaged.
        timeout: seconds that a rank waits for the others.

    Returns:
        Variables, beyond the model's and its optimizers', that the training depends on; the sums, which count
        their seconds.
    """
    # XLA can't call out to MPI.
    model.jit_compile = False
    if tf.config.list_physical_devices("GPU") and horovod_has_nccl():
        sums = OverHorovod(comm, averaging.compression)
    else:
        sums = OverMPI(comm, timeout, averaging.compression)
    batch_sizes = gathered(comm, rows.batch_sizes, timeout, "the sizes of the other ranks' batches")
    batches = Batches(shares(batch_sizes)[comm.rank])
    losses = JoinedLosses(comm, batches, timeout)
    return join(model, batches, losses, sums, averaging.accumulation), sums


def shares(batch_sizes: np.ndarray) -> np.ndarray:
    """The weight of each rank's gradient, such that unequal batches count as one joined batch would.

    Args:
        batch_sizes: rows of each rank's batch, shape `(ranks, steps)`.

    Returns:
        The part of all rows of a step that a rank has, shape `(ranks, steps)`; a step's parts add up to 1.
    """
    return batch_sizes / batch_sizes.sum(axis=0)


def join(
    model: Any, batches: Batches, losses: JoinedLosses, sums: OverMPI | OverHorovod, accumulation: int
) -> list[Any]:
    """Makes the steps of a rank's model those of one process that trains on the ranks' joined batch.

    Args:
        model: a compiled Keras model.
        batches: the rows that the ranks have in a step.
        losses: corrects the model's losses.
        sums: over the ranks.
        accumulation: batches whose mean gradient makes one step of the optimizer. A group ends with its
            epoch, even if it is shorter.

    Returns:
        What is kept from batch to batch.

    Raises:
        ValueError: `accumulation` is above 1, and the model has more than one optimizer.
    """
    check_accumulation(model, accumulation)
    if not model.optimizer.built:
        model.optimizer.build(model.trainable_variables)
    averaged = [
        AveragedGradients(optimizer, sums, batches, accumulation) for optimizer in optimizers_of(model)
    ]
    own_step = model.train_step

    def train_step(*arguments: Any) -> Any:
        with losses.corrected(), others_refused(lambda _: any(each.applying for each in averaged)):
            logs = own_step(*arguments)
        batches.step.assign_add(1)
        return logs

    model.train_step = train_step
    return [batches.step, *(variable for each in averaged for variable in each.variables)]


class AveragedGradients:
    """Takes the place of a Keras optimizer's `apply`, and calls it with the mean of all ranks' gradients.

    Args:
        optimizer: a Keras optimizer; built, if gradients are to be accumulated.
        sums: over the ranks.
        batches: the rows that the ranks have in a step, by which gradients are weighed.
        accumulation: see `join`.

    Attributes:
        applying: whether the optimizer is being given a mean gradient.
    """

    def __init__(
        self, optimizer: Any, sums: OverMPI | OverHorovod, batches: Batches, accumulation: int
    ) -> None:
        self._apply, self._over_ranks, self._batches = optimizer.apply, sums, batches
        self._accumulation, self.applying = accumulation, False
        if accumulation > 1:
            variables = getattr(optimizer, "inner_optimizer", optimizer)._trainable_variables
            self._sums = [tf.Variable(tf.zeros(v.shape), trainable=False) for v in variables]
            self._count = tf.Variable(0.0, trainable=False)
        optimizer.apply = self._each_group if accumulation > 1 else self._each_batch

    @property
    def variables(self) -> list[Any]:
        """What is kept from batch to batch."""
        return [] if self._accumulation == 1 else [*self._sums, self._count]

    def _each_batch(self, grads: Sequence[Any], trainable_variables: Sequence[Any] | None = None) -> None:
        self._apply_mean(self._weighted(grads), trainable_variables)

    def _each_group(self, grads: Sequence[Any], trainable_variables: Sequence[Any] | None = None) -> None:
        used = [gradient is not None for gradient in grads]
        for total, gradient in zip(self._sums, self._weighted(grads), strict=True):
            if gradient is not None:
                total.assign_add(tf.cast(tf.convert_to_tensor(gradient), tf.float32))
        self._count.assign_add(1.0)
        ends = tf.logical_or(self._count >= self._accumulation, self._batches.is_last())
        tf.cond(ends, lambda: self._end_group(used, trainable_variables), lambda: None)

    def _end_group(self, used: Sequence[bool], variables: Sequence[Any] | None) -> None:
        means = [
            total / self._count if there else None for total, there in zip(self._sums, used, strict=True)
        ]
        self._apply_mean(means, variables)
        for variable in (*self._sums, self._count):
            variable.assign(tf.zeros_like(variable))

    def _weighted(self, gradients: Sequence[Any]) -> list[Any]:
        share = self._batches.share()

        def weighted(gradient: Any) -> Any:
            if isinstance(gradient, tf.IndexedSlices):
                return _with_values(gradient, tf.cast(share, gradient.dtype) * gradient.values)
            return None if gradient is None else tf.cast(share, gradient.dtype) * gradient

        return [weighted(gradient) for gradient in gradients]

    def _apply_mean(self, gradients: Sequence[Any], variables: Sequence[Any] | None) -> None:
        dense = [g for g in gradients if g is not None and not isinstance(g, tf.IndexedSlices)]
        totals = iter(self._totals(dense) if dense else [])
        means = []
        for gradient in gradients:
            if isinstance(gradient, tf.IndexedSlices):
                rows = self._over_ranks.rows(_with_values(gradient, tf.cast(gradient.values, tf.float32)))
                gradient = _with_values(rows, tf.cast(rows.values, gradient.dtype))
            elif gradient is not None:
                gradient = next(totals)
            means.append(gradient)
        self.applying = True
        try:
            self._apply(means, variables)
        finally:
            self.applying = False

    def _totals(self, gradients: Sequence[tf.Tensor]) -> list[tf.Tensor]:
        """The sums over the ranks of tensors, which travel as one vector."""
        flat = tf.concat([tf.reshape(tf.cast(g, tf.float32), [-1]) for g in gradients], axis=0)
        # Of some gradients, such as those of normalisations, the shape is known only in the step.
        sizes = tf.stack([tf.size(gradient) for gradient in gradients])
        parts = tf.split(self._over_ranks.total(flat), sizes, num=len(gradients))
        totals = []
        for part, like in zip(parts, gradients, strict=True):
            total = tf.cast(tf.reshape(part, tf.shape(like)), like.dtype)
            total.set_shape(like.shape)
            totals.append(total)
        return totals


def _with_values(rows: tf.IndexedSlices, values: tf.Tensor) -> tf.IndexedSlices:
    return tf.IndexedSlices(values, rows.indices, rows.dense_shape)
