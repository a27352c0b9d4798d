"""A training as a picture."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from hvdkeras.history.records import MEASURED, SECONDS, Evaluation, RankHistory
from hvdkeras.history.values import Value, number

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

TITLES = {
    "learning_rate": "learning rate",
    "staleness": "staleness (updates of other ranks)",
    "distance": "distance from the center (L2 norm)",
}
# With more ranks the colors run from the first to the last, and the legend names these two.
NAMED = 10
CENTER = {"linestyle": "--", "linewidth": 1.8, "marker": "s", "zorder": 3}
# Greys: the colors are the ranks'.
SHADES = ("0.35", "0.6", "0.85")


def draw(ranks: Sequence[RankHistory], center: Sequence[Evaluation]) -> Figure:
    """Draws a panel for each metric and each measure that varies, and one for where the time went.

    Args:
        ranks: what the ranks did.
        center: the evaluations of the center.
    """
    from matplotlib.figure import Figure

    metrics, measures = _metrics(ranks, center), _varying(ranks)
    panels = len(metrics) + len(measures)
    columns = 2 if panels == 3 else min(3, panels + 1)
    rows = panels // columns + 1
    height = 0.5 + 3 * rows + 0.1 * max(0, len(ranks) - 4)
    figure = Figure(figsize=(4.4 * columns, height), layout="constrained")
    grid = figure.add_gridspec(rows, columns)
    colors = _colors(len(ranks))
    for place, name in enumerate([*metrics, *measures]):
        axes = figure.add_subplot(grid[divmod(place, columns)])
        for rank, color in zip(ranks, colors, strict=True):
            values = getattr(rank, name) if name in measures else _numbers(rank.metrics.get(name, []))
            _draw_line(axes, np.arange(1, len(values) + 1), values, color=color)
        if name in metrics:
            _draw_center(axes, center, name, colors if _is_ensemble(ranks) else ["black"])
        axes.set(title=TITLES[name] if name in measures else name, xlabel="epoch")
        axes.xaxis.get_major_locator().set_params(integer=True)
        low, high = axes.get_xlim()
        axes.set_xlim(min(low, 0.9), max(high, 2.1))  # whole numbers in sight also for a single epoch
        axes.grid(alpha=0.3)
    # This panel fills the rest of the last row.
    _draw_seconds(figure.add_subplot(grid[-1, panels % columns :]), ranks)
    _add_legend(figure, ranks, center, colors)
    return figure


def _metrics(ranks: Sequence[RankHistory], center: Sequence[Evaluation]) -> list[str]:
    """Metrics of the ranks, then those that only the center has, without their `val_`."""
    names = [name for rank in ranks for name in rank.metrics]
    names += [name.removeprefix("val_") for evaluation in center for name in evaluation.metrics]
    return list(dict.fromkeys(names))


def _numbers(values: Sequence[Value]) -> list[float]:
    """A line has one number an epoch, that of a vector is the mean."""
    return [number(value) for value in values]


def _varying(ranks: Sequence[RankHistory]) -> list[str]:
    """Measures with more than one value: a constant needs no picture."""
    return [name for name in MEASURED if len({value for rank in ranks for value in getattr(rank, name)}) > 1]


def _is_ensemble(ranks: Sequence[RankHistory]) -> bool:
    return any(rank.member for rank in ranks)


def _labels(ranks: Sequence[RankHistory]) -> list[str]:
    if _is_ensemble(ranks):
        return [f"member {rank.member}" for rank in ranks]
    return [f"rank {rank.rank}" for rank in ranks]


def _colors(count: int) -> list[Any]:
    from matplotlib import colormaps

    if count <= NAMED:
        return list(colormaps["tab10"].colors[:count])
    return list(colormaps["viridis"](np.linspace(0, 0.9, count)))


def _draw_line(axes: Axes, x: Sequence[float], y: Sequence[float], **style: Any) -> None:
    # Markers show where single values are; many would hide the line.
    size = 3 if len(x) <= 50 else 0
    axes.plot(x, y, **{"marker": "o", "markersize": size, **style})


def _draw_center(axes: Axes, center: Sequence[Evaluation], name: str, colors: Sequence[Any]) -> None:
    """Draws a metric of the center, a line for each member of an ensemble, in the member's color."""
    by_member: dict[int, list[Evaluation]] = {}
    for evaluation in center:
        if f"val_{name}" in evaluation.metrics:
            by_member.setdefault(evaluation.member, []).append(evaluation)
    for member, evaluations in by_member.items():
        values = _numbers([evaluation.metrics[f"val_{name}"] for evaluation in evaluations])
        epochs = [evaluation.epoch for evaluation in evaluations]
        _draw_line(axes, epochs, values, color=colors[member], **CENTER)


def _draw_seconds(axes: Axes, ranks: Sequence[RankHistory]) -> None:
    count, labels = len(ranks), _labels(ranks)
    start = np.zeros(count)
    for name, shade in zip(SECONDS, SHADES, strict=True):
        seconds = np.array([sum(rank.seconds[name]) for rank in ranks])
        axes.barh(np.arange(count), seconds, left=start, label=name, color=shade)
        start += seconds
    shown = np.arange(0, count, -(-count // NAMED))
    axes.set_yticks(shown, [labels[place] for place in shown])
    axes.set(title="where the time went", xlabel="seconds")
    # Room for the legend below the bars.
    axes.set_ylim(1.2 * count - 0.2, -0.6)
    axes.legend(frameon=False, loc="lower center", ncols=len(SECONDS), fontsize="small", columnspacing=1)


def _add_legend(
    figure: Figure, ranks: Sequence[RankHistory], center: Sequence[Evaluation], colors: Sequence[Any]
) -> None:
    from matplotlib.lines import Line2D

    named = list(zip(_labels(ranks), colors, strict=True))
    named = named if len(named) <= NAMED else [named[0], named[-1]]
    lines = [Line2D([], [], color=color, label=label) for label, color in named]
    if center:
        lines.append(Line2D([], [], color="black", label="center, validation", **CENTER))
    figure.legend(handles=lines, loc="outside upper center", ncols=min(len(lines), 6), frameon=False)
