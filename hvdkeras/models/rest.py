"""What a trained model holds beside its weights: the states of its optimizers, counters, random layers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from hvdkeras.models.optimizers import optimizers_of


@dataclass(frozen=True)
class Rest:
    """Values of a compiled model's copy, as plain data.

    Attributes:
        counters: values of the variables of integers: counts, states of random layers.
        optimizers: for each optimizer of the model, the positions among the model's variables of those that
            it was built on, and the values of its own; None for one that is not built, or built on others.
    """

    counters: list[np.ndarray]
    optimizers: list[tuple[list[int], list[np.ndarray]] | None]

    @classmethod
    def of(cls, model: Any) -> Rest:
        """Copies the values of a model."""
        numbers = {id(variable): number for number, variable in enumerate(model.variables)}
        states = []
        for optimizer in optimizers_of(model):
            built_on = [numbers.get(id(v)) for v in optimizer._trainable_variables] if optimizer.built else []
            known = built_on and None not in built_on
            states.append((built_on, list(map(_array, optimizer.variables))) if known else None)
        return cls(list(map(_array, _counters(model))), states)

    def give(self, model: Any) -> None:
        """Sets the values of another copy of the model."""
        for variable, value in zip(_counters(model), self.counters, strict=True):
            variable.assign(value)
        variables = model.variables
        for optimizer, state in zip(optimizers_of(model), self.optimizers, strict=True):
            if state is None:
                continue
            built_on, values = state
            if not optimizer.built:
                optimizer.build([variables[number] for number in built_on])
            for variable, value in zip(optimizer.variables, values, strict=True):
                variable.assign(value)


def _counters(model: Any) -> list[Any]:
    return [v for v in model.non_trainable_variables if str(v.dtype) in ("int32", "int64", "uint32")]


def _array(variable: Any) -> np.ndarray:
    return np.asarray(variable.value)
