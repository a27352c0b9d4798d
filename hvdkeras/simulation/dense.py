"""A small dense Keras model, vectorised over workers in NumPy."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from hvdkeras.data.share import Share
from hvdkeras.models.vector import flat
from hvdkeras.naming import listed

# The function, and its derivative as a function of its value.
_ACTIVATIONS: dict[str, tuple[Callable, Callable]] = {
    "linear": (lambda z: z, np.ones_like),
    "relu": (lambda z: np.maximum(z, 0, out=z), lambda a: a > 0),
    "tanh": (lambda z: np.tanh(z, out=z), lambda a: 1 - a * a),
    "sigmoid": (lambda z: 1 / (1 + np.exp(-z)), lambda a: a * (1 - a)),
}
# Options of layers that are not simulated.
_OPTIONS = (
    "kernel_regularizer",
    "bias_regularizer",
    "activity_regularizer",
    "kernel_constraint",
    "bias_constraint",
    "lora_rank",
)
_CROSS_ENTROPIES = ("sparse_categorical_crossentropy", "categorical_crossentropy")


class Layer:
    """A Dense layer: where its weights are in the vector, and its activation.

    Args:
        layer: the Keras layer, built.
        start: where its kernel begins.
    """

    def __init__(self, layer: Any, start: int) -> None:
        self._shape = tuple(layer.kernel.shape)
        self._kernel = slice(start, start + int(np.prod(self._shape)))
        outputs = self._shape[1] if layer.use_bias else 0
        self._bias = slice(self._kernel.stop, self._kernel.stop + outputs)
        self.stop = self._bias.stop
        self.activation = layer.activation.__name__
        self.outputs = self._shape[1]

    def forward(self, weights: np.ndarray, inputs: np.ndarray) -> np.ndarray:
        """Returns what the layer computes before its activation, shape `(k, rows, outputs)`."""
        result = inputs @ self._kernels(weights)
        if self._bias.start < self._bias.stop:
            result += weights[:, np.newaxis, self._bias]
        return result

    def backward(
        self, weights: np.ndarray, inputs: np.ndarray, delta: np.ndarray, gradient: np.ndarray
    ) -> np.ndarray:
        """Writes the layer's part of the gradients, shape `(k, n)`; returns the inputs' gradients."""
        np.matmul(inputs.swapaxes(1, 2), delta, out=self._kernels(gradient))
        if self._bias.start < self._bias.stop:
            np.sum(delta, axis=1, out=gradient[:, self._bias])
        return delta @ self._kernels(weights).swapaxes(1, 2)

    def _kernels(self, vectors: np.ndarray) -> np.ndarray:
        """The kernels in vectors of all weights, as a view, shape `(k, inputs, outputs)`."""
        return vectors[:, self._kernel].reshape(-1, *self._shape)


class DenseModel:
    """The problem of a trainer: its model and loss on its workers' shares of the data.

    Each worker has the rows, batches and orders that the rank of its number has in a real training.

    Args:
        trainer: the trainer; its model is Sequential, of Dense and Flatten layers.
        data: arrays by column name.
        num_workers: number of workers.
        shuffle: as in `train`.
        validation_data: arrays by column name for `evaluate`. Default: `data`.

    Raises:
        ValueError: the model, its loss or the data is of a kind that is not simulated.
    """

    def __init__(
        self,
        trainer: Any,
        data: Mapping[str, Any],
        num_workers: int,
        shuffle: bool = False,
        validation_data: Mapping[str, Any] | None = None,
    ) -> None:
        model = trainer.keras_model
        self._layers = _layers(model)
        self._loss = _loss(trainer.loss, self._layers[-1].activation)
        self.initial = flat(model.trainable_variables)
        self._features, self._labels = self._columns(trainer, data)
        self._validation = (self._features, self._labels)
        if validation_data is not None:
            self._validation = self._columns(trainer, validation_data)
        total = len(self._features)
        if total < num_workers:
            raise ValueError(
                f"data must have at least a row for each of {num_workers} workers. Received: {total}"
            )
        arguments = num_workers, trainer.batch_size, trainer.seed, shuffle
        self._shares = [Share(total, worker, *arguments) for worker in range(num_workers)]
        self._shuffle = shuffle
        self.steps = self._shares[0].steps
        self._cuts = np.stack([share.cuts(0, self.steps) for share in self._shares])
        self._orders: list[tuple[int, np.ndarray]] = [(-1, np.empty(0))] * num_workers

    def rows(self, workers: np.ndarray, steps: np.ndarray) -> np.ndarray:
        return self._cuts[workers, steps + 1] - self._cuts[workers, steps]

    def gradients(
        self, weights: np.ndarray, workers: np.ndarray, epochs: np.ndarray, steps: np.ndarray
    ) -> np.ndarray:
        counts = self.rows(workers, steps)
        # Shorter batches are filled with row 0, which counts nothing.
        chosen = np.zeros((len(workers), counts.max()), np.int64)
        shares = (np.arange(chosen.shape[1]) < counts[:, np.newaxis]) / counts[:, np.newaxis]
        for place, (worker, epoch, step) in enumerate(zip(workers, epochs, steps, strict=True)):
            begin, end = self._cuts[worker, step : step + 2]
            chosen[place, : end - begin] = self._order(worker, epoch)[begin:end]
        values = [self._features[chosen]]
        for layer in self._layers:
            values.append(_activated(layer, layer.forward(weights, values[-1])))
        delta = self._delta(values[-1], self._labels[chosen]) * shares[..., np.newaxis].astype(np.float32)
        result = np.empty_like(weights, order="C", subok=False)
        for number in reversed(range(len(self._layers))):
            delta = self._layers[number].backward(weights, values[number], delta, result)
            if number:
                delta *= _ACTIVATIONS[self._layers[number - 1].activation][1](values[number])
        return result

    def evaluate(self, weights: np.ndarray) -> dict[str, float]:
        features, labels = self._validation
        values = features[np.newaxis]
        for layer in self._layers:
            values = _activated(layer, layer.forward(weights[np.newaxis], values))
        outputs = values[0]
        if self._loss not in _CROSS_ENTROPIES:
            return {"loss": float(np.mean(np.square(outputs - labels, dtype=np.float64)))}
        classes = labels if self._is_sparse else labels.argmax(axis=1)
        likelihood = _softmax(outputs) if self._layers[-1].activation == "linear" else outputs
        own = likelihood[np.arange(len(classes)), classes]
        loss = -np.mean(np.log(np.maximum(own, 1e-7), dtype=np.float64))
        return {"loss": float(loss), "accuracy": float(np.mean(outputs.argmax(axis=1) == classes))}

    @property
    def _is_sparse(self) -> bool:
        return self._loss == "sparse_categorical_crossentropy"

    def _order(self, worker: int, epoch: int) -> np.ndarray:
        """The rows of a worker in an epoch, counted from the first of all."""
        if self._orders[worker][0] != epoch:
            share = self._shares[worker]
            order = share.order(epoch) + np.int64(0 if self._shuffle else share.start)
            self._orders[worker] = epoch, order
        return self._orders[worker][1]

    def _delta(self, outputs: np.ndarray, labels: np.ndarray) -> np.ndarray:
        """The derivative of each row's loss by what the last layer computes before its activation."""
        last = self._layers[-1].activation
        if self._loss in _CROSS_ENTROPIES:
            likelihood = _softmax(outputs) if last == "linear" else outputs.copy()
            if self._is_sparse:
                np.put_along_axis(
                    likelihood,
                    labels[..., np.newaxis],
                    np.take_along_axis(likelihood, labels[..., np.newaxis], 2) - 1,
                    2,
                )
                return likelihood
            return likelihood - labels
        return np.float32(2 / self._layers[-1].outputs) * (outputs - labels) * _ACTIVATIONS[last][1](outputs)

    def _columns(self, trainer: Any, data: Mapping[str, Any]) -> tuple[np.ndarray, np.ndarray]:
        names = trainer.features_col, trainer.label_col
        if not isinstance(data, Mapping) or not all(isinstance(name, str) and name in data for name in names):
            received = listed(data) if isinstance(data, Mapping) else type(data).__name__
            raise ValueError(
                f"data must be arrays by column name, with the columns of features and labels, {names}. "
                f"Received: {received}"
            )
        features, labels = (np.asarray(data[name]) for name in names)
        features = np.ascontiguousarray(features.reshape(len(features), -1), np.float32)
        inputs = self._layers[0]._shape[0]
        if features.shape[1] != inputs:
            raise ValueError(f"features must have {inputs} numbers a row. Received: {features.shape[1]}")
        if self._is_sparse:
            return features, labels.reshape(len(features)).astype(np.int64)
        outputs = self._layers[-1].outputs
        if labels.size != len(features) * outputs:
            raise ValueError(f"labels must have {outputs} numbers a row. Received: shape {labels.shape}")
        return features, labels.reshape(len(features), outputs).astype(np.float32)


def _softmax(values: np.ndarray) -> np.ndarray:
    result = np.exp(values - values.max(axis=-1, keepdims=True))
    result /= result.sum(axis=-1, keepdims=True)
    return result


def _activated(layer: Layer, values: np.ndarray) -> np.ndarray:
    return _softmax(values) if layer.activation == "softmax" else _ACTIVATIONS[layer.activation][0](values)


def _layers(model: Any) -> list[Layer]:
    """The Dense layers of a model."""
    import keras

    kinds = keras.layers.Dense, keras.layers.Flatten
    if not isinstance(model, keras.Sequential) or not model.built:
        raise ValueError(f"keras_model must be Sequential, with an Input. Received: {type(model).__name__}")
    found: list[Layer] = []
    for layer in model.layers:
        if not isinstance(layer, kinds) or len(layer.trainable_variables) != len(layer.variables):
            raise ValueError(
                f"keras_model must have only Dense and Flatten layers that train. Received: {layer.name!r}, "
                f"{type(layer).__name__}"
            )
        options = [name for name in _OPTIONS if getattr(layer, name, None) is not None]
        if options or layer.compute_dtype != "float32":
            raise ValueError(
                f"keras_model must be of float32, its layers without {listed(_OPTIONS)}. "
                f"Received: {layer.name!r} of {layer.compute_dtype} with {listed(options or ['none'])}"
            )
        if isinstance(layer, keras.layers.Dense):
            found.append(Layer(layer, found[-1].stop if found else 0))
    activations = [layer.activation for layer in found]
    unknown = [name for name in activations[:-1] if name not in _ACTIVATIONS]
    unknown += [name for name in activations[-1:] if name not in (*_ACTIVATIONS, "softmax")]
    if not found or unknown:
        raise ValueError(
            f"keras_model must have Dense layers with the activations {listed(_ACTIVATIONS)}, the last one "
            f"softmax, too. Received: {listed(unknown) if unknown else 'no Dense layer'}"
        )
    return found


def _loss(loss: Any, activation: str) -> str:
    """The name of a loss that goes with the last layer's activation."""
    import keras

    found = keras.losses.get(loss)
    name = getattr(found, "name", None) or getattr(found, "__name__", None)
    options = getattr(found, "_fn_kwargs", {})
    from_logits = bool(options.get("from_logits"))
    usual = not options.get("label_smoothing") and getattr(found, "reduction", "sum_over_batch_size") in (
        "sum_over_batch_size",
        "mean",
    )
    if usual and name == "mean_squared_error" and activation != "softmax":
        return name
    if usual and name in _CROSS_ENTROPIES and activation == ("linear" if from_logits else "softmax"):
        return name
    raise ValueError(
        f"loss must be mean_squared_error, or {listed(_CROSS_ENTROPIES)} after softmax or from logits. "
        f"Received: {name} after {activation}"
    )
