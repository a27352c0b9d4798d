"""Keras objects in forms that pickle: models as the content of `.keras` files, the rest as configurations."""

from __future__ import annotations

import io
import json
import os
import tempfile
import zipfile
from collections.abc import Callable, Iterator, Mapping
from copy import deepcopy
from dataclasses import dataclass
from typing import Any


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


def architecture(content: bytes) -> dict[str, Any]:
    """Returns the configuration that a `.keras` file's content holds."""
    with zipfile.ZipFile(io.BytesIO(content)) as file:
        return json.loads(file.read("config.json"))


def texts_of(config: Any, key: str) -> Iterator[str]:
    """Yields the texts that a key has anywhere in a configuration, outermost first."""
    if isinstance(config, dict):
        if isinstance(config.get(key), str):
            yield config[key]
        config = list(config.values())
    if isinstance(config, list):
        for item in config:
            yield from texts_of(item, key)


def with_functions(model: Any) -> tuple[bytes, dict[str, Callable[..., Any]]]:
    """Returns a model as bytes, and by name the functions of its Lambda layers.

    Keras writes a lambda's code without the globals that it uses. In the bytes returned here each function is
    a name, for `model_from_bytes` to find in its `custom_objects`.
    """
    import keras

    content, found, functions = model_to_bytes(model), {}, {}
    for layer in model._flatten_layers():
        if isinstance(layer, keras.layers.Lambda):
            config = layer.get_config()
            for argument, function in (
                ("function", layer.function),
                ("output_shape", layer._output_shape),
                ("mask", layer.mask),
            ):
                if callable(function):
                    written = keras.saving.serialize_keras_object(config[argument])
                    found[json.dumps(written, sort_keys=True)] = function
    if not found:
        return content, functions
    with zipfile.ZipFile(io.BytesIO(content)) as file:
        parts = {name: file.read(name) for name in file.namelist()}
    config = json.loads(parts["config.json"])
    for holder, key in _entries(config):
        function = found.get(json.dumps(holder[key], sort_keys=True))
        if function is not None:
            name = f"hvdkeras_function_{len(functions)}"
            functions[name] = function
            reference = {"module": None, "class_name": "function", "config": name, "registered_name": name}
            holder[key] = reference
    parts["config.json"] = json.dumps(config).encode()
    changed = io.BytesIO()
    with zipfile.ZipFile(changed, "w") as file:
        for name, part in parts.items():
            file.writestr(name, part)
    return changed.getvalue(), functions


def _entries(config: Any) -> Iterator[tuple[Any, Any]]:
    """Every dict in a configuration, as its container and its key there, outermost first."""
    keys = list(config) if isinstance(config, dict) else range(len(config))
    for key in keys:
        if isinstance(config[key], dict):
            yield config, key
        if isinstance(config[key], dict | list):
            yield from _entries(config[key])


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
        return _PackedLoss(type(value), dict(vars(value)))
    packed = _PackedObject(keras.saving.serialize_keras_object(value), own_objects(value))
    arguments, copied = (getattr(each, "_fn_kwargs", None) for each in (value, packed.unpack({})))
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


def described(packed: Any) -> Any:
    """Returns what `pack` returned as plain data that is the same in every process."""
    if isinstance(packed, Mapping):
        return {str(name): described(item) for name, item in packed.items()}
    if isinstance(packed, list | tuple):
        return [described(item) for item in packed]
    if isinstance(packed, _PackedObject):
        return described(packed.config)
    if packed is None or isinstance(packed, str | bool | int | float):
        return packed
    return getattr(packed, "__name__", type(packed).__name__)


def own_objects(value: Any) -> dict[str, Any]:
    """Returns by name the user's own classes and functions of which an object, and what it holds, is made.

    Args:
        value: a Keras object, such as an optimizer with a schedule or a metric with a function.
    """
    found: dict[str, Any] = {}
    _collect(value, found, set())
    return found


def own_parts(model: Any) -> dict[str, Any]:
    """Returns by name the user's own layer classes and Lambda functions, which no file holds."""
    import keras

    found: dict[str, Any] = {}
    for layer in model._flatten_layers():
        if not (type(layer).__module__ or "").startswith("keras."):
            found[keras.saving.get_registered_name(type(layer))] = type(layer)
        if isinstance(layer, keras.layers.Lambda):
            functions = (layer.function, layer._output_shape, layer.mask)
            found.update(own_objects([each for each in functions if callable(each)]))
    return found


def _collect(value: Any, found: dict[str, Any], seen: set[int]) -> None:
    import keras

    if id(value) in seen:
        return
    seen.add(id(value))
    if isinstance(value, Mapping | list | tuple):
        for item in value.values() if isinstance(value, Mapping) else value:
            _collect(item, found, seen)
        return
    named = value if callable(value) and hasattr(value, "__name__") else type(value)
    is_object = hasattr(value, "get_config") and not isinstance(value, keras.layers.Layer)
    if (is_object or named is value) and not (named.__module__ or "").startswith("keras."):
        found[keras.saving.get_registered_name(named)] = named
    if is_object and not isinstance(value, type):
        _collect(list(vars(value).values()), found, seen)


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
    """The configuration of a Keras object, told apart from a user's own dict.

    Attributes:
        config: the configuration that Keras makes of it.
        objects: the user's own classes and functions that it needs, by name.
    """

    config: dict[str, Any]
    objects: dict[str, Any]

    def unpack(self, custom_objects: Mapping[str, Any]) -> Any:
        import keras

        # The scope reaches what is nested, too: a schedule in an optimizer, a function in a metric. Some of
        # Keras's classes change the configuration that they are made of.
        with keras.saving.custom_object_scope({**self.objects, **custom_objects}):
            return keras.saving.deserialize_keras_object(deepcopy(self.config))
