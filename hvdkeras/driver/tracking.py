"""Who else follows the trainings of this process, beside the user: an experiment tracker, on the driver."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

from hvdkeras.driver.configuration import Configuration
from hvdkeras.driver.training import Request
from hvdkeras.history import History
from hvdkeras.launch import environment
from hvdkeras.spec import EnsembleSpec


class TrainingRun:
    """What a tracker gets of one training. This one keeps nothing."""

    def on_message(self, rank: int, message: Any) -> None:
        """Takes an `Advance` of a rank, an `Evaluation`, or another message, on any thread; does not wait."""

    def finish(self, history: History, models: Callable[[], list[Any]]) -> None:
        """Takes the result of a training that succeeded: its history, and what makes its Keras models."""


Tracker = Callable[[Configuration, EnsembleSpec | None, int, Request], AbstractContextManager[TrainingRun]]
"""Begins and ends a run, given the configuration, the ensemble, the number of ranks and the user's call."""

_tracker: Tracker | None = None


@contextmanager
def following(tracker: Tracker) -> Iterator[None]:
    """Has a tracker follow every training of this process, until the block ends.

    Raises:
        ValueError: another tracker does so already.
    """
    global _tracker
    if _tracker is not None:
        raise ValueError(f"one tracker may follow the trainings at a time. Received: {tracker!r}")
    _tracker = tracker
    try:
        yield
    finally:
        _tracker = None


def tracked(
    configuration: Configuration, ensemble: EnsembleSpec | None, num_workers: int, request: Request
) -> AbstractContextManager[TrainingRun]:
    """Returns the run of one training; one that keeps nothing where no tracker follows, or on other ranks."""
    job = environment.job()
    if _tracker is None or (job is not None and job.rank > 0):
        return nullcontext(TrainingRun())
    return _tracker(configuration, ensemble, num_workers, request)
