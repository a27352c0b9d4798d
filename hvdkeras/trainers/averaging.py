"""Model averaging: independent workers whose weights are averaged after every window."""

from __future__ import annotations

from functools import partial

import numpy as np

from hvdkeras.algorithm import Center, Mode, State
from hvdkeras.arguments import argument, optional, positive
from hvdkeras.trainers.trainer import Trainer


def average(local: np.ndarray, center: np.ndarray, size: int) -> tuple[np.ndarray, np.ndarray]:
    """A worker's part of an average.

        push = (local - center) / size
        center <- center + push, summed over the workers: the mean of their weights
        local  <- center, once all pushes are summed

    Args:
        local: the worker's weights, shape `(n,)`, float32.
        center: the average before, shape `(n,)`, float32.
        size: the number of workers.

    Returns:
        The worker's weights as they are, and what it adds to the center, each of shape `(n,)`.
    """
    return local, (local - center) / np.float32(size)


class AveragingTrainer(Trainer):
    """Replicas that are replaced by their average after every window.

    Also known as local SGD, or parameter averaging. All ranks exchange together.

    Args:
        keras_model: the model to train; see `Trainer` for the arguments that all trainers share.
        communication_window: batches between two averages. The default, None, averages at the end of every
            epoch, as dist-keras meant it.

    References:
        Zinkevich, Weimer, Smola, Li, [Parallelized Stochastic Gradient Descent](
        https://papers.nips.cc/paper/4006-parallelized-stochastic-gradient-descent), 2010.
        Stich, [Local SGD Converges Fast and Communicates Little](https://arxiv.org/abs/1805.09767), 2018.
    """

    mode = Mode.SYNCHRONOUS

    communication_window: int | None = argument(None, optional(positive(int)))

    def exchange(
        self, local: np.ndarray, center: Center, state: State, steps: int
    ) -> tuple[np.ndarray, State]:
        center.exchange(partial(average, size=center.size), local)
        return center.pull(), state
