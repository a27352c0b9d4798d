"""The Keras callbacks of a rank: the exchange with the center, and the record of what happened."""

from __future__ import annotations

import logging
import math
import time
from typing import Any

import keras
import numpy as np

from hvdkeras.history import RankHistory
from hvdkeras.launch import rank
from hvdkeras.progress import Standing
from hvdkeras.weights import FlatWeights

logger = logging.getLogger("hvdkeras")

# Of one rank; at a megabyte for ten thousand they stay small beside the weights, on the way to the driver.
MOST_EVENTS = 20_000
# Between two words to the driver.
TELL_SECONDS = 0.5


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


class Distance(keras.callbacks.Callback):
    """Measures how far the rank's weights are from the center, before the last exchange of every epoch.

    It stands before `Exchange`: many rules end with the rank on the center.

    Args:
        history: where to write to.
        center: the center variable.
        weights: the rank's trainable weights.
    """

    def __init__(self, history: RankHistory, center: Any, weights: FlatWeights) -> None:
        super().__init__()
        self._history, self._center, self._weights = history, center, weights

    def on_epoch_begin(self, epoch: int, logs: dict[str, float] | None = None) -> None:
        self._distance = math.nan  # that of an epoch which is cut short

    def on_train_batch_end(self, batch: int, logs: dict[str, float] | None = None) -> None:
        if batch + 1 >= self.params["steps"]:
            self._distance = float(np.linalg.norm(self._weights.read() - self._center.peek()))

    def on_epoch_end(self, epoch: int, logs: dict[str, float] | None = None) -> None:
        self._history.distance.append(self._distance)


class Record(keras.callbacks.Callback):
    """Fills a `RankHistory`, and says a line an epoch.

    Args:
        history: where to write to.
        rows: how many rows the rank trains on in one epoch.
        center: whose telemetry tells the time spent in communication; None without exchange.
        verbose: below 2 for silence.
    """

    def __init__(self, history: RankHistory, rows: int, center: Any, verbose: int) -> None:
        super().__init__()
        self._history, self._rows, self._center, self._verbose = history, rows, center, verbose

    def on_epoch_begin(self, epoch: int, logs: dict[str, float] | None = None) -> None:
        self._begun, self._spent = time.perf_counter(), _exchange_seconds(self._center)
        self._before = self._center.telemetry if self._center else {}

    def on_epoch_end(self, epoch: int, logs: dict[str, float] | None = None) -> None:
        seconds = time.perf_counter() - self._begun
        spent = _exchange_seconds(self._center) - self._spent
        history = self._history
        history.rows.append(self._rows)
        for name, value in (logs or {}).items():
            history.metrics.setdefault(name, []).append(float(value))
        for name, value in zip(history.seconds, [seconds - spent.sum(), *spent], strict=True):
            history.seconds[name].append(float(value))
        history.learning_rate.append(float(keras.ops.convert_to_numpy(self.model.optimizer.learning_rate)))
        if "staleness_sum" in self._before:
            history.staleness.append(self._increase("staleness_sum") / max(1, self._increase("exchanges")))
        if self._verbose >= 2:
            values = "  ".join(f"{name} {value:.4f}" for name, value in (logs or {}).items())
            logger.info(
                "epoch %d/%d  %s  %.0f samples/s",
                epoch + 1,
                self.params["epochs"],
                values,
                self._rows / seconds,
            )

    def _increase(self, name: str) -> float:
        return self._center.telemetry[name] - self._before[name]


class Events(keras.callbacks.Callback):
    """Notes what the rank does in every window, for the timeline.

    The center measures how long a rank waits and communicates in a window, not in which order: the events
    stand after the computation, the waiting first.

    Args:
        history: where to write to.
        center: whose telemetry tells the time spent in communication; None without exchange.
    """

    def __init__(self, history: RankHistory, center: Any) -> None:
        super().__init__()
        self._events, self._center = history.events, center
        # Durations come from the clock that is never set, begins from the one that hosts share.
        self._offset = time.time() - time.perf_counter()

    def on_epoch_begin(self, epoch: int, logs: dict[str, float] | None = None) -> None:
        self._begun, self._spent = time.perf_counter(), _exchange_seconds(self._center)

    def on_train_batch_end(self, batch: int, logs: dict[str, float] | None = None) -> None:
        now, spent = time.perf_counter(), _exchange_seconds(self._center)
        communication, waiting = (spent - self._spent).tolist()
        computation = now - self._begun - communication - waiting
        start = self._begun + self._offset
        self._begun, self._spent = now, spent
        if len(self._events) >= MOST_EVENTS:
            return
        parts = {"computation": computation, "waiting": waiting, "communication": communication}
        for name, seconds in parts.items():
            if seconds > 0:
                self._events.append((name, start, seconds))
                start += seconds
        if len(self._events) >= MOST_EVENTS:
            logger.warning("the timeline ends here: it has the first %d events of a rank", MOST_EVENTS)


class Tell(keras.callbacks.Callback):
    """Tells the driver how far the rank is, at most twice a second and at the end of every epoch.

    Args:
        model: which model of an ensemble the rank trains; 0 otherwise.
        rows: how many rows it trains on in one epoch.
    """

    def __init__(self, model: int, rows: int) -> None:
        super().__init__()
        self._member, self._rows = model, rows
        self._told = -math.inf

    def on_epoch_begin(self, epoch: int, logs: dict[str, float] | None = None) -> None:
        self._before = epoch * self._rows
        if self._told == -math.inf:
            self._tell(0, {})

    def on_train_batch_end(self, batch: int, logs: dict[str, float] | None = None) -> None:
        steps = self.params["steps"]
        if batch + 1 < steps and time.monotonic() - self._told >= TELL_SECONDS:
            # Windows are near enough for equal parts of an epoch; at its end the number is exact.
            self._tell(self._rows * (batch + 1) // steps, logs)

    def on_epoch_end(self, epoch: int, logs: dict[str, float] | None = None) -> None:
        self._tell(self._rows, logs)

    def _tell(self, rows: int, logs: dict[str, float] | None) -> None:
        self._told = time.monotonic()
        metrics = {name: float(value) for name, value in (logs or {}).items()}
        rank.send(Standing(self._before + rows, self._rows, metrics, self._member))


def _exchange_seconds(center: Any) -> np.ndarray:
    """Seconds that a rank has spent in communication and in waiting, shape (2,)."""
    telemetry = center.telemetry if center else {}
    return np.array([telemetry.get(f"seconds_{name}", 0.0) for name in ("communication", "waiting")])
