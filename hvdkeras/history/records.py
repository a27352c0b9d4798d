"""What one rank did, and one evaluation of the center: plain data."""

from __future__ import annotations

from dataclasses import dataclass, field

from hvdkeras.history.values import Value

SECONDS = ("computation", "communication", "waiting")

# What a rank may measure once an epoch, beside its metrics.
MEASURED = ("learning_rate", "staleness", "distance")


@dataclass
class RankHistory:
    """One rank's training.

    Attributes:
        rank: its number in the job.
        host: the name of its host.
        device: what it computed on, such as `"GPU 1"` or `"CPU, 2 threads"`.
        metrics: for each metric one value an epoch, as `keras.callbacks.History` has them: a number, or the
            list of a vector's numbers.
        rows: rows that it trained on in each epoch.
        seconds: for each of `computation`, `communication` and `waiting` (for other ranks) one value an
            epoch. Communication that runs beside computation is not counted. Where ranks average gradients,
            waiting for slower ranks is part of their communication.
        telemetry: what the center, or the sums of gradients, measured over the whole training, such as the
            number of exchanges.
        member: the number of the ensemble's member that it trained; 0 without an ensemble.
        learning_rate: of the rank's optimizer, at the end of each epoch. Empty where it is made of several.
        staleness: for each epoch, how many updates of other ranks the center took, on average, between two
            exchanges of this one. Empty where ranks exchange together or never.
        distance: for each epoch, the L2 norm of the rank's weights minus the center just before the epoch's
            last exchange. Empty where ranks have no center.
        events: `(name, start, duration)`: a name of `seconds`, the start in seconds of the host's
            `time.time()`, and the duration in seconds. Empty unless the trainer has a `timeline`, whose
            documentation says how many events are kept.
    """

    rank: int
    host: str
    device: str
    metrics: dict[str, list[Value]] = field(default_factory=dict)
    rows: list[int] = field(default_factory=list)
    seconds: dict[str, list[float]] = field(default_factory=lambda: {name: [] for name in SECONDS})
    telemetry: dict[str, float] = field(default_factory=dict)
    member: int = 0
    learning_rate: list[float] = field(default_factory=list)
    staleness: list[float] = field(default_factory=list)
    distance: list[float] = field(default_factory=list)
    events: list[tuple[str, float, float]] = field(default_factory=list)


@dataclass
class Evaluation:
    """One evaluation of the center.

    Attributes:
        epoch: epochs of training done before it, the mean of the ranks; a fraction where the evaluation is
            not at an epoch's end.
        seconds: since the training began.
        metrics: such as `val_loss` and `val_accuracy`: numbers, or lists of a vector's numbers.
        member: the number of the ensemble's member that was evaluated; 0 without an ensemble.
    """

    epoch: float
    seconds: float
    metrics: dict[str, Value]
    member: int = 0
