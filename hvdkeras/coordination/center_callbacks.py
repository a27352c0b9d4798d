"""The Keras callbacks of the center, at rank 0, and what they decide: learning rate, weights, stop."""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

import keras
import numpy as np

from hvdkeras.coordination.evaluation import CenterModel
from hvdkeras.coordination.messages import Arrival
from hvdkeras.history.records import Evaluation
from hvdkeras.history.values import Value, components, in_keras_form, mean
from hvdkeras.launch.rank import send
from hvdkeras.models.optimizers import learning_rates, set_learning_rates
from hvdkeras.naming import listed

logger = logging.getLogger("hvdkeras")


def reached(metrics: Mapping[str, float], targets: Mapping[str, float]) -> str | None:
    """Returns the first target that is reached: losses and errors fall to it, other metrics rise to it."""
    for name, target in targets.items():
        falls = "loss" in name or "error" in name
        if metrics[name] <= target if falls else metrics[name] >= target:
            return name
    return None


class CenterCallbacks:
    """Runs the center's callbacks on each evaluation, and records it.

    Args:
        center: the center as a Keras model, on which callbacks work.
        callbacks: the Keras callbacks.
        stop_at: metrics of the center and the values at which the training ends.
        num_epoch: epochs of the training.
        size: number of ranks.
        resumed: the manifest of the checkpoint from which the training resumes; empty at a new one.

    Attributes:
        evaluations: all so far, in their order.
    """

    def __init__(
        self,
        center: CenterModel,
        callbacks: Sequence[Any],
        stop_at: Mapping[str, float],
        num_epoch: int,
        size: int,
        resumed: Mapping[str, Any],
    ) -> None:
        self._center, self._stop_at, self._num_epoch = center, stop_at, num_epoch
        self.evaluations = [Evaluation(**each) for each in resumed.get("evaluations", [])]
        self._start = time.monotonic() - (self.evaluations[-1].seconds if self.evaluations else 0.0)
        model = center.model
        model.stop_training = False
        # Checkpoints of earlier versions have one rate, or None.
        earlier = [rate for rate in [resumed.get("learning_rate")] if rate is not None]
        if rates := resumed.get("learning_rates", earlier):
            set_learning_rates(model.optimizer, rates)
        self._monitors = any(hasattr(callback, "monitor") for callback in callbacks)
        self._callbacks = keras.callbacks.CallbackList(
            list(callbacks), model=model, epochs=num_epoch, verbose=0, rank=0, num_workers=size
        )

    def begin(self) -> None:
        """Starts the callbacks.

        Raises:
            ValueError: `stop_at` names a metric that the center does not have, or one that is a vector.
        """
        # A callback that monitors a metric asks the model's metrics whether they rise, with or without rows
        # for validation.
        names = self._center.first_metrics(self._monitors)
        if unknown := sorted(set(self._stop_at) - set(names)):
            raise ValueError(
                f"stop_at must name metrics of the center, {listed(names)}. Received: {listed(unknown)}"
            )
        if vectors := sorted(name for name in self._stop_at if np.ndim(names[name])):
            raise ValueError(f"stop_at must name metrics that are one number. Received: {listed(vectors)}")
        self._callbacks.on_train_begin()
        self._callbacks.on_epoch_begin(len(self.evaluations))

    def evaluated(self, totals: Sequence[np.ndarray], arrivals: Sequence[Arrival]) -> dict[str, Value]:
        """Records an evaluation and runs the callbacks on it; returns the center's metrics.

        Args:
            totals: the metrics' totals of each rank that had validation rows, each of shape `(k,)`.
            arrivals: the newest report of each rank.
        """
        metrics = self._center.metrics(np.sum(totals, axis=0)) if totals else {}
        logs = in_keras_form({**_mean_logs(arrivals), **metrics})
        epochs = float(np.mean([arrival.epochs for arrival in arrivals]))
        number = len(self.evaluations)
        self.evaluations.append(Evaluation(epochs, time.monotonic() - self._start, metrics))
        send(self.evaluations[-1])
        for callback in self._callbacks.callbacks:
            # Keras's TensorBoard takes no vectors.
            is_board = isinstance(callback, keras.callbacks.TensorBoard)
            callback.on_epoch_end(number, components(logs) if is_board else logs)
        if (name := reached(metrics, self._stop_at)) is not None:
            logger.info("%s is %g: the training ends (stop_at=%g)", name, metrics[name], self._stop_at[name])
            self._center.model.stop_training = True
        if epochs < self._num_epoch and not self.wants_stop:
            self._callbacks.on_epoch_begin(number + 1)
        return metrics

    @property
    def wants_stop(self) -> bool:
        """Whether a callback, or `stop_at`, ends the training."""
        return bool(self._center.model.stop_training)

    def learning_rates(self) -> list[float]:
        """Returns the learning rates of the center's optimizer, without those that follow a schedule."""
        return learning_rates(self._center.model.optimizer)

    def manifest(self) -> dict[str, Any]:
        """Returns what a checkpoint must hold of the evaluations."""
        return {"evaluations": [asdict(evaluation) for evaluation in self.evaluations]}

    def end(self) -> None:
        """Ends the callbacks."""
        self._callbacks.on_train_end()


def _mean_logs(arrivals: Sequence[Arrival]) -> dict[str, Value]:
    """The mean of the ranks' logs, weighted by their rows."""
    arrivals = [each for each in arrivals if each.logs]
    if not arrivals:
        return {}
    rows = [each.rows for each in arrivals]
    return {name: mean([each.logs[name] for each in arrivals], rows) for name in arrivals[0].logs}
