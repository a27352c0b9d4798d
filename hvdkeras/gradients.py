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

from hvdkeras.center import wait

Total = Callable[[tf.Tensor], tf.Tensor]
"""The sum over the ranks of a flat float32 tensor."""


def average(
    optimizer: Any, variables: Sequence[Any], total: Total, shares: np.ndarray, accumulation: int
) -> None:
    """Makes `optimizer.apply` use the mean of all ranks' gradients.

    Args:
        optimizer: a Keras optimizer; it is built on `variables`.
        variables: the model's trainable variables.
        total: sums a tensor over the ranks.
        shares: for each batch of an epoch the rank's part of the rows that all ranks train on in it, shape
            `(steps,)`: batches of unequal size then count as one joined batch would.
        accumulation: batches whose mean gradient makes one step of the optimizer. A group ends with its
            epoch, even if it is shorter.
    """
    optimizer.build(variables)
    apply = optimizer.apply
    steps = len(shares)
    shares = tf.constant(shares, tf.float32)
    step = tf.Variable(0, trainable=False, dtype=tf.int64)

    def averaged(gradients: Sequence[Any], variables: Sequence[Any]) -> None:
        pairs = [(g, v) for g, v in zip(gradients, variables, strict=True) if g is not None]
        flat = tf.concat([tf.reshape(tf.cast(g, tf.float32), [-1]) for g, _ in pairs], axis=0)
        apply(_unflatten(total(flat), [v for _, v in pairs]), [v for _, v in pairs])

    def weighted(gradients: Sequence[Any]) -> list[Any]:
        share = shares[step % steps]
        return [None if g is None else tf.cast(share, g.dtype) * g for g in gradients]

    def each_batch(gradients: Sequence[Any], variables: Sequence[Any]) -> None:
        gradients = weighted(gradients)
        step.assign_add(1)
        averaged(gradients, variables)

    if accumulation == 1:
        optimizer.apply = each_batch
        return
    sums = [tf.Variable(tf.zeros(v.shape), trainable=False) for v in variables]
    count = tf.Variable(0.0, trainable=False)

    def update(missing: Sequence[bool], variables: Sequence[Any]) -> None:
        means = [None if gone else total_ / count for gone, total_ in zip(missing, sums, strict=True)]
        averaged(means, variables)
        for each in (*sums, count):
            each.assign(tf.zeros_like(each))

    def each_group(gradients: Sequence[Any], variables: Sequence[Any]) -> None:
        for total_, gradient in zip(sums, weighted(gradients), strict=True):
            if gradient is not None:
                total_.assign_add(tf.cast(gradient, tf.float32))
        count.assign_add(1.0)
        step.assign_add(1)
        due = tf.logical_or(count >= accumulation, step % steps == 0)
        missing = [gradient is None for gradient in gradients]
        tf.cond(due, lambda: update(missing, variables), lambda: None)

    optimizer.apply = each_group


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
        result = tf.numpy_function(sum_, [flat], tf.float32)
        return tf.ensure_shape(result, flat.shape)

    return total


def over_horovod(comm: MPI.Comm, compression: str | None) -> Total:
    """Returns Horovod's sum, which NCCL computes on tensors that are on GPUs."""
    import horovod.tensorflow as hvd

    hvd.init(comm)
    fp16 = hvd.Compression.fp16 if compression == "fp16" else hvd.Compression.none
    return lambda flat: hvd.allreduce(flat, op=hvd.Sum, compression=fp16, name="gradients")


def horovod_has_nccl() -> bool:
    """Tells whether this environment's Horovod can sum tensors on GPUs."""
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


def _unflatten(flat: tf.Tensor, variables: Sequence[Any]) -> list[tf.Tensor]:
    sizes = [int(np.prod(variable.shape)) for variable in variables]
    parts = tf.split(flat, sizes)
    return [tf.cast(tf.reshape(p, v.shape), v.dtype) for p, v in zip(parts, variables, strict=True)]
