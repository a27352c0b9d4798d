"""What happened in a training: per rank, averaged, as pandas, as a picture."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    import pandas
    from matplotlib.figure import Figure

SECONDS = ("computation", "communication", "waiting")


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
    """

    rank: int
    host: str
    device: str
    metrics: dict[str, list[float]] = field(default_factory=dict)
    rows: list[int] = field(default_factory=list)
    seconds: dict[str, list[float]] = field(default_factory=lambda: {name: [] for name in SECONDS})
    exchange: dict[str, float] = field(default_factory=dict)
    model: int = 0


@dataclass
class Look:
    """One evaluation of the center.

    Attributes:
        epoch: epochs of training behind it, the mean of the ranks; a fraction where a look is not at an
            epoch's end.
        seconds: since the training began.
        metrics: such as `val_loss` and `val_accuracy`.
        model: which model of an ensemble.
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
    """

    ranks: list[RankHistory]
    training_time: float
    rows: int
    center: list[Look] = field(default_factory=list)
    restarts: list[str] = field(default_factory=list)

    def averaged(self) -> dict[str, list[float]]:
        """Returns each metric's mean over the ranks, weighted by their rows; one value an epoch."""
        weights = np.array([rank.rows for rank in self.ranks], float)
        return {
            name: np.average([rank.metrics[name] for rank in self.ranks], axis=0, weights=weights).tolist()
            for name in self.ranks[0].metrics
        }

    def rows_seen(self) -> list[int]:
        """Returns the rows that all ranks together trained on in each epoch."""
        return np.sum([rank.rows for rank in self.ranks], axis=0).tolist()

    def to_dict(self) -> dict[str, Any]:
        """Returns everything as dicts, lists and numbers, ready for JSON."""
        return asdict(self)

    def to_pandas(self) -> pandas.DataFrame:
        """Returns rank, model, epoch (from 1), rows, seconds and metrics, a row for each rank and epoch."""
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
                }
            )
            for rank in self.ranks
        ]
        return pandas.concat(tables, ignore_index=True)

    def plot(self, path: str | None = None) -> Figure:
        """Draws every metric over the epochs, one line for each rank, and where the time went.

        Args:
            path: file to write the picture to; its ending chooses the format. Default: none is written.
        """
        from matplotlib.figure import Figure

        names = list(self.ranks[0].metrics)
        figure = Figure(figsize=(4.2 * (len(names) + 1), 3.6), layout="constrained")
        *panels, time_panel = figure.subplots(1, len(names) + 1, squeeze=False)[0]
        for panel, name in zip(panels, names, strict=True):
            self._draw_metric(panel, name)
        self._draw_seconds(time_panel)
        if path is not None:
            figure.savefig(path, dpi=120)
        return figure

    def _label(self, rank: RankHistory) -> str:
        ensemble = any(other.model for other in self.ranks)
        return f"model {rank.model}" if ensemble else f"rank {rank.rank}"

    def _draw_metric(self, panel: Any, name: str) -> None:
        for rank in self.ranks:
            epochs = np.arange(1, len(rank.metrics[name]) + 1)
            panel.plot(epochs, rank.metrics[name], marker="o", markersize=3, label=self._label(rank))
        panel.set(title=name, xlabel="epoch")
        panel.xaxis.get_major_locator().set_params(integer=True)
        panel.grid(alpha=0.3)
        panel.legend(frameon=False)

    def _draw_seconds(self, panel: Any) -> None:
        labels = [self._label(rank) for rank in self.ranks]
        start = np.zeros(len(labels))
        for name in SECONDS:
            seconds = np.array([sum(rank.seconds[name]) for rank in self.ranks])
            panel.barh(labels, seconds, left=start, label=name)
            start += seconds
        panel.invert_yaxis()
        panel.set(title="where the time went", xlabel="seconds")
        panel.set_ylim(len(labels) + 0.2, -0.6)
        panel.legend(frameon=False, loc="lower right", ncols=3, fontsize="small")
