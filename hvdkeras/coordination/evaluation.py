"""The center as a Keras model on each rank, and its metrics computed by all ranks together."""

from __future__ import annotations

from typing import Any

import keras
import numpy as np

from hvdkeras.callbacks.feed import Feed
from hvdkeras.models import vector as weights


class CenterModel:
    """The center as a Keras model, which a rank evaluates on its share of the validation rows.

    Keras's metrics hold totals that add up over parts of the data, as they do over batches. So the ranks'
    totals, added, are those of one process that evaluates all rows.

    Args:
        model: a compiled Keras model of the center's architecture.
        feed: the rank's validation rows; None where it has none.

    Attributes:
        model: the model, with the weights of the last `load`.
    """

    def __init__(self, model: Any, feed: Feed | None) -> None:
        self.model, self._feed = model, feed

    def load(self, trainable: np.ndarray, other: np.ndarray) -> None:
        """Sets the weights: trainable ones of shape `(n,)`, averaged ones of shape `(m,)`."""
        weights.assign(self.model.trainable_variables, trainable)
        weights.assign(weights.averaged_variables(self.model), other)

    def vectors(self) -> tuple[np.ndarray, np.ndarray]:
        """Returns what `load` was given, or a callback has put in its place."""
        model = self.model
        return weights.flat(model.trainable_variables), weights.flat(weights.averaged_variables(model))

    def try_out(self) -> list[str]:
        """Evaluates one batch, which makes the metrics' variables; returns the metrics' names."""
        if self._feed is None:
            return []
        self._feed.begin(0)
        self.model.evaluate(self._feed.dataset().take(1), verbose=0)
        return list(self._named())

    def evaluate(self) -> np.ndarray | None:
        """Returns the metrics' totals over the rank's rows, shape `(k,)`, float64; None without rows."""
        if self._feed is None:
            return None
        self._feed.begin(0)
        self.model.evaluate(self._feed.dataset(), verbose=0)
        return np.concatenate(
            [np.ravel(keras.ops.convert_to_numpy(total)).astype(np.float64) for total in self._totals()]
        )

    def metrics(self, totals: np.ndarray) -> dict[str, float]:
        """Returns the metrics that totals stand for, named as Keras names those of validation.

        Args:
            totals: the sum over the ranks of what `evaluate` returned, shape `(k,)`.
        """
        bounds = np.cumsum([0, *(int(np.prod(variable.shape)) for variable in self._totals())])
        for variable, start, end in zip(self._totals(), bounds, bounds[1:], strict=False):
            variable.assign(totals[start:end].reshape(variable.shape).astype(str(variable.dtype)))
        return self._named()

    def _totals(self) -> list[Any]:
        return [variable for metric in self.model.metrics for variable in metric.variables]

    def _named(self) -> dict[str, float]:
        return {f"val_{name}": float(value) for name, value in self.model.get_metrics_result().items()}
