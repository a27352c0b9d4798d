"""The values of metrics: numbers, or vectors with one for each class, as those of Keras's F1Score."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

Value = float | list[Any]
"""A metric's value as plain data: a number, or a list of numbers."""


def plain(value: Any) -> Value:
    """Returns a metric's value, a number or an array, as plain data."""
    return np.asarray(value, float).tolist()


def in_keras_form(values: Mapping[str, Value]) -> dict[str, Any]:
    """Returns plain values as callbacks of Keras get them: vectors as arrays."""
    return {name: np.array(value) if isinstance(value, list) else value for name, value in values.items()}


def mean(values: Sequence[Any], weights: Sequence[float]) -> Value:
    """Returns the weighted mean of a metric's values; of vectors, class by class."""
    return plain(np.average(np.array(values, float), axis=0, weights=weights))


def number(value: Any) -> float:
    """Returns a value as one number: of a vector the mean."""
    return float(np.mean(value))


def text(value: Any) -> str:
    """Returns a value with four decimals."""
    if np.ndim(value) == 0:
        return f"{value:.4f}"
    return f"[{' '.join(f'{each:.4f}' for each in np.ravel(value))}]"


def components(logs: Mapping[str, Any]) -> dict[str, Any]:
    """Returns logs in which each number of a vector has a name of its own, `f1_score_0` and so on."""
    result: dict[str, Any] = {}
    for name, value in logs.items():
        if np.ndim(value) == 0:
            result[name] = value
        else:
            result.update({f"{name}_{place}": float(each) for place, each in enumerate(np.ravel(value))})
    return result
