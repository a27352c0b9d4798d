"""The messages between participants and the coordinator."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import Enum
from typing import Any

import numpy as np

from hvdkeras.checkpoint.folder import WrittenFile
from hvdkeras.history.values import Value


class Occasion(Enum):
    """Why a rank reports."""

    BEGIN = "begin"
    """Its training begins."""
    EVALUATE = "evaluate"
    """It has reached a point where the center is to be evaluated."""
    SAVE = "save"
    """It has reached a point where a checkpoint is due, without an evaluation."""
    STOP = "stop"
    """One of its callbacks has asked for the training to stop."""
    END = "end"
    """Its own training is over."""


@dataclass
class Arrival:
    """A rank's report of where its training is.

    Attributes:
        occasion: why it reports.
        epochs: epochs of training that it has done.
        statistics: its averaged variables, shape `(m,)`.
        logs: Keras's logs of its training, of the newest epoch or the running one.
        rows: rows that it trains on in an epoch: its weight in the mean of the logs.
    """

    occasion: Occasion
    epochs: float
    statistics: np.ndarray
    logs: dict[str, Any] = field(default_factory=dict)
    rows: int = 1


@dataclass
class Round:
    """The coordinator's request to all ranks.

    Attributes:
        evaluate: whether to evaluate the center.
        save: the number of the checkpoint to write a part of; None for no checkpoint.
        center: the center to evaluate, shape `(n,)`; None where every rank has it.
        statistics: the mean of the ranks' averaged variables, shape `(m,)`.
    """

    evaluate: bool
    save: int | None
    center: np.ndarray | None
    statistics: np.ndarray


@dataclass
class Contribution:
    """A rank's part of a round.

    Attributes:
        totals: its metrics' totals, which add up over the ranks, shape `(k,)`; None without an evaluation, or
            without validation rows of its own.
        files: what it has written for a checkpoint.
    """

    totals: np.ndarray | None
    files: Sequence[WrittenFile] = ()


@dataclass
class Decision:
    """The end of a round.

    Attributes:
        stop: whether the training ends now.
        is_last: whether no round will follow.
        learning_rates: those of the center's optimizer, which callbacks set, see
            `hvdkeras.models.optimizers.learning_rates`.
        metrics: the center's, such as `val_loss`.
    """

    stop: bool = False
    is_last: bool = False
    learning_rates: list[float] = field(default_factory=list)
    metrics: dict[str, Value] = field(default_factory=dict)
