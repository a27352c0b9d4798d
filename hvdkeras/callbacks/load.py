"""What a rank asks of an asynchronous center at rank 0."""

from __future__ import annotations

import time
from dataclasses import asdict

import keras
import numpy as np

from hvdkeras.callbacks.recording import exchange_seconds
from hvdkeras.center.tables import TableCenter
from hvdkeras.center.window import WindowCenter
from hvdkeras.history.records import RankHistory
from hvdkeras.history.saturation import LOAD_PREFIX, Load
from hvdkeras.launch import rank

# Windows whose mean the driver gets: early, and not by a single one.
WINDOWS = 10


class CenterLoad(keras.callbacks.Callback):
    """Measures a rank's `Load`, sends it to the driver once, and writes it into the history at the end.

    The rank's first window, which compiles, does not count. It runs after the exchange.

    Args:
        history: whose telemetry gets the load over all windows.
        center: the center.
    """

    def __init__(self, history: RankHistory, center: WindowCenter | TableCenter) -> None:
        super().__init__()
        self._history, self._center = history, center
        self._windows, self._seconds = -1, np.zeros(3)

    def on_epoch_begin(self, epoch: int, logs: dict[str, float] | None = None) -> None:
        self._mark()

    def on_train_batch_end(self, batch: int, logs: dict[str, float] | None = None) -> None:
        begun, spent = self._begun, self._spent
        self._mark()
        self._windows += 1
        if self._windows == 0:
            return
        service, waiting = self._spent - spent
        self._seconds += self._begun - begun - service - waiting, service, waiting
        if self._windows == WINDOWS:
            rank.send(self._load())

    def on_train_end(self, logs: dict[str, float] | None = None) -> None:
        if self._windows > 0:
            load = asdict(self._load())
            self._history.telemetry.update({LOAD_PREFIX + name: value for name, value in load.items()})

    def _mark(self) -> None:
        self._begun, self._spent = time.perf_counter(), exchange_seconds(self._center)

    def _load(self) -> Load:
        return Load(*(self._seconds / self._windows).tolist())
