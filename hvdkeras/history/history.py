"""A whole training: its ranks and evaluations, as pandas, as JSON, as a picture, as a timeline."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from hvdkeras.data.store import open_text
from hvdkeras.history import plot, standard_json, timeline
from hvdkeras.history.records import MEASURED, Evaluation, RankHistory
from hvdkeras.history.saturation import Load, Saturation
from hvdkeras.history.values import Value, mean

if TYPE_CHECKING:
    import pandas
    from matplotlib.figure import Figure

# The key under which a saved history has the version of its format, and the version that is written.
FORMAT_KEY, FORMAT = "hvdkeras_history", 1


@dataclass
class History:
    """All ranks' training, in the order of the models and ranks.

    Attributes:
        ranks: one entry for each rank and model.
        training_time: seconds from the call of `train` to its result, the launch included.
        rows: rows of the data.
        center: the evaluations of the center, in the order in which they were made.
        restarts: why the training was restarted, one line for each time.
        skipped_checkpoints: damaged checkpoints that the training did not resume from, a line each.
    """

    ranks: list[RankHistory]
    training_time: float
    rows: int
    center: list[Evaluation] = field(default_factory=list)
    restarts: list[str] = field(default_factory=list)
    skipped_checkpoints: list[str] = field(default_factory=list)

    @classmethod
    def load(cls, path: str) -> History:
        """Reads what `save` wrote.

        Args:
            path: a path, or a URL that pyarrow or fsspec opens.

        Raises:
            ValueError: if the file is not a saved history, or one of another version.
        """
        with open_text(path, "r") as file:
            text = file.read()
        try:
            content = standard_json.loads(text)
            version = content.pop(FORMAT_KEY)
        except (ValueError, KeyError, AttributeError, TypeError) as error:
            raise ValueError(f"path must name a file that History.save wrote. Received: {path!r}") from error
        if version != FORMAT:
            raise ValueError(
                f"path must name a history of the format {FORMAT}, which this version of hvdkeras reads. "
                f"Received: {path!r} of the format {version}"
            )
        try:
            content["ranks"] = [RankHistory(**rank) for rank in content["ranks"]]
            content["center"] = [Evaluation(**evaluation) for evaluation in content["center"]]
            for rank in content["ranks"]:
                rank.events = [tuple(event) for event in rank.events]
            return cls(**content)
        except (KeyError, TypeError) as error:
            raise ValueError(
                f"path must name a file as History.save writes it. Received: {path!r} "
                f"({type(error).__name__}: {error})"
            ) from error

    def save(self, path: str) -> None:
        """Writes everything as JSON, with the attributes' names; `load` reads it.

        JSON has no numbers that are not finite: they are written as `{"float": "nan"}`, `"inf"` and `"-inf"`.

        Args:
            path: a path, or a URL that pyarrow or fsspec opens.
        """
        text = standard_json.dumps({FORMAT_KEY: FORMAT, **self.to_dict()})
        with open_text(path, "w") as file:
            file.write(text)

    def averaged(self) -> dict[str, list[Value]]:
        """Returns each metric's mean over the ranks that trained in an epoch, weighted by their rows."""
        return {
            name: [self._mean(name, epoch) for epoch in range(self._epochs(name))]
            for name in self.ranks[0].metrics
        }

    def rows_seen(self) -> list[int]:
        """Returns the rows that all ranks together trained on in each epoch."""
        epochs = max(len(rank.rows) for rank in self.ranks)
        return [sum(sum(rank.rows[epoch : epoch + 1]) for rank in self.ranks) for epoch in range(epochs)]

    @property
    def saturation(self) -> Saturation | None:
        """How near an asynchronous center at rank 0 was to its saturation.

        The first window of each rank does not count. None for other algorithms and centers, and where a rank
        had one window only.
        """
        loads = [Load.of(rank.telemetry) for rank in self.ranks]
        return Saturation.of(loads) if loads and all(loads) else None

    def _epochs(self, name: str) -> int:
        return max(len(rank.metrics[name]) for rank in self.ranks)

    def _mean(self, name: str, epoch: int) -> Value:
        """The mean over the ranks that trained in the epoch: asynchronous ranks stop in different ones."""
        present = [rank for rank in self.ranks if len(rank.metrics[name]) > epoch]
        rows = [rank.rows[epoch] for rank in present]
        return mean([rank.metrics[name][epoch] for rank in present], rows)

    def to_dict(self) -> dict[str, Any]:
        """Returns everything as dicts, lists and numbers, ready for JSON."""
        return asdict(self)

    def to_pandas(self) -> pandas.DataFrame:
        """Returns a row for each rank and epoch.

        Its columns are rank, member, epoch (from 1), rows, seconds, metrics, learning_rate, staleness and
        distance; NaN where the algorithm has none.
        """
        import pandas

        tables = [
            pandas.DataFrame(
                {
                    "rank": rank.rank,
                    "member": rank.member,
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
        """Returns member, epoch, seconds and metrics, a row for each evaluation of the center."""
        import pandas

        rows = [
            {"member": each.member, "epoch": each.epoch, "seconds": each.seconds, **each.metrics}
            for each in self.center
        ]
        return pandas.DataFrame(rows, columns=None if rows else ["member", "epoch", "seconds"])

    def plot(self, path: str | None = None) -> Figure:
        """Draws the training: metrics, what else changed from epoch to epoch, and where the time went.

        Each rank has a color. The center's `val_loss` is a dashed line in the panel of `loss`, and so on. A
        metric that is a vector is drawn as the mean of its numbers.

        Args:
            path: file to write the picture to; its ending chooses the format. Default: none is written.
        """
        figure = plot.draw(self.ranks, self.center)
        if path is not None:
            figure.savefig(path, dpi=120)
        return figure

    def timeline(self, path: str) -> None:
        """Writes the ranks' events for chrome://tracing and https://ui.perfetto.dev.

        Times count from the first event, by the clocks of the hosts.

        Args:
            path: a path, or a URL that pyarrow or fsspec opens.

        Raises:
            ValueError: if no events were kept.
        """
        if not any(rank.events for rank in self.ranks):
            raise ValueError("a timeline needs events, which a trainer with the argument timeline keeps")
        timeline.write(path, self.ranks)
