"""What rank 0 does in the name of all ranks: opens rounds, runs the center's callbacks, decides."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from typing import Any

import keras
import numpy as np

from hvdkeras.checkpoint.folder import Writer
from hvdkeras.coordination.evaluation import CenterModel
from hvdkeras.coordination.messages import Decision, Findings, Opening, Report
from hvdkeras.history.records import Look
from hvdkeras.launch.rank import send
from hvdkeras.models.optimizers import has_schedule

logger = logging.getLogger("hvdkeras")


def reached(metrics: Mapping[str, float], targets: Mapping[str, float]) -> str | None:
    """Returns the first of the targets that is reached: a loss or error from above, others from below."""
    for name, target in targets.items():
        falls = "loss" in name or "error" in name
        if metrics[name] <= target if falls else metrics[name] >= target:
            return name
    return None


class Chair:
    """Leads the rounds, at rank 0.

    Args:
        size: number of ranks.
        center: the center as a model, on which callbacks work.
        trainer: whose `center_callbacks`, `stop_at` and checkpoints are followed.
        weights: returns the center's weights for the others to evaluate; None where every rank has them.
        writer: writes rank 0's part of a checkpoint; None without checkpoints.
        due: tells whether a checkpoint is due that is no look; asked between rounds.
        resumed: the manifest of the checkpoint from which the training goes on; empty at a new one.
        name: what the center's logs are called.

    Attributes:
        looks: what was seen, in order.
        learning_rate_before: the learning rate before any callback has set it.
    """

    def __init__(
        self,
        size: int,
        center: CenterModel,
        trainer: Any,
        weights: Callable[[], np.ndarray | None],
        writer: Writer | None,
        due: Callable[[], bool],
        resumed: Mapping[str, Any],
        name: str,
    ) -> None:
        self._size, self._center, self._weights = size, center, weights
        self._stop_at, self._writer, self._due = trainer.stop_at, writer, due
        self._save_with_looks = trainer.checkpoint_minutes is None
        self._reports: dict[int, Report] = {}
        self._came = {kind: np.zeros(size, int) for kind in ("look", "save", "final")}
        self._held = dict.fromkeys(self._came, 0)
        self._findings: dict[int, Findings] = {}
        self._opening: Opening | None = None
        self._wished = False
        self._seen = self._saved = bool(resumed.get("seen"))
        self._stopped = bool(resumed.get("stopped"))
        self._first_progress = resumed.get("progress", 0.0)
        self.looks = [Look(**look) for look in resumed.get("looks", [])]
        self._began = time.monotonic() - (self.looks[-1].seconds if self.looks else 0.0)
        model = center.model
        model.stop_training = False
        if resumed.get("learning_rate") is not None:
            model.optimizer.learning_rate = resumed["learning_rate"]
        self.learning_rate_before = self.learning_rate()
        callbacks = trainer.callbacks_of_center(name)
        self._callbacks = keras.callbacks.CallbackList(
            callbacks, model=model, epochs=trainer.num_epoch, verbose=0, rank=0, num_workers=size
        )
        self._callbacks.on_train_begin()
        self._callbacks.on_epoch_begin(len(self.looks))

    def take(self, rank: int, message: Report | Findings) -> None:
        """Takes in what a rank has sent."""
        if isinstance(message, Findings):
            self._findings[rank] = message
            return
        # A later report of a rank that went on says how far the center has got since the last look.
        before = self._reports[rank].progress if rank in self._reports else self._first_progress
        if message.progress > before:
            self._seen = self._saved = False
        self._reports[rank] = message
        if message.kind == "stop":
            self._wished = True
        elif message.kind in self._came:
            self._came[message.kind][rank] += 1

    def proceed(self) -> Opening | Decision | None:
        """Returns what all ranks are to be told now: that a round opens, or how it has ended."""
        if self._opening is None:
            self._opening = self._next()
            return self._opening
        if len(self._findings) < self._size:
            return None
        decision = self._close(self._opening)
        self._opening, self._findings = None, {}
        return decision

    def learning_rate(self) -> float | None:
        """Returns what the callbacks have set the learning rate to; None where it follows a schedule."""
        optimizer = self._center.model.optimizer
        if has_schedule(optimizer):
            return None
        return float(keras.ops.convert_to_numpy(optimizer.learning_rate))

    def end(self) -> None:
        """Tells the callbacks that the training is over."""
        self._callbacks.on_train_end()

    def _next(self) -> Opening | None:
        if self._have_ended():
            # A look that was still asked for was made with the last round, and nobody would answer another.
            return None
        if self._have_all_come("final"):
            return self._opened("final", not (self._seen or self._stopped), not self._saved)
        if self._stopped:
            return None
        if self._have_all_come("look") or (self._wished and len(self._reports) == self._size):
            return self._opened("look", True, self._save_with_looks)
        if self._have_all_come("save"):
            return self._opened("save", False, True)
        if len(self._reports) == self._size and self._due():
            return self._opened("save", False, True)
        return None

    def _have_all_come(self, kind: str) -> bool:
        return self._came[kind].min() > self._held[kind]

    def _opened(self, kind: str, look: bool, save: bool) -> Opening:
        if self._have_all_come(kind):
            self._held[kind] += 1
        save = save and self._writer is not None
        number = self._writer.begin() if save else None
        other = np.mean([report.other for report in self._reports.values()], axis=0, dtype=np.float32)
        self._seen, self._saved = self._seen or look, self._saved or save
        return Opening(look, number, self._weights() if look else None, other)

    def _close(self, opening: Opening) -> Decision:
        decision = Decision(end=self._have_ended(), stop=self._stopped)
        if opening.look:
            decision.metrics = self._look()
            self._stopped = decision.stop = self._wished or bool(self._center.model.stop_training)
        decision.learning_rate = self.learning_rate()
        if opening.save is not None:
            self._writer.complete(opening.save, self._manifest(decision), opening.look)
        return decision

    def _manifest(self, decision: Decision) -> dict[str, Any]:
        return {
            "looks": [asdict(look) for look in self.looks],
            "learning_rate": decision.learning_rate,
            "stopped": self._stopped,
            "seen": self._seen,
            "progress": max(report.progress for report in self._reports.values()),
        }

    def _have_ended(self) -> bool:
        return self._held["final"] > 0

    def _look(self) -> dict[str, float]:
        """Adds up what the ranks found, and lets the callbacks see it."""
        found = [findings.sums for findings in self._findings.values() if findings.sums is not None]
        metrics = self._center.metrics(np.sum(found, axis=0)) if found else {}
        reports = list(self._reports.values())
        logs = {**_mean_logs(reports), **metrics}
        progress = float(np.mean([report.progress for report in reports]))
        number = len(self.looks)
        self.looks.append(Look(progress, time.monotonic() - self._began, metrics))
        send(self.looks[-1])
        self._callbacks.on_epoch_end(number, logs)
        if (name := reached(metrics, self._stop_at)) is not None:
            logger.info("%s is %g: the training ends (stop_at=%g)", name, metrics[name], self._stop_at[name])
            self._center.model.stop_training = True
        if not self._center.model.stop_training:
            self._callbacks.on_epoch_begin(number + 1)
        return metrics


def _mean_logs(reports: Sequence[Report]) -> dict[str, float]:
    """The mean of the ranks' logs, weighted by their rows."""
    reports = [report for report in reports if report.logs]
    if not reports:
        return {}
    rows = [report.rows for report in reports]
    return {
        name: float(np.average([report.logs[name] for report in reports], weights=rows))
        for name in reports[0].logs
    }
