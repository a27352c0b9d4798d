"""What a rank does beside Keras's training and the rule: evaluations, callbacks, checkpoints."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any

import keras
import numpy as np

from hvdkeras.algorithm import Mode
from hvdkeras.callbacks.tensorboard import TensorBoard
from hvdkeras.center.contents import Contents
from hvdkeras.checkpoint.folder import CheckpointFolder, WrittenFile
from hvdkeras.checkpoint.writer import CheckpointWriter
from hvdkeras.coordination.attendance import Attendance
from hvdkeras.coordination.center_callbacks import CenterCallbacks
from hvdkeras.coordination.center_saver import CenterSaver
from hvdkeras.coordination.coordinator import Coordinator
from hvdkeras.coordination.evaluation import CenterModel
from hvdkeras.coordination.messages import Contribution, Round
from hvdkeras.coordination.participant import Participant
from hvdkeras.coordination.stop_agreement import StopAgreement
from hvdkeras.history.records import Evaluation
from hvdkeras.models.optimizers import learning_rates, moving_averages
from hvdkeras.models.structure import structures
from hvdkeras.models.vector import flat
from hvdkeras.mpi.collectives import broadcast
from hvdkeras.mpi.mailbox import Mailbox
from hvdkeras.rank.place import Place
from hvdkeras.rank.replica import Replica
from hvdkeras.rank.resuming import Start
from hvdkeras.spec import TrainingSpec

Save = Callable[[int], Sequence[WrittenFile]]
"""Writes this rank's part of the checkpoint of a number."""


class Oversight:
    """Assembles a rank's part in the rounds. All ranks call `callbacks` and `finish`.

    Args:
        spec: the training.
        place: this rank.
        replica: the model that trains here.
        center: the center as a model.
        contents: returns the center and its slots.

    Attributes:
        evaluations: the evaluations of the center; empty except at rank 0.
    """

    def __init__(
        self,
        spec: TrainingSpec,
        place: Place,
        replica: Replica,
        center: CenterModel,
        contents: Callable[[], Contents],
    ) -> None:
        self._spec, self._place, self._replica = spec, place, replica
        self._center, self._contents = center, contents
        self._waits = spec.algorithm.mode is not Mode.ASYNCHRONOUS
        minutes = spec.checkpoint.minutes if spec.checkpoint else None
        self._clock = Clock(60 * minutes) if minutes else None
        self._center_callbacks: CenterCallbacks | None = None
        self._attendance: Attendance | None = None
        self._saver: CenterSaver | None = None

    def callbacks(
        self, users: Sequence[Any], folder: CheckpointFolder | None, save: Save, start: Start, facts: dict
    ) -> list[keras.callbacks.Callback]:
        """Starts the rounds; returns the callbacks of this rank, the user's among them.

        Args:
            users: the user's callbacks of this rank.
            folder: of the checkpoints; None without.
            save: writes this rank's part of a checkpoint.
            start: where the training starts.
            facts: what a checkpoint must share with the training that resumes it.
        """
        comm, timeout = self._place.comm, self._spec.timeout
        coordinator = None
        before = after = learning_rates(self._center.model.optimizer)
        if comm.rank == 0:
            self._center_callbacks = self._made_center_callbacks(start)
            before = self._center_callbacks.learning_rates()
            self._center_callbacks.begin()
            after = self._center_callbacks.learning_rates()
            coordinator = self._made_coordinator(folder, start, facts)
        shared = np.array([before, after], float)
        before, after = broadcast(comm, shared, timeout, "rank 0 to begin").tolist()
        if after != before:
            self._replica.learning_rate.set(after)
        participant = Participant(
            Mailbox(comm, timeout),
            comm.size,
            lambda round_: self._take_part(round_, save),
            coordinator,
            timeout,
        )
        self._attendance = Attendance(
            participant,
            self._replica.position,
            self._replica.learning_rate,
            self._replica.statistics,
            every=self._spec.oversight.center_window,
            waits=self._waits,
            is_due=self._all_know_due,
            center_rates=after,
        )
        return [self._attendance, *users, StopAgreement(self._attendance, comm, timeout)]

    def finish(self, final: np.ndarray | None) -> tuple[np.ndarray, np.ndarray] | None:
        """Ends the rounds; rank 0 returns the center's `vectors`, as the callbacks have left them.

        Args:
            final: the weights that Keras puts in the place of those that trained, before callbacks end: a
                moving average. None without one.
        """
        self._attendance.finish()
        if self._saver is not None:
            self._saver.close()
        if self._center_callbacks is None:
            return None
        if final is not None:
            _, statistics = self._center.vectors()
            self._center.load(final, statistics)
        self._center_callbacks.end()
        return self._center.vectors()

    @property
    def evaluations(self) -> list[Evaluation]:
        return self._center_callbacks.evaluations if self._center_callbacks else []

    def _made_center_callbacks(self, start: Start) -> CenterCallbacks:
        oversight = self._spec.oversight
        logs = tensorboard(oversight.tensorboard, self._place.center_log_name)
        return CenterCallbacks(
            self._center,
            [*oversight.center_callbacks, *logs],
            oversight.stop_at,
            self._spec.num_epoch,
            self._place.comm.size,
            start.manifest,
        )

    def _made_coordinator(self, folder: CheckpointFolder | None, start: Start, facts: dict) -> Coordinator:
        checkpoint = self._spec.checkpoint
        if folder is not None:
            facts = {**facts, "structures": structures(self._spec.recipe)}
            writer = CheckpointWriter(folder, checkpoint.kept, facts)
            self._saver = CenterSaver(writer, self._center, self._contents)
        return Coordinator(
            self._place.comm.size,
            self._center_callbacks,
            weights=(lambda: None) if self._waits else (lambda: self._contents().center),
            saver=self._saver,
            saves_evaluations=checkpoint is not None and checkpoint.minutes is None,
            is_due=(lambda: False) if self._waits else self._is_due,
            resumed=start.manifest,
        )

    def _take_part(self, round_: Round, save: Save) -> Contribution:
        files = [] if round_.save is None else save(round_.save)
        if not round_.evaluate:
            return Contribution(None, files)
        trainable = self._contents().center if round_.center is None else round_.center
        oversight, model = self._spec.oversight, self._replica.model
        evaluated = flat(moving_averages(model)) if oversight.evaluates_average else trainable
        self._center.load(evaluated, round_.statistics)
        totals = self._center.evaluate()
        if oversight.evaluates_average and not oversight.keeps_average:
            self._center.load(trainable, round_.statistics)
        if self._center_callbacks and oversight.center_callbacks:
            self._center.take_optimizer(model)
        return Contribution(totals, files)

    def _is_due(self) -> bool:
        return self._clock is not None and self._clock.is_due()

    def _all_know_due(self) -> bool:
        """Returns rank 0's answer on all ranks, which must save at the same window."""
        if self._clock is None:
            return False
        due = np.array([self._clock.is_due()])
        what = "rank 0 to end its window"
        return bool(broadcast(self._place.comm, due, self._spec.timeout, what)[0])


class Clock:
    """Makes something due in intervals of so many seconds."""

    def __init__(self, seconds: float) -> None:
        self._seconds, self._last = seconds, time.monotonic()

    def is_due(self) -> bool:
        due = time.monotonic() - self._last >= self._seconds
        if due:
            self._last = time.monotonic()
        return due


def tensorboard(folder: str | None, name: str) -> list[Any]:
    """Returns a callback that writes TensorBoard's logs into `folder/name`; none without a folder."""
    return [] if folder is None else [TensorBoard(f"{folder.rstrip('/')}/{name}")]
