"""What holds the ranks together beside the rule: looks at the center, callbacks, checkpoints."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import keras
import numpy as np
from mpi4py import MPI

from hvdkeras.checkpoint.folder import Checkpoints, Writer
from hvdkeras.checkpoint.rank_state import Position
from hvdkeras.coordination.coordinator import Chair
from hvdkeras.coordination.evaluation import CenterModel
from hvdkeras.coordination.messages import Opening, Rounds
from hvdkeras.coordination.participant import Agreement, Pace, Watch
from hvdkeras.history.records import Look
from hvdkeras.models.vector import FlatWeights
from hvdkeras.mpi.collectives import broadcast


@dataclass
class Supervision:
    """A rank's part in all that is neither Keras's training nor the rule.

    Args:
        comm: the ranks that train one model together.
        trainer: what is asked for.
        center: the center as a model.
        position: where the rank is.
        pace: keeps the learning rate.
        other: the variables that ranks average.
        contents: returns the center as the rule sees it, shape `(1 + slots, n)`.
        waits: whether the ranks go in step.
        checkpoints: where checkpoints are kept; None without.
        save: writes this rank's part of the checkpoint of a number.
        resumed: the manifest of the checkpoint from which the training goes on; empty at a new one.
        name: what the center's logs are called.
        facts: what is written into each manifest.
    """

    comm: MPI.Comm
    trainer: Any
    center: CenterModel
    position: Position
    pace: Pace
    other: FlatWeights
    contents: Callable[[], np.ndarray]
    waits: bool
    checkpoints: Checkpoints | None
    save: Callable[[int], None]
    resumed: dict[str, Any]
    name: str
    facts: dict[str, Any]

    def __post_init__(self) -> None:
        minutes = self.trainer.checkpoint_minutes if self.checkpoints else None
        self._clock = Clock(minutes * 60) if minutes else None
        self._chair = self._made_chair() if self.comm.rank == 0 else None
        rounds = Rounds(self.comm, self._take_part, self._chair, self.trainer.timeout)
        before, rate = self._learning_rates()
        if rate != before:
            self.pace.set(rate)
        self._watch = Watch(
            rounds,
            self.position,
            self.pace,
            self.other,
            every=self.trainer.center_window,
            waits=self.waits,
            due=self._all_know_due,
            learning_rate=rate,
        )

    def around(self, callbacks: Sequence[keras.callbacks.Callback]) -> list[keras.callbacks.Callback]:
        """Returns the user's callbacks of this rank between those that make one decision of theirs."""
        return [self._watch, *callbacks, Agreement(self._watch, self.comm, self.trainer.timeout)]

    def finish(self) -> tuple[np.ndarray, np.ndarray] | None:
        """Ends the rounds; rank 0 returns the center's `vectors`, as the callbacks have left them."""
        self._watch.finish()
        if self._chair is None:
            return None
        self._chair.end()
        return self.center.vectors()

    @property
    def looks(self) -> list[Look]:
        """What was seen of the center; empty but at rank 0."""
        return self._chair.looks if self._chair else []

    def _learning_rates(self) -> list[float | None]:
        """Rank 0's learning rate before and after its callbacks; None where it follows a schedule."""
        chair = self._chair
        rates = np.array((chair.learning_rate_before, chair.learning_rate()) if chair else (0, 0), float)
        broadcast(self.comm, rates, self.trainer.timeout, "rank 0 to begin")
        return [None if np.isnan(rate) else float(rate) for rate in rates]

    def _made_chair(self) -> Chair:
        names = self.center.try_out()
        if unknown := sorted(set(self.trainer.stop_at) - set(names)):
            raise ValueError(f"stop_at must name metrics of the center, {names}. Received: {unknown}")
        writer = None
        if self.checkpoints:
            kept = self.trainer.checkpoints_kept
            writer = Writer(self.checkpoints, kept, self.comm.size, self.center, self.contents, self.facts)
        return Chair(
            self.comm.size,
            self.center,
            self.trainer,
            weights=(lambda: None) if self.waits else (lambda: self.contents()[0]),
            writer=writer,
            due=(lambda: False) if self.waits else self._is_due,
            resumed=self.resumed,
            name=self.name,
        )

    def _take_part(self, opening: Opening) -> np.ndarray | None:
        if opening.save is not None:
            self.save(opening.save)
        if not opening.look:
            return None
        trainable = self.contents()[0] if opening.weights is None else opening.weights
        self.center.load(trainable, opening.other)
        return self.center.evaluate()

    def _is_due(self) -> bool:
        return self._clock is not None and self._clock.is_due()

    def _all_know_due(self) -> bool:
        """Rank 0's clock counts: all ranks must save at the same window."""
        if self._clock is None:
            return False
        due = np.array([self._clock.is_due()])
        return bool(broadcast(self.comm, due, self.trainer.timeout, "rank 0 to end its window")[0])


class Clock:
    """Tells every so many seconds that something is due."""

    def __init__(self, seconds: float) -> None:
        self._seconds, self._last = seconds, time.monotonic()

    def is_due(self) -> bool:
        due = time.monotonic() - self._last >= self._seconds
        if due:
            self._last = time.monotonic()
        return due
