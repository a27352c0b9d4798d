"""DOWNPOUR SGD, plain and with Adagrad at the server."""

from __future__ import annotations

import logging
import math
from functools import partial

import numpy as np

from hvdkeras.algorithm import Center, Mode, Rule, State
from hvdkeras.arguments import argument, positive
from hvdkeras.trainers.trainer import Trainer

logger = logging.getLogger("hvdkeras")


def downpour(local: np.ndarray, center: np.ndarray, pulled: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """One exchange of DOWNPOUR (Zhang et al. 2015, Algorithm 3; Dean et al. 2012, section 4.1).

        update = local - pulled
        center <- center + update
        local  <- center

    Args:
        local: a worker's weights, shape `(n,)`, float32.
        center: the center variable, shape `(n,)`, float32.
        pulled: what the worker pulled at its exchange before, shape `(n,)`.

    Returns:
        The worker's new weights and the update that it adds to the center, each of shape `(n,)`.
    """
    update = local - pulled
    return center + update, update


def adagrad(
    local: np.ndarray,
    center: np.ndarray,
    accumulator: np.ndarray,
    pulled: np.ndarray,
    learning_rate: float,
    epsilon: float,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """One exchange of DOWNPOUR with Adagrad at the server (Dean et al. 2012, section 4.1).

        update = local - pulled
        accumulator <- accumulator + update ** 2
        center <- center + learning_rate * update / (sqrt(accumulator) + epsilon)
        local  <- center

    Args:
        local: a worker's weights, shape `(n,)`, float32.
        center: the center variable, shape `(n,)`, float32.
        accumulator: the sum of the squares of all workers' updates so far, shape `(n,)`.
        pulled: what the worker pulled at its exchange before, shape `(n,)`.
        learning_rate: the server's step size: how far a weight's first update moves it.
        epsilon: keeps the division finite.

    Returns:
        The worker's new weights, and what is added to the center and to the accumulator, each of shape
        `(n,)`.
    """
    update = local - pulled
    squares = update * update
    step = learning_rate * update / (np.sqrt(accumulator + squares) + epsilon)
    return center + step, step, squares


class DOWNPOUR(Trainer):
    """Asynchronous SGD with a parameter server.

    Every worker runs its own optimizer on its own rows. After every `communication_window` batches, at
    its own pace, it adds to the center what it has changed since its last exchange, and continues from the
    center.
    The trained model is the center.

    Args:
        keras_model: the model to train; see `Trainer` for the arguments that all trainers share.
        communication_window: batches between two exchanges. The default, 5, is what dist-keras uses.
            The workers' updates add up, so that long windows and many workers diverge at learning rates
            at which one worker does not (Zhang et al. 2015, section 5).

    References:
        Dean et al., [Large Scale Distributed Deep Networks](
        https://papers.nips.cc/paper/4687-large-scale-distributed-deep-networks), 2012.
        Zhang, Choromanska, LeCun, [Deep learning with Elastic Averaging SGD](
        https://arxiv.org/abs/1412.6651), 2015.
    """

    mode = Mode.ASYNCHRONOUS
    settles = True

    communication_window: int = argument(5, positive(int))

    longest_stable_window: float = 15
    """The longest communication window with which a training of several workers starts without a warning."""

    def check(self, num_workers: int) -> None:
        super().check(num_workers)
        if num_workers > 1 and self.communication_window > self.longest_stable_window:
            logger.warning(
                "communication_window should be at most %d: beyond it DOWNPOUR degraded or diverged in Zhang "
                "et al. 2015, section 5 (https://arxiv.org/abs/1412.6651), and EASGD did not. Received: %d",
                self.longest_stable_window,
                self.communication_window,
            )

    def begin(self, center: np.ndarray) -> State:
        return {"pulled": center}

    def exchange(
        self, local: np.ndarray, center: Center, state: State, steps: int
    ) -> tuple[np.ndarray, State]:
        pulled = center.exchange(self.rule(center, steps), local, state["pulled"])
        return pulled, {"pulled": pulled}

    def rule(self, center: Center, steps: int) -> Rule:
        """Returns the rule of this exchange; DOWNPOUR's variants differ in it alone."""
        return downpour


class AdaptiveDOWNPOUR(DOWNPOUR):
    """DOWNPOUR with a step size of its own for every weight, by Adagrad at the server.

    The accumulators lie beside the center and are shared by all workers.

    Args:
        keras_model: the model to train; see `Trainer` for the arguments that all trainers share.
        communication_window: as in `DOWNPOUR`.
        server_learning_rate: the server's step size. The default, 0.01, moves a weight by 0.01 at its
            first update, whatever the update's size.
        epsilon: keeps the division finite. The default, 1e-7, is Keras's for Adagrad.

    Reference:
        Dean et al., [Large Scale Distributed Deep Networks](
        https://papers.nips.cc/paper/4687-large-scale-distributed-deep-networks), 2012.
    """

    center_slots = 1
    settles = True
    longest_stable_window = math.inf

    server_learning_rate: float = argument(0.01, positive(float))
    epsilon: float = argument(1e-7, positive(float))

    def rule(self, center: Center, steps: int) -> Rule:
        return partial(adagrad, learning_rate=self.server_learning_rate, epsilon=self.epsilon)
