"""Elastic averaging SGD, synchronous and asynchronous, plain and with momentum."""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np

from hvdkeras.algorithm import Center, Mode, State
from hvdkeras.arguments import argument, fraction, positive
from hvdkeras.trainers.trainer import Trainer


def elastic(local: np.ndarray, center: np.ndarray, alpha: float) -> tuple[np.ndarray, np.ndarray]:
    """One elastic step (Zhang et al. 2015, equations 5 and 6, without the gradient's part).

        difference = alpha * (local - center)
        local  <- local  - difference
        center <- center + difference, summed over the workers

    Args:
        local: a worker's weights, shape `(n,)`, float32.
        center: the center variable, shape `(n,)`, float32.
        alpha: the moving rate, between 0 (no tie) and 1 (the worker jumps onto the center).

    Returns:
        The worker's new weights and the difference that it adds to the center, each of shape `(n,)`.
    """
    difference = local - center
    difference *= alpha
    return local - difference, difference


class EASGD(Trainer):
    """Synchronous elastic averaging SGD.

    Every worker runs its own optimizer on its own rows. After every `communication_window` batches all
    workers are pulled towards a center variable, and the center towards them, by the elastic rule
    (`elastic`) with the moving rate `alpha = rho * learning_rate`. The trained model is the center.

    Workers need not agree, so that they can explore: long windows therefore harm this method less than
    averaging.

    Args:
        keras_model: the model to train; see `Trainer` for the arguments that all trainers share.
        communication_window: batches between two exchanges (tau in the paper). The default, 16, is the
            middle of the range that the paper found to work alike (1 to 64).
        rho: the elastic force: the smaller, the further the workers may stray from the center. The
            default, 5, makes `alpha` 0.05 at the default `learning_rate`.
        learning_rate: the step size of the default optimizer, and a factor of `alpha` whatever the
            optimizer.

    Raises:
        ValueError: if `num_workers * alpha` is above 1: the center would overshoot the mean of the
            workers and oscillate (section 2 of the paper: beta = p * alpha is a moving average's rate).

    Reference:
        Zhang, Choromanska, LeCun, [Deep learning with Elastic Averaging SGD](
        https://arxiv.org/abs/1412.6651), 2015.
    """

    mode = Mode.SYNCHRONOUS

    communication_window: int = argument(16, positive(int))
    rho: float = argument(5.0, positive(float))

    @property
    def alpha(self) -> float:
        """The moving rate of one exchange."""
        return self.rho * self.learning_rate

    def check(self, num_workers: int) -> None:
        super().check(num_workers)
        if num_workers * self.alpha > 1:
            raise ValueError(
                "num_workers * rho * learning_rate must be at most 1, or the center oscillates. Received: "
                f"{num_workers} * {self.rho} * {self.learning_rate} = {num_workers * self.alpha:g}"
            )

    def exchange(
        self, local: np.ndarray, center: Center, state: State, steps: int
    ) -> tuple[np.ndarray, State]:
        return center.exchange(partial(elastic, alpha=self.alpha), local), state


class AsynchronousEASGD(EASGD):
    """Asynchronous elastic averaging SGD (Zhang et al. 2015, Algorithm 1).

    As `EASGD`, but each worker exchanges with the center at its own pace, alone: no worker waits for a
    slower one.

    Args:
        keras_model: the model to train; see `Trainer` for the arguments that all trainers share.
        communication_window: as in `EASGD`.
        rho: as in `EASGD`.
        learning_rate: as in `EASGD`.

    Raises:
        ValueError: if `alpha = rho * learning_rate` is above 1: a worker would overshoot the center.

    Reference:
        Zhang, Choromanska, LeCun, [Deep learning with Elastic Averaging SGD](
        https://arxiv.org/abs/1412.6651), 2015.
    """

    mode = Mode.ASYNCHRONOUS

    def check(self, num_workers: int) -> None:
        Trainer.check(self, num_workers)
        if self.alpha > 1:
            raise ValueError(
                "rho * learning_rate must be at most 1, or a worker overshoots the center. Received: "
                f"{self.rho} * {self.learning_rate} = {self.alpha:g}"
            )


AEASGD = AsynchronousEASGD
"""The name that dist-keras gave it."""


def _left_out(name: str, value: Any) -> None:
    if value is not None:
        raise ValueError(
            f"{name} must be left out: the workers run SGD with Nesterov momentum. Received: {value!r}"
        )


class _NesterovWorkers(Trainer):
    """EAMSGD's change to EASGD: the workers run SGD with Nesterov momentum (Algorithm 2 of the paper).

    v <- momentum * v - learning_rate * gradient(x + momentum * v)
    x <- x + v
    """

    momentum: float = argument(0.9, fraction())
    worker_optimizer: None = argument(None, _left_out)
    uses_compiled_optimizer = False

    def default_optimizer(self) -> dict[str, Any]:
        config = {"learning_rate": self.learning_rate, "momentum": self.momentum, "nesterov": True}
        return {"class_name": "SGD", "config": config}


class EAMSGD(_NesterovWorkers, AsynchronousEASGD):
    """Asynchronous EASGD whose workers run Nesterov momentum (Zhang et al. 2015, Algorithm 2).

    Args:
        keras_model: the model to train; see `Trainer` for the arguments that all trainers share.
        momentum: of the workers' SGD. The default, 0.9, is dist-keras's; the paper's experiments use 0.99
            with a learning rate a tenth as large.
        communication_window: as in `EASGD`.
        rho: as in `EASGD`.
        learning_rate: as in `EASGD`.

    Raises:
        ValueError: as `AsynchronousEASGD`; if `momentum` is not between 0 and 1; if `worker_optimizer` is
            given.
    """


class SynchronousEAMSGD(_NesterovWorkers, EASGD):
    """Synchronous EASGD whose workers run Nesterov momentum.

    Args:
        keras_model: the model to train; see `Trainer` for the arguments that all trainers share.
        momentum: as in `EAMSGD`.
        communication_window: as in `EASGD`.
        rho: as in `EASGD`.
        learning_rate: as in `EASGD`.

    Raises:
        ValueError: as `EASGD`; if `momentum` is not between 0 and 1; if `worker_optimizer` is given.
    """
