"""The exchange of a rank's weights with the center, after every communication window."""

from __future__ import annotations

import keras
import numpy as np

from hvdkeras.algorithm import Algorithm, Center, State
from hvdkeras.callbacks.position import Position
from hvdkeras.models.vector import FlatWeights


class Exchange(keras.callbacks.Callback):
    """Calls the algorithm at the end of every communication window, the last, shorter one included.

    Args:
        algorithm: what is called.
        center: the center variable.
        weights: the rank's trainable weights.
        position: how far the rank is.
        state: what the algorithm's `begin` returned, or its `exchange` before the training was interrupted.

    Attributes:
        state: what the newest `exchange` returned.
    """

    def __init__(
        self, algorithm: Algorithm, center: Center, weights: FlatWeights, position: Position, state: State
    ) -> None:
        super().__init__()
        self._algorithm, self._center, self._weights, self._position = algorithm, center, weights, position
        self.state = state

    def on_train_batch_end(self, batch: int, logs: dict[str, float] | None = None) -> None:
        local, self.state = self._algorithm.exchange(
            self._weights.read(), self._center, self.state, self._position.window_steps
        )
        self._weights.write(local)

    def distance(self) -> float:
        """Returns how far the rank's weights are from the center."""
        # Not by a pull, which would reset the staleness of the exchange that follows.
        local, center = self._weights.read(), self._center.contents().center
        # In place: large models fill the memory.
        center -= local
        return float(np.linalg.norm(center))
