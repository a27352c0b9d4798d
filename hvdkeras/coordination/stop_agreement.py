"""One decision to stop, where a callback of one rank asks for it."""

from __future__ import annotations

import keras
import numpy as np
from mpi4py import MPI

from hvdkeras.coordination.attendance import Attendance
from hvdkeras.mpi.waiting import wait


class StopAgreement(keras.callbacks.Callback):
    """Makes one rank's `stop_training` the decision of all. It runs after the user's callbacks.

    Where ranks exchange together, all stop at the end of the epoch in which the first rank asked for it: the
    others would wait for a rank that stops earlier. Otherwise the coordinator is asked, and stops all.

    Args:
        attendance: the rank's part in the rounds.
        comm: the ranks that train.
        timeout: seconds that a rank waits for the others.
    """

    def __init__(self, attendance: Attendance, comm: MPI.Comm, timeout: float) -> None:
        super().__init__()
        self._attendance, self._comm, self._timeout, self._asked = attendance, comm, timeout, False

    def on_train_batch_end(self, batch: int, logs: dict[str, float] | None = None) -> None:
        self._take_request()

    def on_epoch_end(self, epoch: int, logs: dict[str, float] | None = None) -> None:
        self._take_request()
        if self._attendance.waits and self._has_any_asked():
            self._attendance.stopped = self.model.stop_training = True

    def _has_any_asked(self) -> bool:
        requests = np.array([self._asked])
        reduction = self._comm.Iallreduce(MPI.IN_PLACE, requests, MPI.LOR)
        wait(reduction.Test, self._timeout, f"all {self._comm.size} ranks to end their epoch")
        return bool(requests[0])

    def _take_request(self) -> None:
        if not self.model.stop_training or self._attendance.stopped:
            return
        self.model.stop_training = False
        if not self._attendance.waits and not self._asked:
            self._attendance.ask_for_stop()
        self._asked = True
