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
from hvdkeras.mpi.collectives import gathered
from hvdkeras.mpi.waiting import wait

Total = Callable[[tf.Tensor], tf.Tensor]
"""The sum over the ranks of a flat float32 tensor."""


def average(
    model: Any, rows: Rows | DecodedRows, comm: MPI.Comm, averaging: GradientAveraging, timeout: float
) -> list[Any]:
    """Has every step of the model's optimizer use the mean gradient of all ranks; collective.

    On GPUs the gradients go through Horovod's allreduce where Horovod was built with NCCL; otherwise through
    MPI on one flat buffer.

    Args:
        model: the rank's compiled Keras model.
        rows: the rows that it trains on.
        comm: the ranks that train it together.
        averaging: how.
        timeout: seconds that a rank waits for the others.

    Returns:
        Variables, beyond the model's and its optimizer's, that the training depends on.
    """
    # XLA can't call out to MPI.
    model.jit_compile = False
    if tf.config.list_physical_devices("GPU") and horovod_has_nccl():
        total = over_horovod(comm, averaging.compression)
    else:
        total = over_mpi(comm, timeout, averaging.compression)
    batch_sizes = gathered(comm, rows.batch_sizes, timeout, "the sizes of the other ranks' batches")
    averaged = AveragedGradients(
        model.optimizer,
        model.trainable_variables,
        total,
        shares(batch_sizes)[comm.rank],
        averaging.accumulation,
    )
    return averaged.variables


class AveragedGradients:
    """Takes the place of a Keras optimizer's `apply`, and calls it with the mean of all ranks' gradients.

    Args:
        optimizer: a Keras optimizer; it is built on `variables`.
        variables: the model's trainable variables.
        total: sums a tensor over the ranks.
        shares: for each batch of an epoch the rank's part of the rows that all ranks train on in it, shape
            `(steps,)`: batches of unequal size then count as one joined batch would.
        accumulation: batches whose mean gradient makes one step of the optimizer. A group ends with its
            epoch, even if it is shorter.
    """

    def __init__(
        self, optimizer: Any, variables: Sequence[Any], total: Total, shares: np.ndarray, accumulation: int
    ) -> None:
        optimizer.build(variables)
        self._apply, self._total, self._accumulation = optimizer.apply, total, accumulation
        self._shares = tf.constant(shares, tf.float32)
        self._step = tf.Variable(0, trainable=False, dtype=tf.int64)
        if accumulation > 1:
            self._sums = [tf.Variable(tf.zeros(v.shape), trainable=False) for v in variables]
            self._count = tf.Variable(0.0, trainable=False)
        optimizer.apply = self._each_group if accumulation > 1 else self._each_batch

    @property
    def variables(self) -> list[Any]:
        """What is kept from batch to batch."""
        return [self._step] if self._accumulation == 1 else [self._step, *self._sums, self._count]

    def _each_batch(self, gradients: Sequence[Any], variables: Sequence[Any]) -> None:
        gradients = self._weighted(gradients)
        self._step.assign_add(1)
        self._apply_mean(gradients, variables)

    def _each_group(self, gradients: Sequence[Any], variables: Sequence[Any]) -> None:
        used = [gradient is not None for gradient in gradients]
        for total, gradient in zip(self._sums, self._weighted(gradients), strict=True):
            if gradient is not None:
                total.assign_add(tf.cast(gradient, tf.float32))
        self._count.assign_add(1.0)
        self._step.assign_add(1)
        full = self._count >= self._accumulation
        epoch_ends = self._step % self._shares.shape[0] == 0
        tf.cond(tf.logical_or(full, epoch_ends), lambda: self._end_group(used, variables), lambda: None)

    def _end_group(self, used: Sequence[bool], variables: Sequence[Any]) -> None:
        means = [
            total / self._count if there else None for total, there in zip(self._sums, used, strict=True)
        ]
        self._apply_mean(means, variables)
        for variable in (*self._sums, self._count):
            variable.assign(tf.zeros_like(variable))

    def _weighted(self, gradients: Sequence[Any]) -> list[Any]:
        share = self._shares[self._step % self._shares.shape[0]]
        return [None if g is None else tf.cast(share, g.dtype) * tf.convert_to_tensor(g) for g in gradients]

    def _apply_mean(self, gradients: Sequence[Any], variables: Sequence[Any]) -> None:
        pairs = [(g, v) for g, v in zip(gradients, variables, strict=True) if g is not None]
        flat = tf.concat([tf.reshape(tf.cast(g, tf.float32), [-1]) for g, _ in pairs], axis=0)
        parts = tf.split(self._total(flat), [int(np.prod(v.shape)) for _, v in pairs])
        means = [tf.cast(tf.reshape(p, v.shape), g.dtype) for p, (g, v) in zip(parts, pairs, strict=True)]
        self._apply(means, [v for _, v in pairs])


def shares(batch_sizes: np.ndarray) -> np.ndarray:
    """The weight of each rank's gradient, such that unequal batches count as one joined batch would.

    Args:
        batch_sizes: rows of each rank's batch, shape `(ranks, steps)`.

    Returns:
        The part of all rows of a step that a rank has, shape `(ranks, steps)`; a step's parts add up to 1.
    """
    return batch_sizes / batch_sizes.sum(axis=0)


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
