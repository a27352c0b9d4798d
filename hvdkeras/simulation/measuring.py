"""The seconds of a step, their spread, and those of an exchange, from a short training on this machine."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np

from hvdkeras.algorithm import Mode
from hvdkeras.simulation.times import Times

if TYPE_CHECKING:
    from hvdkeras.trainers import Trainer

# The first epoch compiles, and in the last some ranks have ended, whose cores the others have then. Both are
# left out.
_EPOCHS = 6
# Between the quartiles of a normal distribution lie as many standard deviations.
_QUARTILES = 1.349
# Arguments that end or resume a training, evaluate its center, or write files.
_LEFT_OUT = (
    "callbacks",
    "center_callbacks",
    "stop_at",
    "validation_split",
    "validation_indicator_col",
    "checkpoint",
    "checkpoint_minutes",
    "resume",
    "max_restarts",
    "tensorboard",
    "timeline",
)


def measure(trainer: Trainer, data: Any, num_workers: int = 1) -> Times:
    """Trains for a few epochs on ranks of this machine, and returns what a step and an exchange took.

    Args:
        trainer: the trainer; it is not changed. A batch and a window are its own.
        data: what it trains on, as in `Trainer.train`; a part of the data is enough.
        num_workers: ranks. With one, nobody disturbs it; with more the ranks share the machine's memory and
            cores, and workers that exchange together have a reduction to measure.

    Returns:
        Times with `step` and `exchange`: medians over the ranks and the epochs but the first and the last.
        Where gradients are averaged, the wait for slower ranks is part of `exchange`. `spread` is that of
        independent steps whose epochs differ as much, by the quartiles: one disturbance does not count.

    Raises:
        ValueError: as `Trainer.train`.
    """
    used = _bare(trainer)
    used.num_workers, used.num_epoch, used.verbose = num_workers, _EPOCHS, 0
    used.train(data)
    algorithm, steps, exchanges, counts = used.algorithm(), [], [], []
    averaging = algorithm.gradient_averaging if algorithm.mode is Mode.GRADIENTS else None
    window = averaging.accumulation if averaging else used.communication_window
    for rank in used.history.ranks:
        for epoch in range(1, len(rank.rows) - 1):
            batches = math.ceil(rank.rows[epoch] / used.batch_size)
            windows = math.ceil(batches / min(window or batches, batches))
            counts.append(batches)
            steps.append(rank.seconds["computation"][epoch] / batches)
            exchanges.append(rank.seconds["communication"][epoch] / windows)
    first, step, third = np.quantile(steps, [0.25, 0.5, 0.75])
    spread = (third - first) / _QUARTILES / step * np.sqrt(np.median(counts))
    return Times(step=float(step), exchange=float(np.median(exchanges)), spread=float(spread))


def _bare(trainer: Trainer) -> Trainer:
    """A copy of a trainer that only trains, from the beginning to the end."""
    result = trainer.copy()
    for name in _LEFT_OUT:
        result.reset(name)
    return result
