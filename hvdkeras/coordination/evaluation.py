"""The center as a Keras model on each rank, and its metrics computed by all ranks together."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import keras
import numpy as np

from hvdkeras.callbacks.feed import Feed
from hvdkeras.history.values import Value, plain
from hvdkeras.models import vector
from hvdkeras.models.optimizers import learning_rates, set_learning_rates
from hvdkeras.models.rest import Rest


class CenterModel:
    """The center as a Keras model, which a rank evaluates on its share of the validation rows.

    Keras's metrics hold totals that add up over parts of the data, as they do over batches. So the ranks'
    totals, added, are those of one process that evaluates all rows. Where metrics of the user's own hold
    others, such as a maximum, one rank must evaluate all rows.

    Args:
        model: a compiled Keras model of the center's architecture.
        feed: the rank's validation rows; None where it has none.
        training: the rows that the rank trains on, of which the metrics' variables can be made.

    Attributes:
        model: the model, with the weights of the last `load`.
    """

    def __init__(self, model: Any, feed: Feed | None, training: Feed | None = None) -> None:
        self.model, self._feed, self._training = model, feed, training

    def load(self, trainable: np.ndarray, statistics: np.ndarray) -> None:
        """Sets the trainable weights, shape `(n,)`, and the averaged variables, shape `(m,)`."""
        vector.assign(self.model.trainable_variables, trainable)
        vector.assign(vector.averaged_variables(self.model), statistics)

    def vectors(self) -> tuple[np.ndarray, np.ndarray]:
        """Returns the trainable weights and averaged variables, as `load` or a callback has set them."""
        model = self.model
        return vector.flat(model.trainable_variables), vector.flat(vector.averaged_variables(model))

    def take_optimizer(self, replica: Any) -> None:
        """Takes the state of a rank's optimizer, for callbacks that save the model, but not its rates."""
        rates = learning_rates(self.model.optimizer)
        Rest.of(replica).give(self.model)
        set_learning_rates(self.model.optimizer, rates)

    def first_metrics(self, are_needed: bool) -> dict[str, Value]:
        """Returns the metrics of one batch, in whose evaluation Keras makes the metrics' variables.

        Args:
            are_needed: whether to make the variables without rows for validation, too; there are no metrics
                of validation then.
        """
        feed = self._feed or (self._training if are_needed else None)
        if feed is not None:
            feed.begin(0)
            self.model.evaluate(feed.dataset().take(1), verbose=0)
        return {} if self._feed is None else self._named()

    @property
    def has_own_metrics(self) -> bool:
        """Whether there are metrics with an `update_state` that is not Keras's."""
        compiled = getattr(self.model, "_compile_metrics", None)
        listed = [each for each in self.model.metrics if each is not compiled]
        if compiled is not None:
            listed += keras.tree.flatten([compiled._user_metrics, compiled._user_weighted_metrics])
        kinds = {type(each) for each in listed if isinstance(each, keras.metrics.Metric)}
        owners = [next(each for each in kind.__mro__ if "update_state" in vars(each)) for kind in kinds]
        return any(not owner.__module__.startswith("keras.") for owner in owners)

    def adds_up(self) -> bool:
        """Returns whether totals of parts, added, are those of all: one batch is evaluated, then it twice."""
        feed, totals = self._feed, []
        for times in (1, 2):
            feed.begin(0)
            self.model.evaluate(feed.dataset().take(1).cache().repeat(times), verbose=0)
            totals.append([keras.ops.convert_to_numpy(total) for total in self._totals()])
        # A total of zeros says nothing, and counts as one that does not add up.
        return all(
            np.any(once) and np.allclose(2 * once.astype(float), twice, rtol=1e-4)
            for once, twice in zip(*totals, strict=True)
        )

    def evaluate(self) -> np.ndarray | None:
        """Returns the metrics' totals over the rank's rows, shape `(k,)`, float64; None without rows."""
        if self._feed is None:
            return None
        self._feed.begin(0)
        self.model.evaluate(self._feed.dataset(), verbose=0)
        return np.concatenate(
            [np.ravel(keras.ops.convert_to_numpy(total)).astype(np.float64) for total in self._totals()]
        )

    def metrics(self, totals: np.ndarray) -> dict[str, Value]:
        """Returns the metrics of totals, named as Keras names those of validation.

        Args:
            totals: the sum over the ranks of what `evaluate` returned, shape `(k,)`.
        """
        bounds = np.cumsum([0, *(int(np.prod(variable.shape)) for variable in self._totals())])
        for variable, start, end in zip(self._totals(), bounds, bounds[1:], strict=False):
            variable.assign(totals[start:end].reshape(variable.shape).astype(str(variable.dtype)))
        return self._named()

    def _totals(self) -> list[Any]:
        return [variable for metric in self.model.metrics for variable in metric.variables]

    def _named(self) -> dict[str, Value]:
        named: dict[str, Value] = {}
        for name, value in self.model.get_metrics_result().items():
            # Keras names the entries of a metric that is a dict by their keys alone.
            entries = value if isinstance(value, Mapping) else {name: value}
            named.update(
                {f"val_{key}": plain(keras.ops.convert_to_numpy(each)) for key, each in entries.items()}
            )
        return named
