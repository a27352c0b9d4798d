"""A training as a picture."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from hvdkeras.history.records import MEASURED, SECONDS, History, Look, RankHistory

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


def draw(history: History) -> Figure:
    """Draws a panel for each metric and each measure that varies, and one for where the time went."""
    from matplotlib.figure import Figure

    metrics, measures = _metrics(history), _varying(history.ranks)
    panels = len(metrics) + len(measures)
    columns = 2 if panels == 3 else min(3, panels + 1)
    rows = panels // columns + 1
    height = 0.5 + 3 * rows + 0.1 * max(0, len(history.ranks) - 4)
    figure = Figure(figsize=(4.4 * columns, height), layout="constrained")
    grid = figure.add_gridspec(rows, columns)
    colors = _colors(history)
    for place, name in enumerate([*metrics, *measures]):
        axes = figure.add_subplot(grid[divmod(place, columns)])
        for rank, color in zip(history.ranks, colors, strict=True):
            values = getattr(rank, name) if name in measures else rank.metrics.get(name, [])
            _draw_line(axes, np.arange(1, len(values) + 1), values, color=color)
        if name in metrics:
            _draw_center(axes, history, name, colors)
        axes.set(title=TITLES[name] if name in measures else name, xlabel="epoch")
        axes.xaxis.get_major_locator().set_params(integer=True)
        low, high = axes.get_xlim()
        axes.set_xlim(min(low, 0.9), max(high, 2.1))  # whole numbers in sight also for a single epoch
        axes.grid(alpha=0.3)
    # It has the rest of the last row, so that no place stays empty.
    _draw_seconds(figure.add_subplot(grid[-1, panels % columns :]), history)
    _add_legend(figure, history, colors)
    return figure


def _metrics(history: History) -> list[str]:
    """Metrics of the ranks, then those that only the center has, without their `val_`."""
    names = [name for rank in history.ranks for name in rank.metrics]
    names += [name.removeprefix("val_") for look in history.center for name in look.metrics]
    return list(dict.fromkeys(names))


def _varying(ranks: Sequence[RankHistory]) -> list[str]:
    """What ranks measured and what tells something: a line at one height does not."""
    return [name for name in MEASURED if len({value for rank in ranks for value in getattr(rank, name)}) > 1]


def _is_ensemble(history: History) -> bool:
    return any(rank.model for rank in history.ranks)


def _label(history: History, rank: RankHistory) -> str:
    return f"model {rank.model}" if _is_ensemble(history) else f"rank {rank.rank}"


def _colors(history: History) -> list[Any]:
    from matplotlib import colormaps

    count = len(history.ranks)
    if count <= NAMED:
        return list(colormaps["tab10"].colors[:count])
    return list(colormaps["viridis"](np.linspace(0, 0.9, count)))


def _draw_line(axes: Axes, x: Sequence[float], y: Sequence[float], **style: Any) -> None:
    # Markers show where single values are; many would hide the line.
    size = 3 if len(x) <= 50 else 0
    axes.plot(x, y, **{"marker": "o", "markersize": size, **style})


def _draw_center(axes: Axes, history: History, name: str, colors: Sequence[Any]) -> None:
    looks: dict[int, list[Look]] = {}
    for look in history.center:
        if f"val_{name}" in look.metrics:
            looks.setdefault(look.model, []).append(look)
    for model, each in looks.items():
        color = colors[model] if _is_ensemble(history) else "black"
        values = [look.metrics[f"val_{name}"] for look in each]
        _draw_line(axes, [look.epoch for look in each], values, color=color, **CENTER)


def _draw_seconds(axes: Axes, history: History) -> None:
    count = len(history.ranks)
    start = np.zeros(count)
    for name, shade in zip(SECONDS, SHADES, strict=True):
        seconds = np.array([sum(rank.seconds[name]) for rank in history.ranks])
        axes.barh(np.arange(count), seconds, left=start, label=name, color=shade)
        start += seconds
    shown = np.arange(0, count, -(-count // NAMED))
    axes.set_yticks(shown, [_label(history, history.ranks[place]) for place in shown])
    axes.set(title="where the time went", xlabel="seconds")
    # Below the bars is the place of the legend.
    axes.set_ylim(1.2 * count - 0.2, -0.6)
    axes.legend(frameon=False, loc="lower center", ncols=len(SECONDS), fontsize="small", columnspacing=1)


def _add_legend(figure: Figure, history: History, colors: Sequence[Any]) -> None:
    from matplotlib.lines import Line2D

    named = list(zip(history.ranks, colors, strict=True))
    named = named if len(named) <= NAMED else [named[0], named[-1]]
    lines = [Line2D([], [], color=color, label=_label(history, rank)) for rank, color in named]
    if history.center:
        lines.append(Line2D([], [], color="black", label="center, validation", **CENTER))
    figure.legend(handles=lines, loc="outside upper center", ncols=min(len(lines), 6), frameon=False)
