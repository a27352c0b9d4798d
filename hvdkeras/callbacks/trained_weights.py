"""The weights that a rank has trained, where Keras returns others."""

from __future__ import annotations

import keras
import numpy as np

from hvdkeras.models.vector import FlatWeights


class TrainedWeights(keras.callbacks.Callback):
    """Keeps the weights of an epoch's end, which `fit` replaces by their moving average after the last one.

    It runs after all callbacks that change weights.

    Args:
        weights: the rank's trainable weights.
    """

    def __init__(self, weights: FlatWeights) -> None:
        super().__init__()
        self._weights = weights
        self._kept: np.ndarray | None = None

    def on_epoch_end(self, epoch: int, logs: dict[str, float] | None = None) -> None:
        self._kept = self._weights.read()

    def restore(self) -> None:
        """Puts them back, if an epoch was trained."""
        if self._kept is not None:
            self._weights.write(self._kept)
