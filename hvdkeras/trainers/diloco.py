"""DiLoCo: long windows of an inner optimizer, an outer Nesterov momentum on what they changed."""

from __future__ import annotations

from typing import Any

import numpy as np

from hvdkeras.trainers.trainer import Trainer, require_positive


def outer_step(
    local: np.ndarray,
    center: np.ndarray,
    velocity: np.ndarray,
    outer_learning_rate: float,
    outer_momentum: float,
    size: int,
) -> tuple[np.ndarray, np.ndarray]:
    """A worker's part of one outer step (Douillard et al. 2023, Algorithm 1, lines 12-14).

        gradient = center - local
        velocity <- outer_momentum * velocity + gradient
        center   <- center - outer_learning_rate * mean(gradient + outer_momentum * velocity)

    The step is linear in the gradients. So each worker keeps the velocity of its own gradients and adds its
    share, and the sum is the step that one velocity of the mean gradient would make.

    Args:
        local: the worker's weights, shape `(n,)`, float32.
        center: the weights that all workers started the window from, shape `(n,)`, float32.
        velocity: the worker's velocity, shape `(n,)`; zeros at first.
        outer_learning_rate: the step size of the outer optimizer.
        outer_momentum: of the outer optimizer, 0 for none.
        size: the number of workers.

    Returns:
        What the worker adds to the center, and its new velocity, each of shape `(n,)`.
    """
    gradient = center - local
    velocity = np.float32(outer_momentum) * velocity + gradient
    step = np.float32(outer_learning_rate / size) * (gradient + np.float32(outer_momentum) * velocity)
    return -step, velocity


class DiLoCo(Trainer):
    """Distributed low-communication training.

    Every worker runs an inner optimizer for a long window from the common weights. The mean of what the
    windows changed is the gradient of an outer SGD with Nesterov momentum, whose step gives the next common
    weights. With `outer_learning_rate=1` and `outer_momentum=0` this is `AveragingTrainer`.

    Args:
        keras_model: the model to train; see `Trainer` for the arguments that all trainers share. The paper's
            inner optimizer is AdamW: `worker_optimizer="adamw"`.
        communication_window: batches of a window. The default, 500, is the paper's; a window that is
            longer than an epoch ends with it.
        outer_learning_rate: the default, 0.7, is the paper's.
        outer_momentum: the default, 0.9, is the paper's.

    Reference:
        Douillard et al., [DiLoCo: Distributed Low-Communication Training of Language Models](
        https://arxiv.org/abs/2311.08105), 2023.
    """

    synchronous = True

    def __init__(
        self,
        keras_model: Any,
        *,
        communication_window: int = 500,
        outer_learning_rate: float = 0.7,
        outer_momentum: float = 0.9,
        **arguments: Any,
    ) -> None:
        super().__init__(keras_model, **arguments)
        self.communication_window = require_positive("communication_window", communication_window, int)
        self.outer_learning_rate = require_positive("outer_learning_rate", outer_learning_rate, float)
        if not 0 <= outer_momentum < 1:
            raise ValueError(f"outer_momentum must be at least 0 and below 1. Received: {outer_momentum!r}")
        self.outer_momentum = outer_momentum

    def begin(self, center: np.ndarray) -> np.ndarray:
        return np.zeros_like(center)

    def exchange(
        self, local: np.ndarray, center: Any, state: np.ndarray, steps: int
    ) -> tuple[np.ndarray, np.ndarray]:
        update, velocity = outer_step(
            local, center.pull(), state, self.outer_learning_rate, self.outer_momentum, center.size
        )
        center.push(update)
        return center.pull(), velocity
