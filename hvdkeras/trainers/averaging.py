"""Model averaging: independent workers whose weights are averaged now and then."""

from __future__ import annotations

from typing import Any

import numpy as np

from hvdkeras.trainers.trainer import Trainer, require_positive


def share(local: np.ndarray, center: np.ndarray, size: int) -> np.ndarray:
    """A worker's part of the average: `(local - center) / size`.

    The sum of all workers' parts moves the center onto the mean of their weights.

    Args:
        local: the worker's weights, shape `(n,)`, float32.
        center: the average before, shape `(n,)`, float32.
        size: the number of workers.

    Returns:
        What the worker adds to the center, shape `(n,)`.
    """
    return (local - center) / np.float32(size)


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

    synchronous = True

    def __init__(
        self, keras_model: Any, *, communication_window: int | None = None, **arguments: Any
    ) -> None:
        super().__init__(keras_model, **arguments)
        if communication_window is not None:
            communication_window = require_positive("communication_window", communication_window, int)
        self.communication_window = communication_window

    def exchange(self, local: np.ndarray, center: Any, state: None, steps: int) -> tuple[np.ndarray, None]:
        center.push(share(local, center.pull(), center.size))
        return center.pull(), state
