"""The callback through which a rank takes part in rounds while it trains."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import keras

from hvdkeras.callbacks.learning_rate import LearningRate
from hvdkeras.callbacks.position import Position
from hvdkeras.coordination.messages import Arrival, Decision, Occasion
from hvdkeras.coordination.participant import Participant
from hvdkeras.history.values import Value, in_keras_form
from hvdkeras.models.vector import FlatWeights


class Attendance(keras.callbacks.Callback):
    """Reports to the coordinator, takes part in rounds, and applies their decisions.

    Args:
        participant: this rank's part in the rounds.
        position: how far the rank is.
        learning_rate: sets the rank's learning rate.
        statistics: the variables that ranks average.
        every: windows between two evaluations of the center; None for one an epoch.
        waits: whether all ranks report at the same point of their training and wait there for the decision.
        is_due: where ranks wait, returns on all of them alike whether a checkpoint is due at this window.
        center_rates: the learning rates of the center's optimizer.

    Attributes:
        waits: as the argument.
        stopped: whether the training of all ranks has been stopped.
    """

    def __init__(
        self,
        participant: Participant,
        position: Position,
        learning_rate: LearningRate,
        statistics: FlatWeights,
        *,
        every: int | None,
        waits: bool,
        is_due: Callable[[], bool],
        center_rates: list[float],
    ) -> None:
        super().__init__()
        self._participant, self._position = participant, position
        self._learning_rate, self._statistics = learning_rate, statistics
        self._every, self.waits, self._is_due = every, waits, is_due
        self._center_rates = center_rates
        self._logs: dict[str, Any] = {}
        self._metrics: dict[str, Value] = {}
        self.stopped = False

    def on_train_begin(self, logs: dict[str, float] | None = None) -> None:
        # The coordinator needs a report of each rank before it can open a round that no rank has asked for.
        self._report(Occasion.BEGIN)

    def on_train_batch_end(self, batch: int, logs: dict[str, float] | None = None) -> None:
        self._logs = dict(logs or {})
        # After an epoch's last window `on_epoch_end` follows, and only then the epoch's record is complete.
        if not self._position.epoch_ends:
            self._take_part(epoch_ends=False)

    def on_epoch_end(self, epoch: int, logs: dict[str, float] | None = None) -> None:
        self._logs = dict(logs or {})
        self._take_part(epoch_ends=True)
        # Callbacks after this one read the center's metrics as they would read those of validation.
        logs.update(in_keras_form(self._metrics))

    def ask_for_stop(self) -> None:
        """Asks the coordinator to stop the training."""
        self._report(Occasion.STOP)

    def finish(self) -> None:
        """Takes part in the rounds that are left after the rank's own training."""
        self._report(Occasion.END)
        self._apply(self._participant.decision(lambda decision: decision.is_last))
        self._participant.leave()

    def _take_part(self, epoch_ends: bool) -> None:
        """Does what is due at the end of a window or an epoch."""
        if self.stopped:
            return
        if epoch_ends if self._every is None else self._position.windows % self._every == 0:
            self._arrive(Occasion.EVALUATE)
        elif self.waits and self._is_due():
            self._arrive(Occasion.SAVE)
        elif not self.waits:
            self._apply(self._participant.attend())

    def _arrive(self, occasion: Occasion) -> None:
        """Reports an occasion; where ranks wait, waits for the decision."""
        self._report(occasion)
        self._apply(self._participant.decision() if self.waits else self._participant.attend())

    def _report(self, occasion: Occasion) -> None:
        position = self._position
        statistics = self._statistics.read()
        self._participant.report(
            Arrival(occasion, position.epochs_done, statistics, self._logs, position.rows)
        )

    def _apply(self, decision: Decision | None) -> None:
        if decision is None:
            return
        self._metrics = decision.metrics or self._metrics
        if decision.stop:
            self.stopped = self.model.stop_training = True
        if decision.learning_rates != self._center_rates:
            self._center_rates = decision.learning_rates
            self._learning_rate.set(decision.learning_rates)
