"""How an estimator with a Keras model is saved: its model, and its arguments as JSON."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Mapping
from copy import deepcopy
from typing import Any

from hvdkeras.arguments import declared_arguments
from hvdkeras.ml.stage import Stage, StageReader, StageWriter
from hvdkeras.models.serialization import model_to_bytes, pack

# Objects of Python without an open format.
_NOT_SAVED = ("callbacks", "center_callbacks", "decode")


class SavedEstimator(Stage):
    """A stage that consists of `keras_model` and of declared arguments.

    Its folder holds the model as a `.keras` file, with the optimizer that it is compiled with, and the
    arguments that were given as JSON: plain values as they are, Keras's objects as their configurations.
    There is no pickle in it.
    """

    @classmethod
    def load(cls, path: str, custom_objects: Mapping[str, Any] | None = None) -> Any:
        """Loads a trainer.

        Args:
            path: folder on any file system that Spark's Hadoop knows.
            custom_objects: classes and functions by name that are not registered with Keras. They are not
                saved; a pipeline that holds the trainer can be loaded only where they are registered.

        Raises:
            FileNotFoundError: nothing was saved there, or a file is missing.
            ValueError: a newer hvdkeras saved it, or it is damaged.
        """
        return cls.read(custom_objects=custom_objects).load(path)

    def _save_more(self, writer: StageWriter, path: str) -> dict[str, Any]:
        content, more = self._written()
        writer.write_bytes(f"{path}/model.keras", content)
        return more

    def _saved_params(self) -> dict[str, Any]:
        return {name: value for name, value in self._given_values().items() if _is_plain(value)}

    def _given_values(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in declared_arguments(type(self)) if self.is_given(name)}

    @classmethod
    def _load_more(cls, reader: StageReader, path: str, metadata: dict[str, Any]) -> dict[str, Any]:
        content = reader.read_bytes(f"{path}/model.keras")
        return cls._read_back(content, metadata, reader.options.get("custom_objects"))

    def _written(self) -> tuple[bytes, dict[str, Any]]:
        """Returns the model's file and the arguments that are no plain values, after reading them back.

        Raises:
            ValueError: an argument can't be written, or would not be the same when it is loaded.
        """
        for name in _NOT_SAVED:
            if getattr(self, name):
                raise ValueError(
                    f"{self.uid}: {name} must be left out of a trainer that is saved: there is no open "
                    f"format for Python's functions and objects. Received: {getattr(self, name)!r}"
                )
        content = model_to_bytes(self.keras_model)
        more = {"keras_arguments": {}, "class_weight": None}
        for name, value in self._given_values().items():
            if name == "class_weight" and value is not None:
                more["class_weight"] = [[int(number), float(weight)] for number, weight in value.items()]
            elif name != "custom_objects" and not _is_plain(value) and not self._is_the_models(value):
                more["keras_arguments"][name] = self._configuration(name, value)
        try:
            again = type(self)(**self._read_back(content, more, self.custom_objects), **self._saved_params())
            self.recipe().compare(self.keras_model, again.recipe_with_copy()[1])
        except Exception as error:
            raise ValueError(f"{self.uid} must be the same after saving and loading. {error}") from error
        return content, more

    def _is_the_models(self, value: Any) -> bool:
        """Whether a value is the model's own optimizer, which its file holds."""
        return value is getattr(self.keras_model, "optimizer", None)

    def _configuration(self, name: str, value: Any) -> Any:
        import keras

        try:
            config = json.loads(json.dumps(keras.saving.serialize_keras_object(value)))
            with keras.saving.custom_object_scope(self.custom_objects or {}):
                same = pack(keras.saving.deserialize_keras_object(deepcopy(config))) == pack(value)
        except Exception as error:
            raise ValueError(
                f"{self.uid}: {name} can't be saved: its functions and classes must be Keras's, registered "
                f"with keras.saving.register_keras_serializable, or among custom_objects. Received: "
                f"{value!r}, {type(error).__name__}: {str(error).splitlines()[0]}"
            ) from error
        if not same:
            raise ValueError(
                f"{self.uid}: {name} can't be saved: Keras's configuration of it is not complete. "
                f"Received: {value!r}"
            )
        return config

    @staticmethod
    def _read_back(
        content: bytes, metadata: Mapping[str, Any], custom_objects: Mapping[str, Any] | None
    ) -> dict[str, Any]:
        """Returns the model, the custom objects, and the arguments that `_written` returned."""
        import keras

        scope = dict(custom_objects or {})
        with tempfile.TemporaryDirectory(prefix="hvdkeras-") as folder:
            file = os.path.join(folder, "model.keras")
            with open(file, "wb") as stream:
                stream.write(content)
            with keras.saving.custom_object_scope(scope):
                model = keras.models.load_model(file)
                arguments = {
                    name: keras.saving.deserialize_keras_object(deepcopy(config))  # it changes what it reads
                    for name, config in metadata["keras_arguments"].items()
                }
        if metadata["class_weight"] is not None:
            arguments["class_weight"] = dict(metadata["class_weight"])
        if scope:
            arguments["custom_objects"] = scope
        return {"keras_model": model, **arguments}


def _is_plain(value: Any) -> bool:
    """Whether JSON brings a value back: numbers, strings, lists of them, dicts of them by strings."""
    if isinstance(value, Mapping):
        return all(isinstance(key, str) and _is_plain(item) for key, item in value.items())
    if isinstance(value, list | tuple):
        return all(map(_is_plain, value))
    return value is None or isinstance(value, bool | int | float | str)
