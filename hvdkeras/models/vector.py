"""Keras weights as one float32 vector and back."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

# Of a variable that is set in pieces.
PIECE_BYTES = 4 << 20


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

        # Autograph would rewrite Python that needs no rewriting, in a tenth of a second at each launch.
        @tf.function(autograph=False)
        def read() -> tf.Tensor:
            return tf.concat([tf.reshape(tf.cast(v, tf.float32), [-1]) for v in self._values], axis=0)

        @tf.function(input_signature=[tf.TensorSpec([self.size], tf.float32)], autograph=False)
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
        _assign(variable, vector[start:end].reshape(variable.shape))


def _assign(variable: Any, value: np.ndarray) -> None:
    """Sets a variable; a large one in pieces, because TensorFlow copies an array on its way."""
    import tensorflow as tf

    rows = max(1, PIECE_BYTES // max(1, value[:1].nbytes)) if value.ndim else 0
    if not rows or len(value) <= rows or str(variable.dtype) != str(value.dtype):
        variable.assign(value)
        return
    for first in range(0, len(value), rows):
        part = value[first : first + rows]
        tf.raw_ops.ResourceStridedSliceAssign(
            ref=variable.value.handle, begin=[first], end=[first + len(part)], strides=[1], value=part
        )


def flat(variables: Sequence[Any]) -> np.ndarray:
    """Returns variables as one float32 vector, once; what `FlatWeights.read` does often."""
    arrays = [np.ravel(np.asarray(variable.value, np.float32)) for variable in variables]
    return np.concatenate(arrays) if arrays else np.empty(0, np.float32)


def averaged_variables(model: Any) -> list[Any]:
    """Returns the variables that ranks average at the end, such as batch normalisation's statistics.

    They are those that a step can change though no gradient does. Frozen layers, which Keras runs in
    inference mode, and layers that only `adapt` changes are not among them. Counters and the states of random
    layers are integers: each rank has its own, and no mean makes sense.

    Args:
        model: a built Keras model. One with a `train_step` of its own may assign to any variable, such as
            the weights of a frozen teacher: all floats that are not trained are averaged then.
    """
    import keras

    constant = set()
    if type(model).train_step is keras.Model.train_step:
        constant = {id(variable) for variable in _constant_variables(model)}
    return [
        variable
        for variable in model.non_trainable_variables
        if "float" in str(variable.dtype) and id(variable) not in constant
    ]


def _constant_variables(model: Any) -> Iterator[Any]:
    """Variables that neither a gradient nor a training's forward pass changes."""
    from keras import layers

    # It normalises the weights of the layer that it wraps in each forward pass, frozen or not.
    normalised = [
        layer for layer in model._flatten_layers() if isinstance(layer, layers.SpectralNormalization)
    ]
    changing = {id(inner) for layer in normalised for inner in layer._flatten_layers()}
    for layer in model._flatten_layers():
        if id(layer) in changing:
            continue
        own = [*layer._trainable_variables, *layer._non_trainable_variables]
        is_keras_own = type(layer).__module__.startswith("keras.")
        frozen = is_keras_own and not layer.trainable
        if frozen or isinstance(layer, layers.Normalization) or getattr(layer, "lora_enabled", False):
            yield from own
        else:
            # A weight of which only the flag says that it does not train.
            yield from layer._trainable_variables
