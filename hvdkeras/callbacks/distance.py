"""The distance of a rank from the center."""

from __future__ import annotations

import math
from typing import Any

import keras
import numpy as np

from hvdkeras.callbacks.position import Position
from hvdkeras.history.records import RankHistory
from hvdkeras.models.vector import FlatWeights


class Distance(keras.callbacks.Callback):
    """Measures how far the rank's weights are from the center, before the last exchange of every epoch.

    It runs before `Exchange`, because many rules end with the rank's weights equal to the center.

    Args:
        history: where the distance is appended.
        center: the center variable.
        weights: the rank's trainable weights.
        position: how far the rank is.
    """

    def __init__(self, history: RankHistory, center: Any, weights: FlatWeights, position: Position) -> None:
        super().__init__()
        self._history, self._center, self._weights, self._position = history, center, weights, position

    def on_epoch_begin(self, epoch: int, logs: dict[str, float] | None = None) -> None:
        self._distance = math.nan  # recorded where the epoch ends before its last window

    def on_train_batch_end(self, batch: int, logs: dict[str, float] | None = None) -> None:
        if self._position.epoch_ends:
            # Not by a pull, which would reset the staleness of the exchange that follows.
            center = self._center.contents().center
            self._distance = float(np.linalg.norm(self._weights.read() - center))

    def on_epoch_end(self, epoch: int, logs: dict[str, float] | None = None) -> None:
        self._history.distance.append(self._distance)
