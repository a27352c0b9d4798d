"""DiLoCo: long windows of an inner optimizer, an outer Nesterov momentum on what they changed."""

from __future__ import annotations

from functools import partial

import numpy as np

from hvdkeras.algorithm import Center, Mode, State
from hvdkeras.arguments import argument, fraction, positive
from hvdkeras.trainers.trainer import Trainer


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
        The worker's new velocity, and what it adds to the center, each of shape `(n,)`.
    """
    gradient = center - local
    velocity = np.float32(outer_momentum) * velocity + gradient
    step = np.float32(outer_learning_rate / size) * (gradient + np.float32(outer_momentum) * velocity)
    return velocity, -step


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

    mode = Mode.SYNCHRONOUS

    communication_window: int = argument(500, positive(int))
    outer_learning_rate: float = argument(0.7, positive(float))
    outer_momentum: float = argument(0.9, fraction(zero=True))

    def begin(self, center: np.ndarray) -> State:
        return {"velocity": np.zeros_like(center)}

    def exchange(
        self, local: np.ndarray, center: Center, state: State, steps: int
    ) -> tuple[np.ndarray, State]:
        rule = partial(
            outer_step,
            outer_learning_rate=self.outer_learning_rate,
            outer_momentum=self.outer_momentum,
            size=center.size,
        )
        velocity = center.exchange(rule, local, state["velocity"])
        return center.pull(), {"velocity": velocity}
