"""How far a rank's training is."""

from __future__ import annotations

import keras
import numpy as np

from hvdkeras.data.decoding import DecodedRows
from hvdkeras.data.rows import Rows


class Position(keras.callbacks.Callback):
    """Counts epochs, batches and windows. It runs before the callbacks that read it.

    Keras runs `steps_per_execution = communication_window` batches in one call and fires `on_train_batch_end`
    at its end, also when an epoch's rows end before the window does.

    Args:
        rows: the rank's rows.

    Attributes:
        epoch: the epoch under way, from 0.
        step: batches of it that are done.
        steps: batches of an epoch.
        rows: rows of an epoch.
        window_steps: batches of the newest window.
        windows: windows that are done, of all epochs.
        first_step: where the epoch under way began: 0, but for one that was resumed.
    """

    def __init__(self, rows: Rows | DecodedRows) -> None:
        super().__init__()
        self.epoch = self.step = self.window_steps = self.windows = 0
        self.steps, self.rows = rows.steps, rows.rows
        self._batch_ends = np.cumsum(rows.batch_sizes)
        self.first_step = 0

    def resume(self, epoch: int, step: int, windows: int) -> None:
        """Starts from the position of an earlier training."""
        self.epoch, self.first_step, self.windows = epoch, step, windows

    @property
    def epochs_done(self) -> float:
        """Epochs that are done, with the fraction of the one under way."""
        return self.epoch + self.step / self.steps

    @property
    def epoch_ends(self) -> bool:
        """Whether the newest window is the last of its epoch."""
        return self.step == self.steps

    @property
    def rows_done(self) -> int:
        """Rows of the epoch under way that are done."""
        return self._rows_until(self.step)

    @property
    def rows_before(self) -> int:
        """Rows of the epoch under way that were done before the training was interrupted."""
        return self._rows_until(self.first_step)

    def _rows_until(self, step: int) -> int:
        return int(self._batch_ends[step - 1]) if step else 0

    def on_epoch_begin(self, epoch: int, logs: dict[str, float] | None = None) -> None:
        if epoch != self.epoch:
            self.first_step = 0
        self.epoch, self.step = epoch, self.first_step

    def on_train_batch_end(self, batch: int, logs: dict[str, float] | None = None) -> None:
        # Not by `batch`: before 3.11 it is a window's first batch, then its last as if all windows were full.
        step = min(self.step + self.model.steps_per_execution, self.steps)
        self.window_steps, self.step = step - self.step, step
        self.windows += 1
