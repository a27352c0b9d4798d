"""The values of a model's variables: read without a copy, compared bit by bit, and random states by rank."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import numpy as np

from hvdkeras.naming import shown

# Far from the small numbers that people choose as seeds: no rank gets the seed of another's other layer.
SEED_STRIDE = 1_000_003


def read(variable: Any) -> np.ndarray:
    """Returns a variable's value, which later assignments to the variable do not change.

    It is read-only and lies in TensorFlow's own memory, except where that is a GPU's, and for dtypes that
    NumPy does not have.
    """
    import tensorflow as tf

    return as_array(tf.convert_to_tensor(variable.value))


def as_array(tensor: Any) -> np.ndarray:
    """Returns an eager tensor as an array, see `read`."""
    import keras

    try:
        # The tensor lends its memory by the buffer protocol; TensorFlow writes to none that it lent.
        return np.asarray(memoryview(tensor))
    except (TypeError, ValueError, BufferError):
        return keras.ops.convert_to_numpy(tensor)


def same(first: np.ndarray, second: np.ndarray) -> bool:
    """Whether two arrays have the same dtype, shape and bits: NaN equals itself."""
    if (first.dtype, first.shape) != (second.dtype, second.shape):
        return False
    # As integers; a copy would double what may be most of the memory.
    bits = f"u{math.gcd(first.itemsize, 8)}"
    return np.array_equal(*(np.ascontiguousarray(each).reshape(-1).view(bits) for each in (first, second)))


def differing(model: Any, copy: Any) -> Iterator[str]:
    """Yields what the variables of a model's copy have otherwise than those of the model."""
    for variable, copied in zip(model.variables, copy.variables, strict=True):
        if variable.name != copied.name or tuple(variable.shape) != tuple(copied.shape):
            yield f"{variable.path} of shape {tuple(variable.shape)} ({copied.path}, {tuple(copied.shape)})"
        elif bool(variable.trainable) != bool(copied.trainable):
            yield f"whether {variable.path} trains"
        elif not same(read(variable), read(copied)):
            yield f"the values of {variable.path}"
    positions = [
        {id(variable): number for number, variable in enumerate(each.variables)} for each in (model, copy)
    ]
    trained = [
        [position[id(variable)] for variable in each.trainable_variables]
        for each, position in zip((model, copy), positions, strict=True)
    ]
    if trained[0] != trained[1]:
        yield f"which variables train: {shown(trained[0])}, {shown(trained[1])} in the copy"


def is_seed(variable: Any) -> bool:
    """Whether a variable is the state of a random layer, shape `(2,)`: its seed, and how often it drew."""
    return variable.name == "seed_generator_state"


def set_seed(variable: Any, state: np.ndarray, rank: int | None) -> None:
    """Sets a random layer's state.

    Args:
        variable: the state of the layer's copy, as it was made.
        state: the state of the layer itself.
        rank: as in `Recipe.build`.
    """
    drawn = read(variable)
    if rank is None:
        variable.assign(state)
    elif drawn[0] == state[0]:
        # The seed is the layer's own, and no other process would draw another.
        seed = (int(state[0]) + SEED_STRIDE * rank) % 2**32
        variable.assign(np.array([seed, state[1]], state.dtype))
