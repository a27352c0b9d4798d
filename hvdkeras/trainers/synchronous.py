"""Synchronous SGD: every step of the optimizer uses the mean gradient of all ranks."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from hvdkeras.trainers.trainer import Trainer, require_positive


def shares(batch_sizes: np.ndarray) -> np.ndarray:
    """The weight of each rank's gradient, such that unequal batches count as one joined batch would.

    Args:
        batch_sizes: rows of each rank's batch, shape `(ranks, steps)`.

    Returns:
        The part of all rows of a step that a rank has, shape `(ranks, steps)`; a step's parts add up to 1.
    """
    return batch_sizes / batch_sizes.sum(axis=0)


class SynchronousSGD(Trainer):
    """The gradients of all ranks are averaged before every step of the optimizer.

    All ranks hold the same weights at all times, and they are those of one process that trains on the
    joined batch, of `num_workers * batch_size` rows. Any Keras optimizer works.

    On GPUs the gradients go through Horovod's allreduce where Horovod was built with NCCL; otherwise
    through MPI on one flat buffer.

    Args:
        keras_model: the model to train; see `Trainer` for the arguments that all trainers share.
        compression: None, or `"fp16"` to send gradients in half precision.
        accumulation: batches of each rank whose mean gradient makes one step of the optimizer. The last
            group of an epoch may be shorter.

    References:
        Chen, Pan, Monga, Bengio, Jozefowicz, [Revisiting Distributed Synchronous SGD](
        https://arxiv.org/abs/1604.00981), 2016.
        Sergeev, Del Balso, [Horovod: fast and easy distributed deep learning in TensorFlow](
        https://arxiv.org/abs/1802.05799), 2018.
    """

    def __init__(
        self, keras_model: Any, *, compression: str | None = None, accumulation: int = 1, **arguments: Any
    ) -> None:
        super().__init__(keras_model, **arguments)
        if compression not in (None, "fp16"):
            raise ValueError(f"compression must be None or 'fp16'. Received: {compression!r}")
        self.compression = compression
        self.accumulation = require_positive("accumulation", accumulation, int)

    def prepare(self, model: Any, rows: Any, comm: Any) -> Sequence[Any]:
        import tensorflow as tf

        from hvdkeras import gradients

        # XLA can't call out to MPI.
        model.jit_compile = False
        if tf.config.list_physical_devices("GPU") and gradients.horovod_has_nccl():
            total = gradients.over_horovod(comm, self.compression)
        else:
            total = gradients.over_mpi(comm, self.timeout, self.compression)
        averaged = gradients.AveragedGradients(
            model.optimizer,
            model.trainable_variables,
            total,
            shares(np.array(comm.allgather(rows.batch_sizes)))[comm.rank],
            self.accumulation,
        )
        return averaged.variables
