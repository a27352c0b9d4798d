"""The events of a rank, for the timeline."""

from __future__ import annotations

import logging
import time
from typing import Any

import keras

from hvdkeras.callbacks.recording import exchange_seconds
from hvdkeras.history.records import RankHistory

logger = logging.getLogger("hvdkeras")

# Of one rank. Ten thousand events are about a megabyte, little beside the weights that go to the driver.
MOST_EVENTS = 20_000


class Events(keras.callbacks.Callback):
    """Records what the rank does in every window, for the timeline.

    The center measures how long a rank waits and communicates in a window, not in which order: the events
    follow the computation, the waiting first.

    Args:
        history: where the events are appended.
        counted: the center, or the sums of gradients, whose telemetry counts the seconds of communication;
            None where ranks don't communicate.
    """

    def __init__(self, history: RankHistory, counted: Any) -> None:
        super().__init__()
        self._history, self._counted = history, counted
        # Durations are measured by a clock that is never adjusted; starts must be comparable between hosts.
        self._offset = time.time() - time.perf_counter()

    def on_epoch_begin(self, epoch: int, logs: dict[str, float] | None = None) -> None:
        self._begun, self._spent = time.perf_counter(), exchange_seconds(self._counted)

    def on_train_batch_end(self, batch: int, logs: dict[str, float] | None = None) -> None:
        now, spent = time.perf_counter(), exchange_seconds(self._counted)
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
