"""A Keras model with what it is compiled with, in a form that travels to ranks."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from hvdkeras.models import vector


@dataclass(frozen=True)
class Recipe:
    """How to make the model on any process.

    Attributes:
        content: the model as a `.keras` file.
        optimizer: packed, as loss and metrics are.
    """

    content: bytes
    optimizer: Any
    loss: Any
    metrics: Any
    weighted_metrics: Any
    loss_weights: Any
    custom_objects: Mapping[str, Any]

    @classmethod
    def of(
        cls,
        model: Any,
        optimizer: Any,
        loss: Any,
        metrics: Any,
        weighted_metrics: Any,
        loss_weights: Any,
        custom_objects: Mapping[str, Any],
    ) -> Recipe:
        import keras

        objects = {**keras.saving.get_custom_objects(), **custom_objects}
        packed = [vector.pack(each) for each in (optimizer, loss, metrics, weighted_metrics)]
        return cls(vector.model_to_bytes(model), *packed, loss_weights, objects)

    def build(self, steps_per_execution: int = 1, fresh: bool = False) -> Any:
        """Returns a copy of the model, compiled; `fresh` draws initial weights anew."""
        import keras

        with keras.saving.custom_object_scope(dict(self.custom_objects)):
            model = vector.model_from_bytes(self.content, self.custom_objects, safe_mode=False)
            model = keras.models.clone_model(model) if fresh else model
            return self.compile(model, steps_per_execution)

    def compile(self, model: Any, steps_per_execution: int = 1) -> Any:
        """Compiles a model of the same outputs, and returns it."""
        loss, metrics, weighted_metrics, optimizer = (
            vector.unpack(each, self.custom_objects)
            for each in (self.loss, self.metrics, self.weighted_metrics, self.optimizer)
        )
        model.compile(
            optimizer=vector.scaled(optimizer, model),
            loss=loss,
            metrics=metrics,
            weighted_metrics=weighted_metrics,
            loss_weights=self.loss_weights,
            steps_per_execution=steps_per_execution,
        )
        return model
