"""The Keras callbacks of a rank: the exchange with the center, and the record of what happened."""

from __future__ import annotations

import logging
import time
from typing import Any

import keras

from hvdkeras.history import RankHistory
from hvdkeras.weights import FlatWeights

logger = logging.getLogger("hvdkeras")


class Exchange(keras.callbacks.Callback):
    """Calls the trainer's rule at the end of every communication window, the last, shorter one included.

    Keras runs `steps_per_execution = communication_window` batches in one call and fires the callback at
    its end, also when an epoch's rows end before the window does.

    Args:
        trainer: whose `begin` and `exchange` are called.
        center: the center variable, on which the rank's weights already stand.
        weights: the rank's trainable weights.
    """

    def __init__(self, trainer: Any, center: Any, weights: FlatWeights) -> None:
        super().__init__()
        self._trainer, self._center, self._weights = trainer, center, weights
        self._state = trainer.begin(center.pull())

    def on_epoch_begin(self, epoch: int, logs: dict[str, float] | None = None) -> None:
        self._steps_done = 0

    def on_train_batch_end(self, batch: int, logs: dict[str, float] | None = None) -> None:
        # Keras counts the last window of an epoch as if it were a full one.
        steps_done = min(batch + 1, self.params["steps"])
        local, self._state = self._trainer.exchange(
            self._weights.read(), self._center, self._state, steps_done - self._steps_done
        )
        self._steps_done = steps_done
        self._weights.write(local)


class Record(keras.callbacks.Callback):
    """Fills a `RankHistory`, and says a line an epoch.

    Args:
        history: where to write to.
        rows: how many rows the rank trains on in one epoch.
        center: whose telemetry tells the time spent in communication; None without exchange.
        verbose: 0 for silence.
    """

    def __init__(self, history: RankHistory, rows: int, center: Any, verbose: int) -> None:
        super().__init__()
        self._history, self._rows, self._center, self._verbose = history, rows, center, verbose

    def on_epoch_begin(self, epoch: int, logs: dict[str, float] | None = None) -> None:
        self._begun, self._spent = time.perf_counter(), self._exchange_seconds()

    def on_epoch_end(self, epoch: int, logs: dict[str, float] | None = None) -> None:
        seconds = time.perf_counter() - self._begun
        spent = [now - before for now, before in zip(self._exchange_seconds(), self._spent, strict=True)]
        history = self._history
        history.rows.append(self._rows)
        for name, value in (logs or {}).items():
            history.metrics.setdefault(name, []).append(float(value))
        for name, value in zip(history.seconds, [seconds - sum(spent), *spent], strict=True):
            history.seconds[name].append(value)
        if self._verbose:
            values = "  ".join(f"{name} {value:.4f}" for name, value in (logs or {}).items())
            logger.info(
                "epoch %d/%d  %s  %.0f samples/s",
                epoch + 1,
                self.params["epochs"],
                values,
                self._rows / seconds,
            )

    def _exchange_seconds(self) -> list[float]:
        telemetry = self._center.telemetry if self._center else {}
        return [telemetry.get(f"seconds_{name}", 0.0) for name in ("communication", "waiting")]
