"""What a simulation found."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from hvdkeras.history.records import Evaluation


@dataclass(frozen=True, eq=False)
class Simulation:
    """A simulated training.

    Attributes:
        seconds: simulated seconds from the first batch to the end, restarts included.
        rows: rows that the workers trained on and that no restart lost.
        evaluations: the evaluations of the center, in their order: `epoch`, `seconds`, `metrics`.
        weights: the center at the end, shape `(n,)`, float32.
        exchanges: exchanges of each worker, shape `(num_workers,)`.
        staleness_mean: mean staleness of each worker's exchanges, shape `(num_workers,)`.
        staleness_max: the largest, shape `(num_workers,)`.
        computing: seconds in which each worker computed, shape `(num_workers,)`.
        waiting: seconds in which each waited for the center or for others, shape `(num_workers,)`.
        utilization: part of the seconds in which the center, or a reduction, was busy. Near 1 the center is
            saturated.
        failures: workers that died.
        goodput: part of the seconds that no restart lost; 1 without failures.
    """

    seconds: float
    rows: int
    evaluations: list[Evaluation]
    weights: np.ndarray
    exchanges: np.ndarray
    staleness_mean: np.ndarray
    staleness_max: np.ndarray
    computing: np.ndarray
    waiting: np.ndarray
    utilization: float
    failures: int
    goodput: float

    @property
    def throughput(self) -> float:
        """Rows a second."""
        return self.rows / self.seconds

    def curve(self, metric: str) -> tuple[np.ndarray, np.ndarray]:
        """Returns the seconds of the evaluations and a metric's values, shape `(evaluations,)` each.

        Raises:
            KeyError: the evaluations have no such metric.
        """
        seconds = [evaluation.seconds for evaluation in self.evaluations]
        return np.array(seconds), np.array([evaluation.metrics[metric] for evaluation in self.evaluations])
