"""The history recorder: what a rank did in each epoch."""

from __future__ import annotations

import logging
import time
from typing import Any

import keras
import numpy as np

from hvdkeras.callbacks.position import Position
from hvdkeras.history.records import RankHistory
from hvdkeras.history.values import Value, mean, plain, text
from hvdkeras.models.optimizers import learning_rate

logger = logging.getLogger("hvdkeras")


class HistoryRecorder(keras.callbacks.Callback):
    """Fills a `RankHistory`, and logs a line an epoch.

    Args:
        history: what is filled.
        position: how far the rank is.
        counted: the center, or the sums of gradients, whose telemetry counts the seconds of communication;
            None where ranks don't communicate.
        verbose: 2 for a line an epoch, less for none.
        running_logs: what `running_logs` returned in the training that this one resumes.
    """

    def __init__(
        self,
        history: RankHistory,
        position: Position,
        counted: Any,
        verbose: int,
        running_logs: dict[str, Value],
    ) -> None:
        super().__init__()
        self._history, self._position, self._counted, self._verbose = history, position, counted, verbose
        self._logs: dict[str, Any] = {}
        self._before = running_logs

    def running_logs(self) -> dict[str, Value]:
        """Returns the logs of the epoch under way, the part before an interruption included."""
        return self._whole(self._logs)

    def on_train_batch_end(self, batch: int, logs: dict[str, float] | None = None) -> None:
        self._logs = logs or {}

    def on_epoch_begin(self, epoch: int, logs: dict[str, float] | None = None) -> None:
        self._begun, self._spent = time.perf_counter(), exchange_seconds(self._counted)
        self._telemetry = self._counted.telemetry if self._counted else {}

    def on_epoch_end(self, epoch: int, logs: dict[str, float] | None = None) -> None:
        seconds = time.perf_counter() - self._begun
        spent = exchange_seconds(self._counted) - self._spent
        history = self._history
        rows = self._position.rows_done
        history.rows.append(rows)
        for name, value in self._whole(logs or {}).items():
            history.metrics.setdefault(name, []).append(value)
        self._logs, self._before = {}, {}
        for name, value in zip(history.seconds, [seconds - spent.sum(), *spent], strict=True):
            history.seconds[name].append(float(value))
        if (rate := learning_rate(self.model.optimizer)) is not None:
            history.learning_rate.append(rate)
        if "staleness_sum" in self._telemetry:
            history.staleness.append(self._increase("staleness_sum") / max(1, self._increase("exchanges")))
        if self._verbose >= 2:
            values = "  ".join(f"{name} {text(value)}" for name, value in (logs or {}).items())
            logger.info(
                "epoch %d/%d  %s  %.0f samples/s",
                epoch + 1,
                self.params["epochs"],
                values,
                rows / seconds,
            )

    def _whole(self, logs: dict[str, Any]) -> dict[str, Value]:
        """The mean over the epoch of the logs before an interruption and after it, as plain data."""
        if not self._before:
            return {name: plain(value) for name, value in logs.items()}
        before, now = self._position.rows_before, self._position.rows_done - self._position.rows_before
        if not logs:
            return dict(self._before)
        return {name: mean([self._before[name], value], [before, now]) for name, value in logs.items()}

    def _increase(self, name: str) -> float:
        return self._counted.telemetry[name] - self._telemetry[name]


def exchange_seconds(counted: Any) -> np.ndarray:
    """Returns the seconds that a rank has spent in communication and in waiting, shape (2,)."""
    telemetry = counted.telemetry if counted else {}
    return np.array([telemetry.get(f"seconds_{name}", 0.0) for name in ("communication", "waiting")])
