"""One model on this rank: its variables, its position, its record, captured and restored as plain data."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import keras
import numpy as np

from hvdkeras.algorithm import State
from hvdkeras.callbacks.learning_rate import LearningRate
from hvdkeras.callbacks.position import Position
from hvdkeras.checkpoint.rank_state import RankState
from hvdkeras.data.decoding import DecodedRows
from hvdkeras.data.rows import Rows
from hvdkeras.history.records import RankHistory
from hvdkeras.models.vector import FlatWeights, averaged_variables


class Replica:
    """A copy of the model that trains on this rank.

    Args:
        model: a compiled Keras model.
        rows: the rows that it trains on.
        history: the record of its training.
        more: variables beyond the model's and its optimizer's that the training depends on.
        learning_rate_factor: returns the factor of the optimizer's learning rate for a number of epochs done.

    Attributes:
        model: the model.
        weights: its trainable weights as a vector.
        statistics: the variables that ranks average, as a vector.
        position: how far its training is.
        learning_rate: sets its learning rate.
        history: the record of its training.
    """

    def __init__(
        self,
        model: Any,
        rows: Rows | DecodedRows,
        history: RankHistory,
        more: Sequence[Any],
        learning_rate_factor: Callable[[float], float],
    ) -> None:
        self.model, self.history = model, history
        self.weights = FlatWeights(model.trainable_variables)
        self.statistics = FlatWeights(averaged_variables(model))
        self.position = Position(rows)
        self.learning_rate = LearningRate(model.optimizer, learning_rate_factor, self.position)
        if not model.optimizer.built:
            model.optimizer.build(model.trainable_variables)
        self._variables = {
            "model": model.variables,
            "optimizer": model.optimizer.variables,
            "more": list(more),
        }

    def state(self, rule_state: State | None, running_logs: dict[str, float]) -> RankState:
        """Returns all that this rank needs to resume from here.

        Args:
            rule_state: what the algorithm keeps from exchange to exchange.
            running_logs: the logs of the epoch under way.
        """
        position = self.position
        epoch, step = divmod(position.epoch * position.steps + position.step, position.steps)
        return RankState(
            epoch=epoch,
            step=step,
            windows=position.windows,
            variables={group: [_array(v) for v in variables] for group, variables in self._variables.items()},
            rule_state=rule_state,
            history=self.history,
            learning_rate_factor=self.learning_rate.factor,
            running_logs=running_logs,
        )

    def restore(self, state: RankState) -> None:
        """Continues from a state."""
        for group, variables in self._variables.items():
            for variable, value in zip(variables, state.variables.get(group, []), strict=True):
                variable.assign(value)
        self.position.resume(state.epoch, state.step, state.windows)
        for name, past in vars(state.history).items():
            if name not in ("rank", "host", "device"):
                setattr(self.history, name, past)
        self.learning_rate.factor = state.learning_rate_factor


def _array(variable: Any) -> np.ndarray:
    array = keras.ops.convert_to_numpy(variable)
    # NumPy's files have no bfloat16; float32 holds all its values.
    return array.astype(np.float32) if array.dtype.name == "bfloat16" else array
