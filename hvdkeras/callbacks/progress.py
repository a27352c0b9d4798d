"""The progress of a rank, sent to the driver."""

from __future__ import annotations

import math
import time

import keras

from hvdkeras.callbacks.position import Position
from hvdkeras.history.progress import Advance
from hvdkeras.history.values import plain
from hvdkeras.launch import rank

# Between two messages to the driver.
SEND_SECONDS = 0.5


class ProgressSender(keras.callbacks.Callback):
    """Sends the driver an `Advance`, at most twice a second and at the end of every epoch.

    Args:
        member: the number of the ensemble's member that the rank trains; 0 without an ensemble.
        position: how far the rank is.
    """

    def __init__(self, member: int, position: Position) -> None:
        super().__init__()
        self._member, self._position = member, position
        self._sent = -math.inf

    def on_epoch_begin(self, epoch: int, logs: dict[str, float] | None = None) -> None:
        if self._sent == -math.inf:
            self._send({})

    def on_train_batch_end(self, batch: int, logs: dict[str, float] | None = None) -> None:
        if not self._position.epoch_ends and time.monotonic() - self._sent >= SEND_SECONDS:
            self._send(logs)

    def on_epoch_end(self, epoch: int, logs: dict[str, float] | None = None) -> None:
        self._send(logs)

    def _send(self, logs: dict[str, float] | None) -> None:
        self._sent = time.monotonic()
        position = self._position
        metrics = {name: plain(value) for name, value in (logs or {}).items()}
        rows = position.epoch * position.rows + position.rows_done
        rank.send(Advance(rows, position.rows, metrics, self._member))
