"""The Keras callbacks of a rank: the exchange with the center, and the record of what happened."""

from __future__ import annotations

import logging
import time
from typing import Any

import keras

from hvdkeras.history import RankHistory
from hvdkeras.standing import Position
from hvdkeras.weights import FlatWeights

logger = logging.getLogger("hvdkeras")


class Exchange(keras.callbacks.Callback):
    """Calls the trainer's rule at the end of every communication window, the last, shorter one included.

    Args:
        trainer: whose `exchange` is called.
        center: the center variable.
        weights: the rank's trainable weights.
        position: where the rank is.
        state: what the trainer's `begin` returned, or its exchange before the training was interrupted.

    Attributes:
        state: what the exchange before returned.
    """

    def __init__(
        self, trainer: Any, center: Any, weights: FlatWeights, position: Position, state: Any
    ) -> None:
        super().__init__()
        self._trainer, self._center, self._weights, self._position = trainer, center, weights, position
        self.state = state

    def on_train_batch_end(self, batch: int, logs: dict[str, float] | None = None) -> None:
        local, self.state = self._trainer.exchange(
            self._weights.read(), self._center, self.state, self._position.window_steps
        )
        self._weights.write(local)


class Record(keras.callbacks.Callback):
    """Fills a `RankHistory`, and says a line an epoch.

    Args:
        history: where to write to.
        position: where the rank is.
        center: whose telemetry tells the time spent in communication; None without exchange.
        verbose: 0 for silence.
    """

    def __init__(self, history: RankHistory, position: Position, center: Any, verbose: int) -> None:
        super().__init__()
        self._history, self._position, self._center, self._verbose = history, position, center, verbose
        self._logs: dict[str, float] = {}
        self._before: dict[str, float] = {}

    def running(self) -> dict[str, float]:
        """Returns the logs of the epoch under way, the part before an interruption included."""
        return self._whole(self._logs)

    def resume(self, running: dict[str, float]) -> None:
        """Goes on with an epoch of which `running` returned the first part."""
        self._before = running

    def on_train_batch_end(self, batch: int, logs: dict[str, float] | None = None) -> None:
        self._logs = logs or {}

    def on_epoch_begin(self, epoch: int, logs: dict[str, float] | None = None) -> None:
        self._begun, self._spent = time.perf_counter(), self._exchange_seconds()

    def on_epoch_end(self, epoch: int, logs: dict[str, float] | None = None) -> None:
        seconds = time.perf_counter() - self._begun
        spent = [now - before for now, before in zip(self._exchange_seconds(), self._spent, strict=True)]
        history = self._history
        rows = self._position.rows_done
        history.rows.append(rows)
        for name, value in self._whole(logs or {}).items():
            history.metrics.setdefault(name, []).append(float(value))
        self._logs, self._before = {}, {}
        for name, value in zip(history.seconds, [seconds - sum(spent), *spent], strict=True):
            history.seconds[name].append(value)
        if self._verbose:
            values = "  ".join(f"{name} {value:.4f}" for name, value in (logs or {}).items())
            logger.info(
                "epoch %d/%d  %s  %.0f samples/s",
                epoch + 1,
                self.params["epochs"],
                values,
                rows / seconds,
            )

    def _whole(self, logs: dict[str, float]) -> dict[str, float]:
        """The mean over the epoch of what was logged before an interruption and after it."""
        if not self._before:
            return dict(logs)
        before, now = self._position.rows_before, self._position.rows_done - self._position.rows_before
        if not logs:
            return dict(self._before)
        return {
            name: (before * self._before[name] + now * value) / (before + now) for name, value in logs.items()
        }

    def _exchange_seconds(self) -> list[float]:
        telemetry = self._center.telemetry if self._center else {}
        return [telemetry.get(f"seconds_{name}", 0.0) for name in ("communication", "waiting")]
