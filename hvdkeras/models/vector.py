"""Keras weights as one float32 vector and back; Keras objects as bytes and back."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass
from typing import Any

import numpy as np


class FlatWeights:
    """Several Keras variables seen as one float32 vector.

    Both directions are one call into TensorFlow and one pass over the memory (one transfer where the
    variables live on a GPU).

    Args:
        variables: Keras variables of any shapes, in the order in which the vector holds them. Variables
            that are not float32 are cast on reading and cast back on writing.
    """

    def __init__(self, variables: Sequence[Any]) -> None:
        import tensorflow as tf

        self._values = [variable.value for variable in variables]
        shapes = [tuple(value.shape) for value in self._values]
        sizes = [int(np.prod(shape, dtype=np.int64)) for shape in shapes]
        bounds = np.cumsum([0, *sizes]).tolist()
        self.size: int = bounds[-1]

        @tf.function
        def read() -> tf.Tensor:
            return tf.concat([tf.reshape(tf.cast(v, tf.float32), [-1]) for v in self._values], axis=0)

        @tf.function(input_signature=[tf.TensorSpec([self.size], tf.float32)])
        def write(vector: tf.Tensor) -> None:
            for value, shape, start, end in zip(self._values, shapes, bounds, bounds[1:], strict=False):
                value.assign(tf.cast(tf.reshape(vector[start:end], shape), value.dtype))

        self._read, self._write = read, write

    def read(self) -> np.ndarray:
        """Returns the variables' values, shape `(size,)`, float32; read-only, not changed by later steps."""
        if not self.size:
            return np.empty(0, np.float32)
        # An eager tensor lends its memory through the buffer protocol; `.numpy()` would copy it once more.
        return np.frombuffer(memoryview(self._read()), np.float32)

    def write(self, vector: np.ndarray) -> None:
        """Sets the variables from `vector`, shape `(size,)`."""
        if vector.shape != (self.size,):
            raise ValueError(f"vector must have the shape ({self.size},). Received: {vector.shape}")
        if self.size:
            self._write(np.ascontiguousarray(vector, np.float32))


def assign(variables: Sequence[Any], vector: np.ndarray) -> None:
    """Sets variables from a vector once; what `FlatWeights.write` does often, without compiling it."""
    bounds = np.cumsum([0, *(int(np.prod(variable.shape)) for variable in variables)])
    if vector.shape != (bounds[-1],):
        raise ValueError(f"vector must have the shape ({bounds[-1]},). Received: {vector.shape}")
    for variable, start, end in zip(variables, bounds, bounds[1:], strict=False):
        variable.assign(vector[start:end].reshape(variable.shape))


def flat(variables: Sequence[Any]) -> np.ndarray:
    """Returns variables as one float32 vector, once; what `FlatWeights.read` does often."""
    arrays = [np.ravel(np.asarray(variable.value, np.float32)) for variable in variables]
    return np.concatenate(arrays) if arrays else np.empty(0, np.float32)


def averaged_variables(model: Any) -> list[Any]:
    """Returns the variables that ranks average at the end, such as batch normalisation's statistics.

    Counters and the states of random layers are integers: each rank has its own, and no mean makes sense.
    """
    return [variable for variable in model.non_trainable_variables if "float" in str(variable.dtype)]


def model_to_bytes(model: Any) -> bytes:
    """Returns a Keras model as the content of a `.keras` file."""
    with tempfile.TemporaryDirectory(prefix="hvdkeras-") as folder:
        path = os.path.join(folder, "model.keras")
        model.save(path)
        with open(path, "rb") as file:
            return file.read()


def model_from_bytes(
    content: bytes, custom_objects: Mapping[str, Any] | None = None, safe_mode: bool = True
) -> Any:
    """Returns the Keras model, not compiled, that a `.keras` file's content holds.

    Args:
        content: what `model_to_bytes` returned, or a `.keras` file's bytes.
        custom_objects: classes and functions by name that the model needs and that are not registered
            with Keras in this process.
        safe_mode: refuse Python code (lambdas) inside the model. Files from elsewhere should be opened
            with the default.
    """
    import keras

    with tempfile.TemporaryDirectory(prefix="hvdkeras-") as folder:
        path = os.path.join(folder, "model.keras")
        with open(path, "wb") as file:
            file.write(content)
        return keras.models.load_model(path, dict(custom_objects or {}), compile=False, safe_mode=safe_mode)


def pack(value: Any) -> Any:
    """Returns a loss, metric or optimizer argument in a form that pickles.

    Metrics and optimizers, which hold variables, become their configuration; losses their attributes, because
    Keras's configuration of some (Huber's delta in 3.15) is incomplete. Names and functions stay as they are.
    Lists and dicts are packed element by element.

    Raises:
        ValueError: for a metric whose configuration is incomplete.
    """
    if isinstance(value, Mapping):
        return {name: pack(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [pack(item) for item in value]
    if not hasattr(value, "get_config"):
        return value
    import keras

    if isinstance(value, keras.losses.Loss):
        return _PackedLoss(type(value), vars(value))
    packed = _PackedObject(keras.saving.serialize_keras_object(value))
    known = {type(value).__name__: type(value)}
    # Some of Keras's classes change the configuration that they are made of.
    copy = keras.saving.deserialize_keras_object(deepcopy(packed.config), known)
    arguments, copied = (getattr(each, "_fn_kwargs", None) for each in (value, copy))
    if arguments != copied:
        raise ValueError(
            f"the configuration that Keras makes of {type(value).__name__} must hold all its arguments. "
            f"Received: {copied} instead of {arguments}"
        )
    return packed


def unpack(value: Any, custom_objects: Mapping[str, Any]) -> Any:
    """Returns what `pack` was given, Keras objects made anew."""
    if isinstance(value, dict):
        return {name: unpack(item, custom_objects) for name, item in value.items()}
    if isinstance(value, list):
        return [unpack(item, custom_objects) for item in value]
    if isinstance(value, _PackedLoss | _PackedObject):
        return value.unpack(custom_objects)
    return value


@dataclass
class _PackedLoss:
    """A Keras loss, which has no variables."""

    kind: type
    attributes: dict[str, Any]

    def unpack(self, custom_objects: Mapping[str, Any]) -> Any:
        loss = object.__new__(self.kind)
        loss.__dict__.update(self.attributes)
        return loss


@dataclass
class _PackedObject:
    """The configuration of a Keras object, told apart from a user's own dict."""

    config: dict[str, Any]

    def unpack(self, custom_objects: Mapping[str, Any]) -> Any:
        import keras

        return keras.saving.deserialize_keras_object(deepcopy(self.config), dict(custom_objects))


def compile_arguments(model: Any) -> dict[str, Any]:
    """Returns a compiled model's optimizer, loss, (weighted) metrics and loss weights; empty for another."""
    if not getattr(model, "compiled", False):
        return {}
    import keras

    config = model.get_compile_config() or {}
    rest = {
        name: keras.saving.deserialize_keras_object(config.get(name))
        for name in ("metrics", "weighted_metrics", "loss_weights")
    }
    return {"optimizer": model.optimizer, "loss": model.loss, **rest}


def has_schedule(optimizer: Any) -> bool:
    """Tells whether an optimizer's learning rate follows a schedule of its own, so that nobody can set it."""
    return callable(getattr(getattr(optimizer, "inner_optimizer", optimizer), "_learning_rate", None))


def scaled(optimizer: Any, model: Any) -> Any:
    """Returns the optimizer with loss scaling where a model computes in float16, as Keras compiles it.

    Keras itself goes by the policy of the process that made the model, which the ranks' own is not.
    """
    import keras

    optimizer = keras.optimizers.get(optimizer)
    in_half = any(layer.compute_dtype == "float16" for layer in model.layers)
    is_scaled = isinstance(optimizer, keras.optimizers.LossScaleOptimizer)
    return keras.optimizers.LossScaleOptimizer(optimizer) if in_half and not is_scaled else optimizer


def check_metrics(metrics: Any) -> None:
    """Raises ValueError for a metric's name that Keras does not know; Keras only looks at the first batch."""
    import keras

    if isinstance(metrics, str):
        if metrics not in ("accuracy", "acc", "crossentropy", "ce"):
            keras.metrics.get(metrics)
    elif isinstance(metrics, Mapping | list | tuple):
        for metric in metrics.values() if isinstance(metrics, Mapping) else metrics:
            check_metrics(metric)
