"""Large weights beside a model's file, where Keras would write them into it and read them from it.

A `.keras` file is HDF5 in a zip archive: each weight is copied five times on its way into one, and drawn at
random before it is read from one. Here the file of a model has a number in the place of each large weight.
All else is in the file as Keras writes it: the configuration, assets, small weights, and what layers compute
when they save, as merged LoRA matrices.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np

from hvdkeras.models.values import as_array

# Below this a copy costs less than the rest of saving and loading.
LARGE_BYTES = 1 << 20
# The first of the two integers that are in a file in a large weight's place; the second is its number.
_PLACE = 0x68766B65726173

# The classes of Keras are changed by one thread at a time, for itself.
_changing = threading.RLock()


class Weight:
    """A large weight. In the process where it was saved, a copy of the model shares its memory.

    TensorFlow gives a variable memory of its own when it changes one that shares it.

    Attributes:
        value: the weight, read-only.
    """

    def __init__(self, value: np.ndarray, tensor: Any = None) -> None:
        self.value, self._tensor = value, tensor

    @property
    def tensor(self) -> Any:
        """The weight as a tensor."""
        import tensorflow as tf

        return tf.convert_to_tensor(self.value) if self._tensor is None else self._tensor

    def __reduce__(self) -> tuple[type[Weight], tuple[np.ndarray]]:
        return Weight, (self.value,)


class Beside:
    """The large weights of one file.

    Attributes:
        weights: by the number that the file has in their place.
        loaded: numbers of those that a layer has loaded.
    """

    def __init__(self, weights: dict[int, Weight] | None = None) -> None:
        self.weights = {} if weights is None else weights
        self.loaded: set[int] = set()

    def put(self, value: Any) -> Any:
        """Returns what the file gets for a value that a layer saves."""
        import keras
        import tensorflow as tf

        if not isinstance(value, keras.Variable) or _bytes(value.shape, value.dtype) < LARGE_BYTES:
            return value
        number, tensor = len(self.weights), tf.convert_to_tensor(value.value)
        self.weights[number] = Weight(as_array(tensor), tensor)
        return np.array([_PLACE, number], np.int64)

    def get(self, value: Any) -> Any:
        """Returns what a layer loads for a value in the file: a tensor for a large weight.

        The driver and the ranks load the same kind of object.
        """
        # In older versions of Keras it is a dataset of h5py.
        is_place = getattr(value, "shape", None) == (2,) and value.dtype == np.int64
        if not is_place or value[0] != _PLACE:
            return value
        number = int(value[1])
        self.loaded.add(number)
        return self.weights[number].tensor


@contextmanager
def beside_the_file(beside: Beside) -> Iterator[None]:
    """While it is open, models that this thread saves and loads have their large weights beside the file.

    Variables that are made meanwhile are not drawn where nothing can depend on the numbers: large ones with
    an initializer of Keras's that has no seed. They are zero until they are loaded.

    Where Keras has other classes than those that are changed here, large weights are in the file.
    """
    import keras
    from keras.src.saving import saving_lib

    me, kind = threading.get_ident(), keras.Variable
    # Older versions of Keras write and read by objects of another class.
    store = getattr(saving_lib, "H5Entry", saving_lib.H5IOStore)
    if not (hasattr(store, "__setitem__") and hasattr(store, "__getitem__")):
        yield
        return
    with _changing:
        write, load = store.__setitem__, store.__getitem__
        initialize = getattr(kind, "_initialize_with_initializer", None)

        def put(self: Any, key: str, value: Any) -> None:
            write(self, key, beside.put(value) if threading.get_ident() == me else value)

        def get(self: Any, key: str) -> Any:
            value = load(self, key)
            return beside.get(value) if threading.get_ident() == me else value

        def begin(self: Any, initializer: Any) -> None:
            is_zero = threading.get_ident() == me and _may_be_zero(initializer, self._shape, self._dtype)
            initialize(self, keras.initializers.Zeros() if is_zero else initializer)

        store.__setitem__, store.__getitem__ = put, get
        if initialize is not None:
            kind._initialize_with_initializer = begin
        try:
            yield
        finally:
            store.__setitem__, store.__getitem__ = write, load
            if initialize is not None:
                kind._initialize_with_initializer = initialize


def _may_be_zero(initializer: Any, shape: tuple[int, ...], dtype: str) -> bool:
    """Whether a variable is large, and its first values are random numbers that no process draws twice."""
    is_keras_own = type(initializer).__module__.startswith("keras.") and hasattr(initializer, "get_config")
    return (
        is_keras_own
        and _bytes(shape, dtype) >= LARGE_BYTES
        and initializer.get_config().get("seed", "none") is None
    )


def _bytes(shape: tuple[int, ...], dtype: str) -> int:
    """At least the bytes of a value; as if booleans and half bytes were bytes."""
    digits = "".join(filter(str.isdigit, str(dtype).partition("_")[0]))
    return math.prod(shape) * max(1, int(digits or 8) // 8)
