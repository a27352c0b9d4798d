"""Checks of the arguments that all trainers share: each returns the value to keep, or raises ValueError."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from hvdkeras.arguments import dict_by_name, unknown_name
from hvdkeras.driver.callbacks import check_callback
from hvdkeras.launch.options import checked
from hvdkeras.models import schema
from hvdkeras.naming import shown


def keras_callbacks(name: str, value: Any) -> list[Any]:
    import keras

    if value is not None and not isinstance(value, list | tuple):
        raise ValueError(f"{name} must be a list of Keras callbacks. Received: {shown(value)}")
    for callback in value or ():
        if not isinstance(callback, keras.callbacks.Callback):
            raise ValueError(f"{name} must hold Keras callbacks. Received: {shown(callback)}")
        check_callback(name, callback)
    return list(value or ())


def metric_targets(name: str, value: Any) -> dict[str, float]:
    if value is not None and not isinstance(value, Mapping):
        raise ValueError(f"{name} must be a dict of numbers by metric. Received: {shown(value)}")
    for metric, target in (value or {}).items():
        if isinstance(target, bool) or not isinstance(target, int | float) or not isinstance(metric, str):
            raise ValueError(f"{name} must map metrics to numbers. Received: {metric!r}: {target!r}")
    return dict(value or {})


def names_of(value: Any) -> list[Any]:
    return list(value.values() if isinstance(value, Mapping) else schema.as_list(value))


def columns(name: str, value: Any) -> schema.Names:
    names = names_of(value)
    if not names or not all(isinstance(each, str) and each for each in names):
        raise ValueError(
            f"{name} must be a column's name, a list of them, or a dict. Received: {shown(value)}"
        )
    return value


def column(name: str, value: Any) -> str:
    if not isinstance(value, str) or not value:
        raise ValueError(f"{name} must be a column's name. Received: {shown(value)}")
    return value


def column_names(name: str, value: Any) -> list[str]:
    names = schema.as_list(value or [])
    if not all(isinstance(each, str) and each for each in names):
        raise ValueError(f"{name} must be a column's name or a list of them. Received: {shown(value)}")
    return names


def padding(name: str, value: Any) -> dict[str, float]:
    padding = dict_by_name(name, value)
    for column, number in padding.items():
        if isinstance(number, bool) or not isinstance(number, int | float | np.number):
            raise ValueError(f"{name} must map columns to numbers. Received: {column!r}: {shown(number)}")
    return padding


def label_columns(name: str, value: Any) -> schema.Names:
    # Outputs without a column have None.
    columns(name, [each for each in names_of(value) if each is not None] or value)
    return value


def class_weight(name: str, value: Any) -> Any:
    if not isinstance(value, Mapping):
        raise ValueError(f"{name} must be a dict of class numbers and weights. Received: {shown(value)}")
    return value


def decoders(name: str, value: Any) -> Any:
    return value or {}  # checked together with the columns


def launch_options(name: str, value: Any) -> dict[str, Any]:
    options = dict_by_name(name, value)
    own = ("start_timeout", "env", "mpi_args")  # the others are arguments of the trainer or ours
    for option in options:
        if option not in own:
            raise ValueError(unknown_name(f"{name} has no option", option, own))
    checked(options)
    return options
