"""What happened in a training: per rank, averaged, as pandas, as JSON, as a picture, as a timeline."""

from __future__ import annotations

import json
import math
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from hvdkeras.history import timeline

if TYPE_CHECKING:
    import pandas
    from matplotlib.figure import Figure

SECONDS = ("computation", "communication", "waiting")

# What a rank may measure once an epoch, beside its metrics.
MEASURED = ("learning_rate", "staleness", "distance")

# The key under which a saved history has the version of its format, and the version that is written.
FORMAT_KEY, FORMAT = "hvdkeras_history", 1


@dataclass
class RankHistory:
    """One rank's training.

    Attributes:
        rank: its number in the job.
        host: the name of its host.
        device: what it computed on, such as `"GPU 1"` or `"CPU, 2 threads"`.
        metrics: for each metric one value an epoch, as `keras.callbacks.History` has them.
        rows: rows that it trained on in each epoch.
        seconds: for each of `computation`, `communication` and `waiting` (for other ranks) one value an
            epoch. Communication that runs beside computation is not counted.
        exchange: what the center measured over the whole training, such as the number of exchanges.
        model: which model of an ensemble it trained; 0 otherwise.
        learning_rate: of the rank's optimizer, at the end of each epoch.
        staleness: for each epoch, how many updates of other ranks the center took, on average, between two
            exchanges of this one. Empty where ranks exchange together or never.
        distance: for each epoch, the L2 norm of the rank's weights minus the center just before the epoch's
            last exchange. Empty where ranks have no center.
        events: `(name, start, duration)`: what the rank did, by the names of `seconds`, from when, in seconds
            of its host's `time.time()`, and for how many seconds. Empty unless the trainer writes a
            `timeline`, which also says how many events are kept.
    """

    rank: int
    host: str
    device: str
    metrics: dict[str, list[float]] = field(default_factory=dict)
    rows: list[int] = field(default_factory=list)
    seconds: dict[str, list[float]] = field(default_factory=lambda: {name: [] for name in SECONDS})
    exchange: dict[str, float] = field(default_factory=dict)
    model: int = 0
    learning_rate: list[float] = field(default_factory=list)
    staleness: list[float] = field(default_factory=list)
    distance: list[float] = field(default_factory=list)
    events: list[tuple[str, float, float]] = field(default_factory=list)


@dataclass
class Look:
    """One evaluation of the center.

    Attributes:
        epoch: epochs of training behind it, the mean of the ranks; a fraction where a look is not at an
            epoch's end.
        seconds: since the training began.
        metrics: such as `val_loss` and `val_accuracy`.
        model: which model of an ensemble was evaluated; 0 otherwise.
    """

    epoch: float
    seconds: float
    metrics: dict[str, float]
    model: int = 0


@dataclass
class History:
    """All ranks' training, in the order of the models and ranks.

    Attributes:
        ranks: one entry for each rank and model.
        training_time: seconds from the call of `train` to its result, the launch included.
        rows: rows of the data.
        center: the evaluations of the center, in the order in which they were made.
        restarts: why the training was restarted, one line for each time.
    """

    ranks: list[RankHistory]
    training_time: float
    rows: int
    center: list[Look] = field(default_factory=list)
    restarts: list[str] = field(default_factory=list)

    @classmethod
    def load(cls, path: str) -> History:
        """Reads what `save` wrote.

        Args:
            path: a path or a URL that fsspec opens.

        Raises:
            ValueError: if the file is not a saved history, or one of another version.
        """
        import fsspec

        with fsspec.open(path, "r", encoding="utf-8") as file:
            text = file.read()
        try:
            content = json.loads(text)
            version = content.pop(FORMAT_KEY)
        except (ValueError, KeyError, AttributeError, TypeError) as error:
            raise ValueError(f"path must name a file that History.save wrote. Received: {path!r}") from error
        if version != FORMAT:
            raise ValueError(
                f"path must name a history of the format {FORMAT}, which this version of hvdkeras reads. "
                f"Received: {path!r} of the format {version}"
            )
        content = numbers(content)
        content["ranks"] = [RankHistory(**rank) for rank in content["ranks"]]
        content["center"] = [Look(**look) for look in content["center"]]
        for rank in content["ranks"]:
            rank.events = [tuple(event) for event in rank.events]
        return cls(**content)

    def save(self, path: str) -> None:
        """Writes everything as JSON, with the attributes' names; `load` reads it.

        JSON has no numbers that are not finite: they are written as `{"float": "nan"}`, `"inf"` and `"-inf"`.

        Args:
            path: a path or a URL that fsspec opens.
        """
        import fsspec

        text = json.dumps({FORMAT_KEY: FORMAT, **finite(self.to_dict())}, allow_nan=False)
        with fsspec.open(path, "w", encoding="utf-8") as file:
            file.write(text)

    def averaged(self) -> dict[str, list[float]]:
        """Returns each metric's mean over the ranks that came to an epoch, weighted by their rows."""
        return {
            name: [self._mean(name, epoch) for epoch in range(self._epochs(name))]
            for name in self.ranks[0].metrics
        }

    def rows_seen(self) -> list[int]:
        """Returns the rows that all ranks together trained on in each epoch."""
        epochs = max(len(rank.rows) for rank in self.ranks)
        return [sum(sum(rank.rows[epoch : epoch + 1]) for rank in self.ranks) for epoch in range(epochs)]

    def _epochs(self, name: str) -> int:
        return max(len(rank.metrics[name]) for rank in self.ranks)

    def _mean(self, name: str, epoch: int) -> float:
        """Over the ranks that came to the epoch: asynchronous ones may be stopped in different ones."""
        present = [rank for rank in self.ranks if len(rank.metrics[name]) > epoch]
        rows = [rank.rows[epoch] for rank in present]
        return float(np.average([rank.metrics[name][epoch] for rank in present], weights=rows))

    def to_dict(self) -> dict[str, Any]:
        """Returns everything as dicts, lists and numbers, ready for JSON."""
        return asdict(self)

    def to_pandas(self) -> pandas.DataFrame:
        """Returns a row for each rank and epoch.

        Its columns are rank, model, epoch (from 1), rows, seconds, metrics, learning_rate, staleness and
        distance; NaN where the algorithm has none.
        """
        import pandas

        tables = [
            pandas.DataFrame(
                {
                    "rank": rank.rank,
                    "model": rank.model,
                    "epoch": np.arange(1, len(rank.rows) + 1),
                    "rows": rank.rows,
                    **{f"seconds_{name}": values for name, values in rank.seconds.items()},
                    **rank.metrics,
                    **{name: getattr(rank, name) or math.nan for name in MEASURED},
                }
            )
            for rank in self.ranks
        ]
        return pandas.concat(tables, ignore_index=True)

    def center_to_pandas(self) -> pandas.DataFrame:
        """Returns model, epoch, seconds and metrics, a row for each evaluation of the center."""
        import pandas

        rows = [
            {"model": look.model, "epoch": look.epoch, "seconds": look.seconds, **look.metrics}
            for look in self.center
        ]
        return pandas.DataFrame(rows, columns=None if rows else ["model", "epoch", "seconds"])

    def plot(self, path: str | None = None) -> Figure:
        """Draws the training: metrics, what else changed from epoch to epoch, and where the time went.

        Each rank has a color. The center's `val_loss` stands, dashed, in the panel of `loss`, and so on.

        Args:
            path: file to write the picture to; its ending chooses the format. Default: none is written.
        """
        from hvdkeras.history import plot as pictures

        figure = pictures.draw(self)
        if path is not None:
            figure.savefig(path, dpi=120)
        return figure

    def timeline(self, path: str) -> None:
        """Writes the ranks' events for chrome://tracing and https://ui.perfetto.dev.

        Times count from the first event. Hosts are compared by their clocks.

        Args:
            path: a path or a URL that fsspec opens.

        Raises:
            ValueError: if no events were kept.
        """
        if not any(rank.events for rank in self.ranks):
            raise ValueError("a timeline needs events, which a trainer with the argument timeline keeps")
        timeline.write(path, self.ranks)


def finite(value: Any) -> Any:
    """Returns the same with all numbers that JSON has not as dicts, and tuples as lists."""
    if isinstance(value, dict):
        return {name: finite(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [finite(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return {"float": str(value)}
    return value


def numbers(value: Any) -> Any:
    """Returns what `finite` was given, its tuples as lists."""
    if isinstance(value, list):
        return [numbers(item) for item in value]
    if isinstance(value, dict):
        if value.keys() == {"float"} and isinstance(value["float"], str):
            return float(value["float"])
        return {name: numbers(item) for name, item in value.items()}
    return value
