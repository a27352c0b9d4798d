"""The coordinator, at rank 0: opens rounds, sums the ranks' contributions, decides for all."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from hvdkeras.coordination.center_callbacks import CenterCallbacks
from hvdkeras.coordination.center_saver import CenterSaver
from hvdkeras.coordination.messages import Arrival, Contribution, Decision, Occasion, Round

_COUNTED = (Occasion.EVALUATE, Occasion.SAVE, Occasion.END)


class Coordinator:
    """Leads the rounds.

    Args:
        size: number of ranks.
        center: the evaluations and callbacks of the center.
        weights: returns the center that ranks evaluate, shape `(n,)`, or None where every rank has it.
        saver: saves the center in checkpoints; None without checkpoints.
        saves_evaluations: whether each evaluation is saved in a checkpoint.
        is_due: returns whether to open a round that only saves; called between rounds.
        resumed: the manifest of the checkpoint from which the training resumes; empty at a new one.
    """

    def __init__(
        self,
        size: int,
        center: CenterCallbacks,
        weights: Callable[[], np.ndarray | None],
        saver: CenterSaver | None,
        saves_evaluations: bool,
        is_due: Callable[[], bool],
        resumed: Mapping[str, Any],
    ) -> None:
        self._size, self._center, self._weights = size, center, weights
        self._saver, self._saves_evaluations, self._is_due = saver, saves_evaluations, is_due
        self._newest: dict[int, Arrival] = {}
        self._arrived = {occasion: np.zeros(size, int) for occasion in _COUNTED}
        self._opened = dict.fromkeys(_COUNTED, 0)
        self._round: Round | None = None
        self._contributions: dict[int, Contribution] = {}
        self._rank_wants_stop = False
        self._stopped = bool(resumed.get("stopped"))
        # Whether the center as it is now has been evaluated, and saved.
        self._is_evaluated = self._is_saved = bool(resumed.get("evaluated"))
        self._first_epochs = resumed.get("epochs", 0.0)

    def receive(self, rank: int, message: Arrival | Contribution) -> None:
        """Takes a rank's message."""
        if isinstance(message, Contribution):
            self._contributions[rank] = message
            return
        before = self._newest[rank].epochs if rank in self._newest else self._first_epochs
        if message.epochs > before:
            # The rank has trained since the last round, and so the center may have changed.
            self._is_evaluated = self._is_saved = False
        self._newest[rank] = message
        if message.occasion is Occasion.STOP:
            self._rank_wants_stop = True
        elif message.occasion in _COUNTED:
            self._arrived[message.occasion][rank] += 1

    def proceed(self) -> Round | Decision | None:
        """Returns what to send to all ranks now: a round that opens, or the decision that closes one."""
        if self._round is None:
            self._round = self._next_round()
            return self._round
        if len(self._contributions) < self._size:
            return None
        decision = self._close(self._round)
        self._round, self._contributions = None, {}
        return decision

    def _next_round(self) -> Round | None:
        if self._has_ended():
            # The last round made the evaluations that were still due, and no rank would answer another round.
            return None
        if self._have_all_arrived(Occasion.END):
            return self._open(Occasion.END, not (self._is_evaluated or self._stopped), not self._is_saved)
        if self._stopped:
            return None
        all_are_known = len(self._newest) == self._size
        if self._have_all_arrived(Occasion.EVALUATE) or (self._rank_wants_stop and all_are_known):
            return self._open(Occasion.EVALUATE, True, self._saves_evaluations)
        if self._have_all_arrived(Occasion.SAVE) or (all_are_known and self._is_due()):
            return self._open(Occasion.SAVE, False, True)
        return None

    def _have_all_arrived(self, occasion: Occasion) -> bool:
        return self._arrived[occasion].min() > self._opened[occasion]

    def _has_ended(self) -> bool:
        return self._opened[Occasion.END] > 0

    def _open(self, occasion: Occasion, evaluate: bool, save: bool) -> Round:
        if self._have_all_arrived(occasion):
            self._opened[occasion] += 1
        save = save and self._saver is not None
        number = self._saver.begin() if save else None
        statistics = np.mean([each.statistics for each in self._newest.values()], axis=0, dtype=np.float32)
        self._is_evaluated, self._is_saved = self._is_evaluated or evaluate, self._is_saved or save
        return Round(evaluate, number, self._weights() if evaluate else None, statistics)

    def _close(self, closing: Round) -> Decision:
        decision = Decision(is_last=self._has_ended(), stop=self._stopped)
        contributions = list(self._contributions.values())
        if closing.evaluate:
            totals = [each.totals for each in contributions if each.totals is not None]
            decision.metrics = self._center.evaluated(totals, list(self._newest.values()))
            self._stopped = decision.stop = self._rank_wants_stop or self._center.wants_stop
        decision.learning_rates = self._center.learning_rates()
        if closing.save is not None:
            files = [file for each in contributions for file in each.files]
            self._saver.complete(closing.save, files, self._manifest(decision), closing.evaluate)
        return decision

    def _manifest(self, decision: Decision) -> dict[str, Any]:
        return {
            **self._center.manifest(),
            "num_workers": self._size,
            "learning_rates": decision.learning_rates,
            "stopped": self._stopped,
            "evaluated": self._is_evaluated,
            "epochs": max(each.epochs for each in self._newest.values()),
        }
