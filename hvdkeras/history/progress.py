"""The progress of a running training: one bar, or a line for each epoch where a bar is not possible."""

from __future__ import annotations

import contextlib
import logging
import sys
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, TextIO

from tqdm import tqdm

from hvdkeras.history import values
from hvdkeras.history.records import Evaluation
from hvdkeras.history.values import Value
from hvdkeras.launch import environment

logger = logging.getLogger("hvdkeras")

TICK_SECONDS = 1.0
# The longest silence of a log.
QUIET_SECONDS = 60.0


@dataclass(frozen=True)
class Advance:
    """The progress of a rank, sent at its start, at most twice a second, and at the end of every epoch.

    Attributes:
        rows: rows that the model was trained on so far, by this rank, in all epochs.
        epoch_rows: rows of one epoch; `rows` is a multiple of it at an epoch's end and at the start.
        metrics: means over the epoch under way, or the one that has just ended. Empty at the start.
        member: the number of the ensemble's member; 0 without an ensemble.
    """

    rows: int
    epoch_rows: int
    metrics: dict[str, Value]
    member: int = 0


@contextlib.contextmanager
def shown(
    members: int, num_workers: int, num_epoch: int, verbose: int
) -> Iterator[Callable[[int, Any], None]]:
    """Shows the progress of a launch on stderr, or in the notebook.

    In a running job, where messages don't leave their rank, rank 0 shows its own part.

    Args:
        members: models to train: one on each rank, or all of an ensemble.
        num_workers: ranks that train them.
        num_epoch: epochs of each.
        verbose: 0 shows nothing.

    Yields:
        The receiver of the ranks' messages, for `on_message`.
    """
    job = environment.job()
    if not verbose or (job is not None and job.rank > 0):
        yield _ignore
        return
    with Progress(senders(members, num_workers), num_epoch, sys.stderr) as progress:
        yield progress.on_message


def senders(members: int, num_workers: int) -> int:
    """Returns how many of all models send this process an `Advance`: in a running job those of one rank."""
    return -(-members // num_workers) if environment.job() else members


class Progress:
    """Receives the ranks' messages, on any thread, and shows the progress of all.

    An error of the display ends the display, with a warning, and not the training.

    Args:
        members: models that send an `Advance`.
        num_epoch: epochs of each.
        stream: where it is shown: as a bar if it is a terminal or belongs to a notebook, otherwise as lines.
    """

    def __init__(self, members: int, num_epoch: int, stream: TextIO) -> None:
        self._totals = Totals(members, num_epoch)
        self._display = Bar(stream) if stream.isatty() or _in_notebook(stream) else Lines(stream)
        self._lock, self._ended, self._failed = threading.Lock(), threading.Event(), False
        self._clock = threading.Thread(target=self._tick, name="progress", daemon=True)

    def __enter__(self) -> Progress:
        self._clock.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._clock.join()
        self._try(self._display.close, self._totals)

    def on_message(self, rank: int, message: Any) -> None:
        """Takes an `Advance` of a rank, or an `Evaluation` of the center; ignores other messages."""
        if isinstance(message, Advance | Evaluation):
            self._try(self._take, rank, message)

    def _take(self, rank: int, message: Advance | Evaluation) -> None:
        ended = {}
        if isinstance(message, Evaluation):
            self._totals.evaluation = message
        else:
            ended = self._totals.add(rank, message)
        self._display.show(self._totals, ended)

    def _tick(self) -> None:
        # A rank sends nothing while it compiles, or during a window as long as an epoch.
        while not self._ended.wait(TICK_SECONDS):
            self._try(self._display.tick, self._totals)

    def _try(self, show: Callable[..., None], *arguments: Any) -> None:
        with self._lock:
            if self._failed:
                return
            try:
                show(*arguments)
            except Exception:
                self._failed = True
                logger.warning("the progress of the training is not shown any more", exc_info=True)


@dataclass
class Totals:
    """The progress of all members together."""

    members: int
    num_epoch: int
    evaluation: Evaluation | None = None
    newest: dict[tuple[int, int], Advance] = field(default_factory=dict)
    ended: dict[int, list[Advance]] = field(default_factory=lambda: defaultdict(list))
    resumed: int = 0

    def add(self, rank: int, advance: Advance) -> dict[int, dict[str, Value]]:
        """Adds an advance; returns the mean metrics of an epoch, by its number, once all members ended it."""
        member = rank, advance.member
        if member not in self.newest:
            self.resumed += advance.rows
        self.newest[member] = advance
        epoch, underway = divmod(advance.rows, advance.epoch_rows)
        if underway or not advance.metrics:
            return {}
        self.ended[epoch].append(advance)
        return {epoch: _mean(self.ended.pop(epoch))} if len(self.ended[epoch]) == self.members else {}

    @property
    def rows(self) -> int:
        """Rows trained on so far."""
        return sum(advance.rows for advance in self.newest.values())

    @property
    def all_rows(self) -> int:
        """Rows of the whole training; an estimate until all members have started."""
        known = sum(advance.epoch_rows for advance in self.newest.values())
        return self.num_epoch * known * self.members // max(1, len(self.newest))

    @property
    def metrics(self) -> dict[str, Value]:
        """The newest metrics of training."""
        return _mean(list(self.newest.values()))

    @property
    def state(self) -> str:
        """The epoch of the slowest member."""
        if not self.newest:
            return "starting"
        done = min(advance.rows // advance.epoch_rows for advance in self.newest.values())
        return f"epoch {min(done + 1, self.num_epoch)}/{self.num_epoch}"

    def text(self, metrics: dict[str, Value]) -> str:
        """The given metrics as text, followed by those of the newest evaluation."""
        validation = self.evaluation.metrics if self.evaluation else {}
        text = "  ".join(f"{name} {values.text(value)}" for name, value in {**metrics, **validation}.items())
        # Ranks train on during an evaluation: it may be of an earlier epoch than the metrics beside it.
        return f"{text} (epoch {self.evaluation.epoch:.3g})" if validation else text


def _mean(advances: Sequence[Advance]) -> dict[str, Value]:
    names = dict.fromkeys(name for advance in advances for name in advance.metrics)
    return {name: _mean_of(name, [each for each in advances if name in each.metrics]) for name in names}


def _mean_of(name: str, advances: Sequence[Advance]) -> Value:
    return values.mean([each.metrics[name] for each in advances], [each.epoch_rows for each in advances])


class Bar:
    """One progress bar over the whole training, in a terminal or a notebook."""

    def __init__(self, stream: TextIO) -> None:
        from tqdm import auto

        self._shown = time.time()
        self._bar = auto.tqdm(
            desc="starting",
            total=1,
            file=stream,
            unit=" samples",
            unit_scale=True,
            dynamic_ncols=True,
            bar_format="{desc} {percentage:3.0f}%|{bar}| {elapsed}<{remaining}, {rate_fmt}{postfix}",
        )

    def show(self, totals: Totals, ended: dict[int, dict[str, Value]]) -> None:
        bar, begins = self._bar, totals.rows == totals.resumed
        if begins:
            # Neither the launch nor rows of an earlier launch count for the speed.
            bar.reset()
            bar.initial = bar.n = bar.last_print_n = totals.rows
        bar.total = totals.all_rows
        bar.set_description_str(totals.state, refresh=False)
        bar.set_postfix_str(totals.text(totals.metrics), refresh=begins)
        bar.update(totals.rows - bar.n)
        self._shown = time.time()

    def tick(self, totals: Totals) -> None:
        self._bar.refresh()

    def close(self, totals: Totals) -> None:
        # The final speed is the training's, without the end of the launch. (tqdm does not draw a bar whose
        # start is later than its last change.)
        bar = self._bar
        bar.start_t = min(bar.start_t + time.time() - self._shown, bar.last_print_t)
        bar.close()


class Lines:
    """A line for each epoch that all have ended, and one a minute in between, for a log."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._written, self._rows = time.monotonic(), 0
        self._evaluation: Evaluation | None = None

    def show(self, totals: Totals, ended: dict[int, dict[str, Value]]) -> None:
        if totals.rows == totals.resumed:
            self._written, self._rows = time.monotonic(), totals.rows
        for epoch, metrics in ended.items():
            self._write_state(totals, f"epoch {epoch}/{totals.num_epoch}", metrics)

    def tick(self, totals: Totals) -> None:
        if time.monotonic() - self._written >= QUIET_SECONDS:
            done = totals.rows / max(1, totals.all_rows)
            self._write_state(totals, f"{totals.state}, {done:.0%} of all", totals.metrics)

    def close(self, totals: Totals) -> None:
        if totals.evaluation is not self._evaluation and totals.evaluation.metrics:
            # The last evaluation follows the last epoch's line.
            self._write("validation", totals.text({}))

    def _write_state(self, totals: Totals, state: str, metrics: dict[str, float]) -> None:
        now = time.monotonic()
        speed = (totals.rows - self._rows) / (now - self._written)
        left = (totals.all_rows - totals.rows) / speed if speed > 0 else 0
        remaining = f"{tqdm.format_interval(left)} left" if left > 0 else ""
        self._write(state, totals.text(metrics), f"{speed:.0f} samples/s", remaining)
        self._written, self._rows, self._evaluation = now, totals.rows, totals.evaluation

    def _write(self, *parts: str) -> None:
        self._stream.write("  ".join(part for part in parts if part) + "\n")
        self._stream.flush()


def _ignore(rank: int, message: Any) -> None:
    """The receiver where nothing is shown."""


def _in_notebook(stream: TextIO) -> bool:
    from tqdm import auto

    return stream is sys.stderr and auto.notebook_tqdm is not auto.std_tqdm
