"""Sums of gradients over the ranks: through MPI, or through Horovod where tensors are on GPUs."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping

import numpy as np
import tensorflow as tf
from mpi4py import MPI

from hvdkeras.launch import gpu
from hvdkeras.mpi.collectives import gathered, gathered_rows
from hvdkeras.mpi.waiting import wait

logger = logging.getLogger("hvdkeras")

# Rows of all ranks that are less than this travel one by one, though their sum may be smaller.
SMALL_BYTES = 16 << 20


class OverMPI:
    """Sums over MPI, in main memory: the fastest way where tensors are there.

    Args:
        comm: the ranks.
        timeout: seconds that a rank waits for the others.
        compression: None, or `"fp16"`: half the bytes on the way; the sums themselves are float32.
    """

    def __init__(self, comm: MPI.Comm, timeout: float, compression: str | None) -> None:
        self._comm, self._timeout = comm, timeout
        self._in_half = compression == "fp16"
        self._what = f"the gradients of the other {comm.size - 1} ranks"
        self._seconds, self._sums, self._has_warned = 0.0, 0, False

    @property
    def telemetry(self) -> Mapping[str, float]:
        """`exchanges` so far, and their `seconds_communication`, the wait for slower ranks included."""
        return {"exchanges": self._sums, "seconds_communication": self._seconds}

    def total(self, flat: tf.Tensor) -> tf.Tensor:
        """Returns the sum over the ranks of a flat float32 tensor."""
        return tf.ensure_shape(tf.numpy_function(self._timed(self._sum), [flat], tf.float32), flat.shape)

    def rows(self, gradient: tf.IndexedSlices) -> tf.IndexedSlices:
        """Returns the rows of all ranks, one after another, as one process would have them.

        Rows that occur several times are not added up: Keras's optimizers that square gradients square each
        by itself. Where the rows are many, and more than the whole gradient, their sum travels instead.

        Args:
            gradient: this rank's rows, float32. Ranks may have different numbers of them.
        """
        indices, values = tf.numpy_function(
            self._timed(self._gather),
            [gradient.indices, gradient.values, gradient.dense_shape],
            [gradient.indices.dtype, tf.float32],
        )
        indices.set_shape([None])
        values.set_shape([None, *gradient.values.shape[1:]])
        return tf.IndexedSlices(values, indices, gradient.dense_shape)

    def _timed(self, function: Callable) -> Callable:
        def timed(*arguments: np.ndarray) -> np.ndarray | tuple[np.ndarray, ...]:
            begun = time.perf_counter()
            result = function(*arguments)
            self._seconds += time.perf_counter() - begun
            self._sums += 1
            return result

        return timed

    def _sum(self, vector: np.ndarray) -> np.ndarray:
        if self._comm.size == 1:
            return vector
        return self._sum_in_half(vector) if self._in_half else self._sum_in_full(vector)

    def _sum_in_full(self, vector: np.ndarray) -> np.ndarray:
        result = np.empty_like(vector)
        self._wait(self._comm.Iallreduce(np.ascontiguousarray(vector), result))
        return result

    def _sum_in_half(self, vector: np.ndarray) -> np.ndarray:
        """Each rank sums a part of the vector in float32 and hands its sum to all: MPI can't add float16."""
        length = -(-vector.size // self._comm.size)
        parts = np.zeros((self._comm.size, length), np.float16)
        parts.ravel()[: vector.size] = vector
        received = np.empty_like(parts)
        self._wait(self._comm.Ialltoall(parts.view(np.uint16), received.view(np.uint16)))
        own = received.astype(np.float32).sum(axis=0).astype(np.float16)
        self._wait(self._comm.Iallgather(own.view(np.uint16), received.view(np.uint16)))
        return received.ravel()[: vector.size].astype(np.float32)

    def _gather(
        self, indices: np.ndarray, values: np.ndarray, shape: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        if self._comm.size == 1:
            return indices, values
        counts = gathered(self._comm, np.array(len(indices)), self._timeout, self._what)
        row = int(np.prod(shape[1:]))
        if counts.sum() * row * 4 > SMALL_BYTES and counts.sum() > shape[0]:
            self._warn(shape)
            whole = np.zeros(shape, np.float32)
            np.add.at(whole, indices, values)
            return np.arange(shape[0], dtype=indices.dtype), self._sum(whole.ravel()).reshape(shape)
        if self._in_half:
            values = values.astype(np.float16)
        indices, values = (
            gathered_rows(self._comm, rows, counts, self._timeout, self._what) for rows in (indices, values)
        )
        return indices, values.astype(np.float32)

    def _wait(self, request: MPI.Request) -> None:
        wait(request.Test, self._timeout, self._what)

    def _warn(self, shape: np.ndarray) -> None:
        if self._comm.rank == 0 and not self._has_warned:
            logger.warning(
                "the ranks use more rows of a gradient of shape %s in a step than it has: repeated ones are "
                "added up before the optimizer sees them, which Keras in one process leaves to the optimizer",
                tuple(shape.tolist()),
            )
        self._has_warned = True


class OverHorovod:
    """Horovod's sums, which NCCL computes on tensors that are on GPUs.

    Args:
        comm: the ranks.
        compression: None, or `"fp16"` to send and sum in half precision.
    """

    # NCCL works beside the step, whose seconds have its own in them.
    telemetry: Mapping[str, float] = {}

    def __init__(self, comm: MPI.Comm, compression: str | None) -> None:
        import horovod.tensorflow as hvd

        hvd.init(comm)
        self._hvd = hvd
        self._used = hvd.Compression.fp16 if compression == "fp16" else hvd.Compression.none

    def total(self, flat: tf.Tensor) -> tf.Tensor:
        """As `OverMPI.total`."""
        return self._hvd.allreduce(flat, op=self._hvd.Sum, compression=self._used, name="gradients")

    def rows(self, gradient: tf.IndexedSlices) -> tf.IndexedSlices:
        """As `OverMPI.rows`; the rows always travel one by one."""
        return self._hvd.allreduce(gradient, op=self._hvd.Sum, compression=self._used)


def horovod_has_nccl() -> bool:
    """Tells whether this environment's Horovod can sum tensors on GPUs."""
    if not gpu.horovod_is_compiled():
        return False
    import horovod.tensorflow as hvd

    return bool(hvd.nccl_built())
