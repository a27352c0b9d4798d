"""The weights of all workers as rows of one matrix, and the windows that they train."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from hvdkeras.models.optimizers import named
from hvdkeras.simulation.problems import Problem

# Numbers of the weights that are computed together: more would leave the caches, fewer cost calls.
_GROUP = 1 << 18
# Of a Keras SGD's configuration: what may only have one value here.
_PLAIN = {
    "weight_decay": (None,),
    "clipnorm": (None,),
    "clipvalue": (None,),
    "global_clipnorm": (None,),
    "use_ema": (False,),
    "loss_scale_factor": (None,),
    "gradient_accumulation_steps": (None, 1),
}


@dataclass(frozen=True)
class SGD:
    """The workers' optimizer: `keras.optimizers.SGD`, on rows of a matrix.

    Attributes:
        learning_rate: the step size.
        momentum: 0 for none.
        nesterov: whether the momentum is Nesterov's.
    """

    learning_rate: float
    momentum: float = 0.0
    nesterov: bool = False

    @classmethod
    def of(cls, trainer: Any) -> SGD:
        """Returns the optimizer of a trainer's ranks.

        Raises:
            ValueError: it is another one than SGD, or has options that are not simulated.
        """
        import keras

        optimizer = trainer.worker_optimizer
        if optimizer is None:
            optimizer = trainer.default_optimizer()
        rate = trainer.learning_rate if trainer.is_given("learning_rate") else None
        optimizer = keras.optimizers.get(named(optimizer, rate))
        if type(optimizer) is not keras.optimizers.SGD:
            raise ValueError(f"worker_optimizer must be SGD. Received: {type(optimizer).__name__}")
        config = optimizer.get_config()
        for name, allowed in _PLAIN.items():
            if config.get(name, allowed[0]) not in allowed:
                raise ValueError(f"{name} must be {allowed[0]!r}. Received: {config[name]!r}")
        if not isinstance(config["learning_rate"], float):
            raise ValueError(
                "worker_optimizer must have a learning rate that is a number. Received: a schedule"
            )
        if config["momentum"] and optimizer.built and int(optimizer.iterations):
            steps = int(optimizer.iterations)
            raise ValueError(f"worker_optimizer must be new. Received: SGD with a momentum of {steps} steps")
        return cls(config["learning_rate"], config["momentum"], config["nesterov"])

    def apply(
        self, weights: np.ndarray, velocity: np.ndarray, gradient: np.ndarray, factor: np.ndarray
    ) -> None:
        """Makes a step of some workers, in place.

        Args:
            weights: shape `(k, n)`.
            velocity: shape `(k, n)`; without momentum `(k, 0)`.
            gradient: shape `(k, n)`. It is changed.
            factor: what each worker's learning rate is multiplied by, shape `(k,)`.
        """
        gradient *= (np.float32(self.learning_rate) * factor.astype(np.float32))[:, np.newaxis]
        if not self.momentum:
            weights -= gradient
            return
        momentum = np.float32(self.momentum)
        velocity *= momentum
        velocity -= gradient
        weights += velocity * momentum - gradient if self.nesterov else velocity


class Replicas:
    """The workers' weights, and how far each worker is.

    A window is computed when its result is needed, together with all others that have begun: what a worker
    computes does not depend on what others do meanwhile.

    Args:
        problem: what gives the gradients.
        num_workers: number of workers.
        optimizer: of each worker.
        window: batches between two exchanges; None for an epoch.
        factor: returns the factor of the learning rate after a number of epochs.

    Attributes:
        weights: shape `(num_workers, n)`, float32.
        epoch: the epoch in which each worker is, shape `(num_workers,)`.
        step: the batch from which its next window begins, shape `(num_workers,)`.
        rows: rows that all workers have trained on.
    """

    def __init__(
        self,
        problem: Problem,
        num_workers: int,
        optimizer: SGD,
        window: int | None,
        factor: Callable[[float], float],
    ) -> None:
        self._problem, self._optimizer, self._factor = problem, optimizer, factor
        self._window = min(window or problem.steps, problem.steps)
        self.weights = np.tile(problem.initial, (num_workers, 1))
        self._velocity = np.zeros_like(self.weights) if optimizer.momentum else self.weights[:, :0]
        self.epoch, self.step = np.zeros(num_workers, np.int64), np.zeros(num_workers, np.int64)
        self._begun = np.zeros(num_workers, bool)
        self.rows = self._steps_done = 0

    @property
    def epochs_done(self) -> float:
        """Epochs that are done, the mean of the workers."""
        return self._steps_done / (self._problem.steps * len(self.weights))

    def begin(self, worker: int) -> int:
        """Begins a worker's next window; returns its number of batches."""
        self._begun[worker] = True
        return min(self._window, self._problem.steps - int(self.step[worker]))

    def trained(self, worker: int) -> np.ndarray:
        """Returns a worker's weights after the window that it has begun, shape `(n,)`, read-only."""
        if self._begun[worker]:
            begun = np.flatnonzero(self._begun)
            size = max(1, _GROUP // self.weights.shape[1])
            for first in range(0, len(begun), size):
                self._compute(begun[first : first + size])
            self._begun[:] = False
        row = self.weights[worker]
        row.flags.writeable = False
        return row

    def end(self, worker: int, weights: np.ndarray) -> None:
        """Ends a worker's window with new weights, shape `(n,)`."""
        self.weights[worker] = weights
        steps = np.arange(self.step[worker], min(self.step[worker] + self._window, self._problem.steps))
        self.rows += int(self._problem.rows(np.full(len(steps), worker), steps).sum())
        self._steps_done += len(steps)
        self.step[worker] = steps[-1] + 1
        if self.step[worker] == self._problem.steps:
            self.epoch[worker] += 1
            self.step[worker] = 0

    def _compute(self, workers: np.ndarray) -> None:
        weights, velocity = self.weights[workers], self._velocity[workers]
        epochs, first = self.epoch[workers], self.step[workers]
        done = epochs + first / self._problem.steps
        factors = np.array([self._factor(each) for each in done.tolist()])
        counts = np.minimum(self._window, self._problem.steps - first)
        for step in range(int(counts.max())):
            training = np.flatnonzero(counts > step)
            some = slice(None) if len(training) == len(workers) else training
            place = workers[some], epochs[some], first[some] + step
            part, moving = weights[some], velocity[some]
            gradient = self._problem.gradients(part, *place)
            self._optimizer.apply(part, moving, gradient, factors[some])
            weights[some], velocity[some] = part, moving
        self.weights[workers], self._velocity[workers] = weights, velocity
