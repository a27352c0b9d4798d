"""Synchronous SGD: every step of the optimizer uses the mean gradient of all ranks."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from hvdkeras.models.optimizers import check_accumulation, has_schedule
from hvdkeras.trainers.trainer import Trainer, require_positive


def shares(batch_sizes: np.ndarray) -> np.ndarray:
    """The weight of each rank's gradient, such that unequal batches count as one joined batch would.

    Args:
        batch_sizes: rows of each rank's batch, shape `(ranks, steps)`.

    Returns:
        The part of all rows of a step that a rank has, shape `(ranks, steps)`; a step's parts add up to 1.
    """
    return batch_sizes / batch_sizes.sum(axis=0)


def warmed_up(progress: float, num_workers: int, scaled: bool, warmup_epochs: float) -> float:
    """What a learning rate is multiplied by (Goyal et al. 2017, sections 2.1 and 2.2).

    The batch of one step is `num_workers` times as large, and so is the step if it is scaled. During the
    warm-up the factor grows evenly, from the `num_workers`-th part of what it ends with.

    Args:
        progress: epochs done.
        num_workers: the ranks whose batches make one step.
        scaled: whether the factor ends with `num_workers`; otherwise it ends with 1.
        warmup_epochs: how long it grows; 0 for not at all.
    """
    done = min(1.0, progress / warmup_epochs) if warmup_epochs else 1.0
    factor = 1 / num_workers + (1 - 1 / num_workers) * done
    return factor * num_workers if scaled else factor


class SynchronousSGD(Trainer):
    """The gradients of all ranks are averaged before every step of the optimizer.

    All ranks hold the same weights at all times, and they are those of one process that trains on the
    joined batch, of `num_workers * batch_size` rows, whatever the loss, its reduction, masks and weights. A
    loss that returns a value for each row is taken to depend on that row alone; what a step computes without
    a Keras loss (`add_loss`, formulas in a `train_step` of the model's own) is taken to be a mean over rows.
    Batch normalisation uses each rank's own batch. At the end the ranks compare their weights.

    Any Keras optimizer works, and so do several, if a `train_step` of the model's own applies them, as long
    as they are attributes of the model.

    On GPUs the gradients go through Horovod's allreduce where Horovod was built with NCCL; otherwise
    through MPI on one flat buffer.

    Args:
        keras_model: the model to train; see `Trainer` for the arguments that all trainers share.
        compression: None, or `"fp16"` to send gradients in half precision.
        accumulation: batches of each rank whose mean gradient makes one step of the optimizer. The last
            group of an epoch may be shorter.
        scale_learning_rate: multiply the optimizer's learning rate by `num_workers`, as its batch is.
        warmup_epochs: epochs in which the learning rate grows to its full size. The paper that both options
            are from takes 5. Default: none.

    References:
        Goyal et al., [Accurate, Large Minibatch SGD: Training ImageNet in 1 Hour](
        https://arxiv.org/abs/1706.02677), 2017.
        Chen, Pan, Monga, Bengio, Jozefowicz, [Revisiting Distributed Synchronous SGD](
        https://arxiv.org/abs/1604.00981), 2016.
        Sergeev, Del Balso, [Horovod: fast and easy distributed deep learning in TensorFlow](
        https://arxiv.org/abs/1802.05799), 2018.
    """

    equal_ranks = True

    def __init__(
        self,
        keras_model: Any,
        *,
        compression: str | None = None,
        accumulation: int = 1,
        scale_learning_rate: bool = False,
        warmup_epochs: float = 0,
        **arguments: Any,
    ) -> None:
        super().__init__(keras_model, **arguments)
        if compression not in (None, "fp16"):
            raise ValueError(f"compression must be None or 'fp16'. Received: {compression!r}")
        self.compression = compression
        self.accumulation = require_positive("accumulation", accumulation, int)
        self.scale_learning_rate = scale_learning_rate
        if warmup_epochs:
            require_positive("warmup_epochs", warmup_epochs, float)
        self.warmup_epochs = warmup_epochs

    def check(self, num_workers: int) -> None:
        super().check(num_workers)
        if (self.scale_learning_rate or self.warmup_epochs) and has_schedule(self.worker_optimizer):
            raise ValueError(
                "scale_learning_rate and warmup_epochs need an optimizer whose learning rate is a number. "
                f"Received: {type(self.worker_optimizer).__name__} with a schedule"
            )

    def _check_model(self) -> None:
        super()._check_model()
        if self.accumulation > 1:
            check_accumulation(self.compiled_model(), self.accumulation)

    def learning_rate_factor(self, progress: float, num_workers: int) -> float:
        if not (self.scale_learning_rate or self.warmup_epochs):
            return 1.0
        return warmed_up(progress, num_workers, self.scale_learning_rate, self.warmup_epochs)

    def prepare(self, model: Any, rows: Any, comm: Any) -> Sequence[Any]:
        import tensorflow as tf

        from hvdkeras.mpi.waiting import gathered
        from hvdkeras.rank import gradients
        from hvdkeras.rank.batches import Batches
        from hvdkeras.rank.losses import JoinedLosses

        # XLA can't call out to MPI.
        model.jit_compile = False
        if tf.config.list_physical_devices("GPU") and gradients.horovod_has_nccl():
            total = gradients.over_horovod(comm, self.compression)
        else:
            total = gradients.over_mpi(comm, self.timeout, self.compression)
        batch_sizes = gathered(comm, rows.batch_sizes, self.timeout, "the sizes of the other ranks' batches")
        batches = Batches(shares(batch_sizes)[comm.rank])
        losses = JoinedLosses(comm, batches, self.timeout)
        return gradients.join(model, batches, losses, total, self.accumulation)
