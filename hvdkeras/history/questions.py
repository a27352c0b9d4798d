"""The history of a trainer's last training, by dist-keras's method names."""

from __future__ import annotations

from hvdkeras.history.history import History
from hvdkeras.history.records import RankHistory
from hvdkeras.history.values import Value


class HistoryQuestions:
    """dist-keras's methods of a trainer.

    Each raises a RuntimeError before `train`.

    Attributes:
        history: a `History` after `train`, None before.
    """

    history: History | None = None

    def get_history(self) -> list[RankHistory]:
        """Returns the ranks' histories; those of an ensemble's members for `EnsembleTrainer`."""
        return self._recorded("get_history").ranks

    def get_averaged_history(self) -> dict[str, list[Value]]:
        """Returns each metric's mean over the ranks, weighted by their rows; one value an epoch."""
        return self._recorded("get_averaged_history").averaged()

    def get_executor_history(self, executor_id: int) -> RankHistory:
        """Returns one rank's history.

        Args:
            executor_id: the number of the rank, for `EnsembleTrainer` of the member, from 0.

        Raises:
            ValueError: if there is none of that number.
        """
        ranks = self._recorded("get_executor_history").ranks
        if executor_id not in range(len(ranks)):
            raise ValueError(f"executor_id must be from 0 to {len(ranks) - 1}. Received: {executor_id!r}")
        return ranks[executor_id]

    def get_training_time(self) -> float:
        """Returns the seconds that `train` took, the launch included."""
        return self._recorded("get_training_time").training_time

    def _recorded(self, method: str) -> History:
        if self.history is None:
            raise RuntimeError(f"train must be called before {method}")
        return self.history
