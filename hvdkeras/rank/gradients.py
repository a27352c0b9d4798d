"""Gradients averaged over the ranks before a Keras optimizer sees them.

Horovod's own `DistributedOptimizer` does nothing under Keras 3, without a word. Here the optimizer's `apply`
is given the mean gradient, so that clipping, loss scaling, constraints and moving averages stay Keras's own.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import tensorflow as tf
from mpi4py import MPI

from hvdkeras.algorithm import GradientAveraging
from hvdkeras.data.decoding import DecodedRows
from hvdkeras.data.rows import Rows
from hvdkeras.launch import gpu
from hvdkeras.models.optimizers import check_accumulation, optimizers_of, others_refused
from hvdkeras.mpi.collectives import gathered
from hvdkeras.mpi.waiting import wait
from hvdkeras.rank.batches import Batches
from hvdkeras.rank.losses import JoinedLosses

Total = Callable[[tf.Tensor], tf.Tensor]
"""The sum over the ranks of a flat float32 tensor."""


def average(
    model: Any, rows: Rows | DecodedRows, comm: MPI.Comm, averaging: GradientAveraging, timeout: float
) -> list[Any]:
    """Has every step of the model's optimizers use the mean gradient of all ranks; collective.

    On GPUs the gradients go through Horovod's allreduce where Horovod was built with NCCL; otherwise through
    MPI on one flat buffer.

    Args:
        model: the rank's compiled Keras model.
        rows: the rows that it trains on.
        comm: the ranks that train it together.
        averaging: how gradients are averaged.
        timeout: seconds that a rank waits for the others.

    Returns:
        Variables, beyond the model's and its optimizers', that the training depends on.
    """
    # XLA can't call out to MPI.
    model.jit_compile = False
    if tf.config.list_physical_devices("GPU") and horovod_has_nccl():
        total = over_horovod(comm, averaging.compression)
    else:
        total = over_mpi(comm, timeout, averaging.compression)
    batch_sizes = gathered(comm, rows.batch_sizes, timeout, "the sizes of the other ranks' batches")
    batches = Batches(shares(batch_sizes)[comm.rank])
    losses = JoinedLosses(comm, batches, timeout)
    return join(model, batches, losses, total, averaging.accumulation)


def shares(batch_sizes: np.ndarray) -> np.ndarray:
    """The weight of each rank's gradient, such that unequal batches count as one joined batch would.

    Args:
        batch_sizes: rows of each rank's batch, shape `(ranks, steps)`.

    Returns:
        The part of all rows of a step that a rank has, shape `(ranks, steps)`; a step's parts add up to 1.
    """
    return batch_sizes / batch_sizes.sum(axis=0)


def join(model: Any, batches: Batches, losses: JoinedLosses, total: Total, accumulation: int) -> list[Any]:
    """Makes the steps of a rank's model those of one process that trains on the ranks' joined batch.

    Args:
        model: a compiled Keras model.
        batches: the rows that the ranks have in a step.
        losses: corrects the model's losses.
        total: sums a tensor over the ranks.
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
        AveragedGradients(optimizer, total, batches, accumulation) for optimizer in optimizers_of(model)
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
        total: sums a tensor over the ranks.
        batches: the rows that the ranks have in a step, by which gradients are weighed.
        accumulation: see `join`.

    Attributes:
        applying: whether the optimizer is being given a mean gradient.
    """

    def __init__(self, optimizer: Any, total: Total, batches: Batches, accumulation: int) -> None:
        self._apply, self._total, self._batches = optimizer.apply, total, batches
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
                total.assign_add(tf.cast(gradient, tf.float32))
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
        return [None if g is None else tf.cast(share, g.dtype) * tf.convert_to_tensor(g) for g in gradients]

    def _apply_mean(self, gradients: Sequence[Any], variables: Sequence[Any] | None) -> None:
        there = [gradient for gradient in gradients if gradient is not None]
        if there:
            flat = tf.concat([tf.reshape(tf.cast(g, tf.float32), [-1]) for g in there], axis=0)
            # Of some gradients, such as those of normalisations, the shape is known only in the step.
            sizes = tf.stack([tf.size(gradient) for gradient in there])
            parts = iter(zip(tf.split(self._total(flat), sizes, num=len(there)), there, strict=True))
        means = []
        for gradient in gradients:
            if gradient is not None:
                part, like = next(parts)
                gradient = tf.cast(tf.reshape(part, tf.shape(like)), like.dtype)
                gradient.set_shape(like.shape)
            means.append(gradient)
        self.applying = True
        try:
            self._apply(means, variables)
        finally:
            self.applying = False


def over_mpi(comm: MPI.Comm, timeout: float, compression: str | None) -> Total:
    """Returns a sum over MPI on one flat buffer in main memory: the fastest way where tensors are there.

    Args:
        comm: the ranks.
        timeout: seconds that a rank waits for the others.
        compression: None, or `"fp16"`: half the bytes on the way; the sums themselves are float32.
    """
    reduce = _half_precision_sum if compression == "fp16" else _full_precision_sum
    what = f"the gradients of the other {comm.size - 1} ranks"

    def sum_(vector: np.ndarray) -> np.ndarray:
        return vector if comm.size == 1 else reduce(comm, vector, lambda done: wait(done, timeout, what))

    def total(flat: tf.Tensor) -> tf.Tensor:
        return tf.ensure_shape(tf.numpy_function(sum_, [flat], tf.float32), flat.shape)

    return total


def over_horovod(comm: MPI.Comm, compression: str | None) -> Total:
    """Returns Horovod's sum, which NCCL computes on tensors that are on GPUs.

    Args:
        comm: the ranks.
        compression: None, or `"fp16"` to send and sum in half precision.
    """
    import horovod.tensorflow as hvd

    hvd.init(comm)
    used = hvd.Compression.fp16 if compression == "fp16" else hvd.Compression.none
    return lambda flat: hvd.allreduce(flat, op=hvd.Sum, compression=used, name="gradients")


def horovod_has_nccl() -> bool:
    """Tells whether this environment's Horovod can sum tensors on GPUs."""
    if not gpu.horovod_is_compiled():
        return False
    import horovod.tensorflow as hvd

    return bool(hvd.nccl_built())


def _full_precision_sum(comm: MPI.Comm, vector: np.ndarray, wait_for: Callable) -> np.ndarray:
    result = np.empty_like(vector)
    wait_for(comm.Iallreduce(np.ascontiguousarray(vector), result).Test)
    return result


def _half_precision_sum(comm: MPI.Comm, vector: np.ndarray, wait_for: Callable) -> np.ndarray:
    """Each rank sums one part of the vector in float32 and hands its sum to all: MPI can't add float16."""
    length = -(-vector.size // comm.size)
    parts = np.zeros((comm.size, length), np.float16)
    parts.ravel()[: vector.size] = vector
    received = np.empty_like(parts)
    wait_for(comm.Ialltoall(parts.view(np.uint16), received.view(np.uint16)).Test)
    own = received.astype(np.float32).sum(axis=0).astype(np.float16)
    wait_for(comm.Iallgather(own.view(np.uint16), received.view(np.uint16)).Test)
    return received.ravel()[: vector.size].astype(np.float32)
