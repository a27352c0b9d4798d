"""The distance of a rank from the center."""

from __future__ import annotations

import math
from collections.abc import Callable

import keras

from hvdkeras.callbacks.position import Position
from hvdkeras.history.records import RankHistory


class Distance(keras.callbacks.Callback):
    """Measures how far the rank's weights are from the center, before the last exchange of every epoch.

    It runs before `Exchange`, because many rules end with the rank's weights equal to the center.

    Args:
        history: where the distance is appended.
        measure: returns the distance.
        position: how far the rank is.
    """

    def __init__(self, history: RankHistory, measure: Callable[[], float], position: Position) -> None:
        super().__init__()
        self._history, self._measure, self._position = history, measure, position

    def on_epoch_begin(self, epoch: int, logs: dict[str, float] | None = None) -> None:
        self._distance = math.nan  # recorded where the epoch ends before its last window

    def on_train_batch_end(self, batch: int, logs: dict[str, float] | None = None) -> None:
        if self._position.epoch_ends:
            self._distance = self._measure()

    def on_epoch_end(self, epoch: int, logs: dict[str, float] | None = None) -> None:
        self._history.distance.append(self._distance)
