"""What a Keras model is compiled with."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from hvdkeras.naming import listed


def compiled_with(model: Any) -> dict[str, Any]:
    """Returns the objects that a model was compiled with, by `compile`'s names; empty if it was not compiled.

    `steps_per_execution` is not among them, and of `run_eagerly` and `jit_compile` only what Keras would not
    have chosen itself.
    """
    if not getattr(model, "compiled", False):
        return {}
    config = dict(model._compile_config.config)
    names = ("loss", "metrics", "weighted_metrics", "loss_weights")
    arguments = {"optimizer": model.optimizer, **{name: config.get(name) for name in names}}
    if config.get("run_eagerly"):
        arguments["run_eagerly"] = True
    elif model.jit_compile != model._resolve_auto_jit_compile():
        arguments["jit_compile"] = model.jit_compile
    return arguments


def check_metrics(metrics: Any) -> None:
    """Raises ValueError for a metric's name that Keras does not know; Keras only looks at the first batch."""
    import keras

    if isinstance(metrics, str):
        if metrics.lower() not in ("accuracy", "acc"):
            keras.metrics.get(metrics)
    elif isinstance(metrics, Mapping | list | tuple):
        for metric in metrics.values() if isinstance(metrics, Mapping) else metrics:
            check_metrics(metric)


def compiles_itself(model: Any) -> bool:
    """Whether a model follows Keras's protocol for classes with a `compile` of their own."""
    import keras

    own = type(model).compile is not keras.Model.compile
    return own and model.compiled and type(model).compile_from_config is not keras.Model.compile_from_config


def check_left_out(model: Any, arguments: Mapping[str, Any]) -> None:
    """Raises for arguments that a model whose class compiles itself would not get."""
    own = compiled_with(model)
    own["worker_optimizer"] = own.pop("optimizer", None)
    given = [name for name, value in arguments.items() if value is not own.get(name)]
    if given:
        raise ValueError(
            f"{listed(given)} must be left out for a model of {type(model).__name__}, whose "
            "compile_from_config sets them. Received: "
            + listed(f"{name}={arguments[name]!r}" for name in given)
        )
