"""The learning rate of a rank."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import keras

from hvdkeras.callbacks.position import Position
from hvdkeras.models.optimizers import learning_rates, set_learning_rates


class LearningRate(keras.callbacks.Callback):
    """Multiplies the optimizer's learning rate by the algorithm's factor, before every window.

    Args:
        optimizer: the rank's optimizer.
        factor: returns the factor for a number of epochs done.
        position: how far the rank is.

    Attributes:
        factor: what the optimizer's learning rate is multiplied by now.
    """

    def __init__(self, optimizer: Any, factor: Callable[[float], float], position: Position) -> None:
        super().__init__()
        self._optimizer, self._factor_at, self._position = optimizer, factor, position
        self.factor = 1.0

    def on_train_batch_begin(self, batch: int, logs: dict[str, float] | None = None) -> None:
        factor = self._factor_at(self._position.epochs_done)
        if factor != self.factor:
            rates = [rate * factor / self.factor for rate in learning_rates(self._optimizer)]
            set_learning_rates(self._optimizer, rates)
            self.factor = factor

    def set(self, rates: Sequence[float]) -> None:
        """Sets the optimizer's learning rates, those that the factor multiplies."""
        set_learning_rates(self._optimizer, [rate * self.factor for rate in rates])
