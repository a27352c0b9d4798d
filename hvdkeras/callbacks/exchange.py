"""The Keras callbacks of a rank: the exchange with the center, and the record of what happened."""

from __future__ import annotations

import logging
import math
import time
from typing import Any

import keras
import numpy as np

from hvdkeras.checkpoint.rank_state import Position
from hvdkeras.history.progress import Advance
from hvdkeras.history.records import RankHistory
from hvdkeras.launch import rank
from hvdkeras.models.vector import FlatWeights

logger = logging.getLogger("hvdkeras")

# Of one rank; at a megabyte for ten thousand they stay small beside the weights, on the way to the driver.
MOST_EVENTS = 20_000
# Between two words to the driver.
TELL_SECONDS = 0.5


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


class Distance(keras.callbacks.Callback):
    """Measures how far the rank's weights are from the center, before the last exchange of every epoch.

    It stands before `Exchange`: many rules end with the rank on the center.

    Args:
        history: where to write to.
        center: the center variable.
        weights: the rank's trainable weights.
        position: where the rank is.
    """

    def __init__(self, history: RankHistory, center: Any, weights: FlatWeights, position: Position) -> None:
        super().__init__()
        self._history, self._center, self._weights, self._position = history, center, weights, position

    def on_epoch_begin(self, epoch: int, logs: dict[str, float] | None = None) -> None:
        self._distance = math.nan  # that of an epoch which is cut short

    def on_train_batch_end(self, batch: int, logs: dict[str, float] | None = None) -> None:
        if self._position.step == self._position.steps:
            # Not by a pull, which the staleness of what follows would notice.
            center = self._center.contents().center
            self._distance = float(np.linalg.norm(self._weights.read() - center))

    def on_epoch_end(self, epoch: int, logs: dict[str, float] | None = None) -> None:
        self._history.distance.append(self._distance)


class Record(keras.callbacks.Callback):
    """Fills a `RankHistory`, and says a line an epoch.

    Args:
        history: where to write to.
        position: where the rank is.
        center: whose telemetry tells the time spent in communication; None without exchange.
        verbose: below 2 for silence.
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
        self._begun, self._spent = time.perf_counter(), _exchange_seconds(self._center)
        self._telemetry = self._center.telemetry if self._center else {}

    def on_epoch_end(self, epoch: int, logs: dict[str, float] | None = None) -> None:
        seconds = time.perf_counter() - self._begun
        spent = _exchange_seconds(self._center) - self._spent
        history = self._history
        rows = self._position.rows_done
        history.rows.append(rows)
        for name, value in self._whole(logs or {}).items():
            history.metrics.setdefault(name, []).append(float(value))
        self._logs, self._before = {}, {}
        for name, value in zip(history.seconds, [seconds - spent.sum(), *spent], strict=True):
            history.seconds[name].append(float(value))
        history.learning_rate.append(float(keras.ops.convert_to_numpy(self.model.optimizer.learning_rate)))
        if "staleness_sum" in self._telemetry:
            history.staleness.append(self._increase("staleness_sum") / max(1, self._increase("exchanges")))
        if self._verbose >= 2:
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

    def _increase(self, name: str) -> float:
        return self._center.telemetry[name] - self._telemetry[name]


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
        self._history, self._center = history, center
        # A checkpoint's JSON made lists of them.
        history.events = [tuple(event) for event in history.events]
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
        events = self._history.events
        if len(events) >= MOST_EVENTS:
            return
        parts = {"computation": computation, "waiting": waiting, "communication": communication}
        for name, seconds in parts.items():
            if seconds > 0:
                events.append((name, start, seconds))
                start += seconds
        if len(events) >= MOST_EVENTS:
            logger.warning("the timeline ends here: it has the first %d events of a rank", MOST_EVENTS)


class Tell(keras.callbacks.Callback):
    """Tells the driver how far the rank is, at most twice a second and at the end of every epoch.

    Args:
        model: which model of an ensemble the rank trains; 0 otherwise.
        position: where the rank is.
    """

    def __init__(self, model: int, position: Position) -> None:
        super().__init__()
        self._member, self._position = model, position
        self._told = -math.inf

    def on_epoch_begin(self, epoch: int, logs: dict[str, float] | None = None) -> None:
        if self._told == -math.inf:
            self._tell({})

    def on_train_batch_end(self, batch: int, logs: dict[str, float] | None = None) -> None:
        epoch_ends = self._position.step == self._position.steps
        if not epoch_ends and time.monotonic() - self._told >= TELL_SECONDS:
            self._tell(logs)

    def on_epoch_end(self, epoch: int, logs: dict[str, float] | None = None) -> None:
        self._tell(logs)

    def _tell(self, logs: dict[str, float] | None) -> None:
        self._told = time.monotonic()
        position = self._position
        metrics = {name: float(value) for name, value in (logs or {}).items()}
        rows = position.epoch * position.rows + position.rows_done
        rank.send(Advance(rows, position.rows, metrics, self._member))


def _exchange_seconds(center: Any) -> np.ndarray:
    """Seconds that a rank has spent in communication and in waiting, shape (2,)."""
    telemetry = center.telemetry if center else {}
    return np.array([telemetry.get(f"seconds_{name}", 0.0) for name in ("communication", "waiting")])
