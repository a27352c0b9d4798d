"""The callbacks of a rank that hold it together with the others: rounds, stopping, the learning rate."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import keras
import numpy as np
from mpi4py import MPI

from hvdkeras.checkpoint.rank_state import Position
from hvdkeras.coordination.messages import Decision, Report, Rounds
from hvdkeras.models.vector import FlatWeights
from hvdkeras.mpi.waiting import wait


class Pace(keras.callbacks.Callback):
    """Multiplies the optimizer's learning rate by the trainer's factor, before every window.

    Args:
        optimizer: the rank's optimizer.
        factor: the factor for a number of epochs done.
        position: where the rank is.

    Attributes:
        factor: what the optimizer's learning rate has been multiplied by.
    """

    def __init__(self, optimizer: Any, factor: Callable[[float], float], position: Position) -> None:
        super().__init__()
        self._optimizer, self._factor_at, self._position = optimizer, factor, position
        self.factor = 1.0

    def on_train_batch_begin(self, batch: int, logs: dict[str, float] | None = None) -> None:
        factor = self._factor_at(self._position.progress)
        if factor != self.factor:
            rate = float(keras.ops.convert_to_numpy(self._optimizer.learning_rate))
            self._optimizer.learning_rate = rate * factor / self.factor
            self.factor = factor

    def set(self, learning_rate: float) -> None:
        """Sets the learning rate before the factor."""
        self._optimizer.learning_rate = learning_rate * self.factor


class Watch(keras.callbacks.Callback):
    """Reports to the rounds, does what they ask for, and follows what they decide.

    Args:
        rounds: this rank's part in the rounds.
        position: where the rank is.
        pace: keeps the learning rate.
        other: the variables that ranks average.
        every: windows between two looks at the center; None for one look an epoch.
        waits: whether all ranks come to a round at the same point of their training and wait for it there.
        due: tells all ranks alike, where they wait, whether a checkpoint is due at this window.
        learning_rate: what rank 0 last told of it; None where it follows a schedule.

    Attributes:
        stopped: whether it has been decided that no rank trains any further.
    """

    def __init__(
        self,
        rounds: Rounds,
        position: Position,
        pace: Pace,
        other: FlatWeights,
        *,
        every: int | None,
        waits: bool,
        due: Callable[[], bool],
        learning_rate: float | None,
    ) -> None:
        super().__init__()
        self._rounds, self._position, self._pace, self._other = rounds, position, pace, other
        self._every, self.waits, self._due = every, waits, due
        self._learning_rate = learning_rate
        self._logs: dict[str, float] = {}
        self._metrics: dict[str, float] = {}
        self.stopped = False

    def on_train_begin(self, logs: dict[str, float] | None = None) -> None:
        # Rank 0 needs one report of each rank before it can open a round that none has come to.
        self._rounds.report(self._report("begin"))

    def on_train_batch_end(self, batch: int, logs: dict[str, float] | None = None) -> None:
        self._logs = dict(logs or {})
        # The end of the epoch follows its last window, and only then its record is complete.
        if self._position.step < self._position.steps:
            self._come()

    def on_epoch_end(self, epoch: int, logs: dict[str, float] | None = None) -> None:
        self._logs = dict(logs or {})
        self._come(epoch_ends=True)
        # Callbacks that come later see the center's metrics as they would see validation's.
        logs.update(self._metrics)

    def wish_to_stop(self) -> None:
        """Tells rank 0 that this rank has had enough."""
        self._rounds.report(self._report("stop"))

    def _come(self, epoch_ends: bool = False) -> None:
        """Takes part in what is due at the end of a window or an epoch."""
        if self.stopped:
            return
        if epoch_ends if self._every is None else self._position.windows % self._every == 0:
            self._join("look")
        elif self.waits and self._due():
            self._join("save")
        elif not self.waits:
            self._follow(self._rounds.attend())

    def _join(self, kind: str) -> None:
        """Tells rank 0 that this rank has come as far as a round; waits for its end if all do."""
        self._rounds.report(self._report(kind))
        self._follow(self._rounds.decision() if self.waits else self._rounds.attend())

    def finish(self) -> None:
        """Takes part in the rounds that are left after the rank's own training."""
        self._rounds.report(self._report("final"))
        self._follow(self._rounds.decision(lambda decision: decision.end))
        self._rounds.leave()

    def _report(self, kind: str) -> Report:
        position = self._position
        return Report(kind, position.progress, self._other.read(), self._logs, position.rows)

    def _follow(self, decision: Decision | None) -> None:
        if decision is None:
            return
        self._metrics = decision.metrics or self._metrics
        if decision.stop:
            self.stopped = self.model.stop_training = True
        if decision.learning_rate is not None and decision.learning_rate != self._learning_rate:
            self._learning_rate = decision.learning_rate
            self._pace.set(decision.learning_rate)


class Agreement(keras.callbacks.Callback):
    """Makes one rank's wish to stop the decision of all. It comes after the user's callbacks.

    Where ranks exchange together all stop at the end of the epoch in which the first one wished it: a rank
    that left earlier would leave the others waiting. Otherwise rank 0 is told, and stops all.

    Args:
        watch: the rank's part in the rounds.
        comm: the ranks that train.
        timeout: seconds that a rank waits for the others.
    """

    def __init__(self, watch: Watch, comm: MPI.Comm, timeout: float) -> None:
        super().__init__()
        self._watch, self._comm, self._timeout, self._wished = watch, comm, timeout, False

    def on_train_batch_end(self, batch: int, logs: dict[str, float] | None = None) -> None:
        self._take_wish()

    def on_epoch_end(self, epoch: int, logs: dict[str, float] | None = None) -> None:
        self._take_wish()
        if self._watch.waits and self._any_wished():
            self._watch.stopped = self.model.stop_training = True

    def _any_wished(self) -> bool:
        wishes = np.array([self._wished])
        request = self._comm.Iallreduce(MPI.IN_PLACE, wishes, MPI.LOR)
        wait(request.Test, self._timeout, f"all {self._comm.size} ranks to end their epoch")
        return bool(wishes[0])

    def _take_wish(self) -> None:
        if not self.model.stop_training or self._watch.stopped:
            return
        self.model.stop_training = False
        if not self._watch.waits and not self._wished:
            self._watch.wish_to_stop()
        self._wished = True
