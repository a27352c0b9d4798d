"""Synchronous SGD: every step of the optimizer uses the mean gradient of all ranks."""

from __future__ import annotations

from hvdkeras.algorithm import GradientAveraging, Mode
from hvdkeras.arguments import argument, flag, not_negative, one_of, positive
from hvdkeras.models.optimizers import has_schedule
from hvdkeras.trainers.trainer import Trainer


def warmed_up(epochs: float, num_workers: int, scaled: bool, warmup_epochs: float) -> float:
    """What a learning rate is multiplied by (Goyal et al. 2017, sections 2.1 and 2.2).

    The batch of one step is `num_workers` times as large, and so is the step if it is scaled. During the
    warm-up the factor grows evenly, from the `num_workers`-th part of what it ends with.

    Args:
        epochs: epochs done.
        num_workers: the ranks whose batches make one step.
        scaled: whether the factor ends with `num_workers`; otherwise it ends with 1.
        warmup_epochs: how long it grows; 0 for not at all.
    """
    done = min(1.0, epochs / warmup_epochs) if warmup_epochs else 1.0
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
        warmup_epochs: epochs in which the learning rate grows to its full size. The paper that
            describes both options uses 5. Default: none.

    References:
        Goyal et al., [Accurate, Large Minibatch SGD: Training ImageNet in 1 Hour](
        https://arxiv.org/abs/1706.02677), 2017.
        Chen, Pan, Monga, Bengio, Jozefowicz, [Revisiting Distributed Synchronous SGD](
        https://arxiv.org/abs/1604.00981), 2016.
        Sergeev, Del Balso, [Horovod: fast and easy distributed deep learning in TensorFlow](
        https://arxiv.org/abs/1802.05799), 2018.
    """

    mode = Mode.GRADIENTS

    compression: str | None = argument(None, one_of(None, "fp16"))
    accumulation: int = argument(1, positive(int))
    scale_learning_rate: bool = argument(False, flag)
    warmup_epochs: float = argument(0, not_negative)

    @property
    def gradient_averaging(self) -> GradientAveraging:
        return GradientAveraging(self.compression, self.accumulation)

    def check(self, num_workers: int) -> None:
        super().check(num_workers)
        if (self.scale_learning_rate or self.warmup_epochs) and has_schedule(self.worker_optimizer):
            raise ValueError(
                "scale_learning_rate and warmup_epochs need an optimizer whose learning rate is a number. "
                f"Received: {type(self.worker_optimizer).__name__} with a schedule"
            )

    def learning_rate_factor(self, epochs: float, num_workers: int) -> float:
        if not (self.scale_learning_rate or self.warmup_epochs):
            return 1.0
        return warmed_up(epochs, num_workers, self.scale_learning_rate, self.warmup_epochs)
