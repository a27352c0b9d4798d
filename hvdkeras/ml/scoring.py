"""The executors' part of a predictor: load a model once, turn rows into tensors and outputs into columns."""

from __future__ import annotations

import gc
import os
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import cloudpickle
import numpy as np
import pandas as pd
import pyarrow as pa

from hvdkeras.launch.python_workers import forget_archives
from hvdkeras.ml.rows import evened, fed_dtype, flat_rows, stack, string_rows, vector_rows
from hvdkeras.models.saved import Tensor
from hvdkeras.models.serialization import model_from_bytes
from hvdkeras.naming import listed

# How many models a Python worker keeps: in a long session it scores with many, one after another.
MODELS_KEPT = 4
_models: OrderedDict[str, Callable[..., list[Any]]] = OrderedDict()


@dataclass(frozen=True)
class Scoring:
    """What the executors compute for one predictor.

    Args:
        stage: name of the stage, for messages.
        columns: names of the features columns, one for each input.
        inputs: the model's inputs.
        outputs: the model's outputs.
        scalar: for each output, whether a row's value is a number rather than an array.
        batch_size: rows a call of the model.
        keep_invalid: whether an invalid row becomes null; otherwise it ends the job.
        key: hash of the model and of its custom objects.
        decode: for the names of columns of encoded bytes, the functions that decode a row.
        padding: for the names of columns, the value behind lists that are shorter than others.
        nan_cols: names of the columns in which NaN is a value like others.
        batch: the batch size that the model's Input has; None where it is open.
        shipment: object whose `value` is the `.keras` bytes and the pickled custom objects, see `Shipment`.
    """

    stage: str
    columns: tuple[str, ...]
    inputs: tuple[Tensor, ...]
    outputs: tuple[Tensor, ...]
    scalar: tuple[bool, ...]
    batch_size: int
    keep_invalid: bool
    key: str
    decode: Mapping[str, Callable[[bytes], Any]]
    padding: Mapping[str, float]
    nan_cols: tuple[str, ...]
    batch: int | None
    shipment: Any

    def __call__(self, batches: Iterator[Any]) -> Iterator[Any]:
        """Turns batches of features, one series for each input, into batches of as many predictions."""
        forget_archives()
        model = self._model()
        for batch in batches:
            columns = batch if isinstance(batch, tuple) else (batch,)
            yield self._predict(model, columns)

    def _model(self) -> Callable[..., list[Any]]:
        if self.key in _models:
            _models.move_to_end(self.key)
            return _models[self.key]
        if not _models:
            prepare_worker()
        content, pickled = self.shipment.value
        try:
            model = model_from_bytes(content, cloudpickle.loads(pickled))
        except Exception as error:
            raise RuntimeError(
                f"{self.stage}: the Keras model can't be loaded on the executor. Custom layers and functions "
                "must be registered with Keras on the driver, or be given as custom_objects, and Lambda "
                f"layers of a file are not loaded at all. Keras says: {error}"
            ) from error
        _models[self.key] = compiled(model, self.inputs)
        while len(_models) > MODELS_KEPT:
            _models.popitem(last=False)
        return _models[self.key]

    def _predict(self, model: Callable[..., list[Any]], columns: Sequence[pd.Series]) -> Any:
        """Predicts one batch of Arrow, in calls of at most `batch_size` rows."""
        rows = len(columns[0])
        invalid = np.zeros(rows, bool)
        values = [
            self._rows(*column, invalid) for column in zip(columns, self.columns, self.inputs, strict=True)
        ]
        results = [np.empty((rows, t.size), _arrow_dtype(t).to_pandas_dtype()) for t in self.outputs]
        batch_size = self.batch or self.batch_size
        for start in range(0, rows, batch_size):
            part = slice(start, min(start + batch_size, rows))
            tensors = []
            for column, name, tensor in zip(values, self.columns, self.inputs, strict=True):
                stacked, wrong = self._stacked(column[part], name, tensor)
                tensors.append(stacked)
                invalid[part] |= wrong
            for result, output in zip(results, model(*map(self._filled, tensors)), strict=True):
                count = part.stop - start
                result[part] = np.asarray(output, result.dtype).reshape(len(output), -1)[:count]
        if invalid.any() and not self.keep_invalid:
            wrong = invalid.sum()
            raise ValueError(
                f"{self.stage}: {_named(self.columns)} must hold finite numbers in every row, and whole "
                f"ones in their range for an input of integers. Received: others, or null, in {wrong} of "
                f"{rows} rows of a batch. handle_invalid='keep' predicts null for them"
            )
        made = [_column(result, scalar, invalid) for result, scalar in zip(results, self.scalar, strict=True)]
        return made[0] if len(made) == 1 else pd.DataFrame({f"_{i}": one for i, one in enumerate(made)})

    def _stacked(self, values: np.ndarray, name: str, tensor: Tensor) -> tuple[np.ndarray, np.ndarray]:
        """Returns rows as one array for the model, and a mask of the invalid ones."""
        try:
            if tensor.is_string:
                return string_rows(values, tensor)
            if tensor.is_open:
                values, tensor = evened(values, tensor, self.padding.get(name))
        except ValueError as error:
            raise ValueError(f"{self.stage}: column {name!r} must hold {error}") from None
        return stack(values, tensor, name in self.nan_cols)

    def _filled(self, tensor: np.ndarray) -> np.ndarray:
        """Returns the rows and, up to the batch size that the model's Input has, the last one again."""
        missing = 0 if self.batch is None else self.batch - len(tensor)
        return np.concatenate([tensor, np.repeat(tensor[-1:], missing, 0)]) if missing else tensor

    def _decoded(self, column: pd.Series, name: str, tensor: Tensor) -> pd.Series:
        """Decodes the rows of a column of bytes; null for null."""
        rows = np.empty(len(column), object)
        for number, value in enumerate(column):
            if value is None:
                continue
            array = np.asarray(self.decode[name](bytes(value)))
            fits = len(array.shape) == len(tensor.shape) and all(
                axis in (None, length) for axis, length in zip(tensor.shape, array.shape, strict=True)
            )
            if not fits or array.dtype.kind not in "fiub":
                raise ValueError(
                    f"{self.stage}: column {name!r} must be decoded to numbers of shape {tensor.shape}. "
                    f"Received: {array.dtype}, shape {array.shape}"
                )
            rows[number] = array.ravel()
        return pd.Series(rows)

    def _rows(self, column: pd.Series, name: str, tensor: Tensor, invalid: np.ndarray) -> np.ndarray:
        """Checks the sizes of a column's rows, marks null ones as invalid and makes them zeros."""
        if isinstance(column, pd.DataFrame):
            column = vector_rows(column)
        if name in self.decode:
            column = self._decoded(column, name, tensor)
        if tensor.is_string:
            return column.to_numpy(object)
        if column.dtype != object:
            null = column.isna().to_numpy()
            if name in self.nan_cols:
                return column.to_numpy(float, na_value=np.nan) if null.any() else column.to_numpy()
            invalid |= null
            return column.fillna(0).to_numpy() if null.any() else column.to_numpy()
        try:
            values = flat_rows(column.to_numpy())
        except ValueError as error:
            raise ValueError(f"{self.stage}: column {name!r} must hold {error}") from None
        null = np.fromiter((row is None for row in values), bool, len(values))
        if null.any():
            invalid |= null
            values = values.copy()
            zeros = np.zeros(tensor.size, np.float32)
            for row in np.flatnonzero(null):
                values[row] = zeros
        sizes = np.fromiter(map(len, values), np.int64, len(values))
        wrong = np.flatnonzero(sizes % tensor.size if tensor.is_open else sizes != tensor.size)
        if wrong.size:
            raise ValueError(
                f"{self.stage}: column {name!r} must hold {tensor.size} numbers a row, for the model's input "
                f"{tensor.name!r} of shape {tensor.shape}. Received: {sizes[wrong[0]]} numbers in "
                f"{wrong.size} of {len(values)} rows"
            )
        return values


def prepare_worker() -> None:
    """Gives this Python worker the GPU or the cores of its task, and loads TensorFlow."""
    from pyspark import TaskContext

    from hvdkeras.launch import gpu

    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    task = TaskContext.get()
    given = task.resources().get("gpu")
    # Where Spark assigns no GPU to the task, tasks take the host's GPUs in turn, by partition.
    gpu.pin(task.partitionId(), devices=given.addresses if given else None)
    gpu.limit_threads(1, threads=task.cpus())
    import keras  # noqa: F401
    import tensorflow  # noqa: F401

    # Spark runs the garbage collector after every task. Frozen objects, those of TensorFlow's modules here,
    # are left out, which saves 0.2 seconds a task.
    gc.freeze()


def compiled(model: Any, inputs: Sequence[Tensor]) -> Callable[..., list[Any]]:
    """Returns a function from batches of the inputs, of any number of rows, to a list of the outputs.

    The signature has an unknown number of rows, so that TensorFlow traces it once. `model.predict` is traced
    again for a last batch of another size, and runs callbacks at every call.
    """
    import keras
    import tensorflow as tf

    signature = [tf.TensorSpec((None, *t.shape), fed_dtype(t)) for t in inputs]

    # The same graph from a flat list to a flat list, also where the model's inputs or outputs are dicts.
    flat = keras.Model(model.inputs, model.outputs)

    @tf.function(input_signature=signature)
    def call(*tensors: Any) -> list[Any]:
        return keras.tree.flatten(flat(list(tensors), training=False))

    return call


def spark_type(tensor: Tensor) -> str:
    """Returns Spark's name of the type that an output's numbers have in a DataFrame."""
    return {"float": "float", "double": "double", "int32": "int", "int64": "bigint"}[
        str(_arrow_dtype(tensor))
    ]


def _arrow_dtype(tensor: Tensor) -> pa.DataType:
    """float32 for all floats but float64, whole numbers as int32 or int64."""
    known = {"float64": pa.float64(), "int64": pa.int64(), "uint32": pa.int64(), "uint64": pa.int64()}
    if tensor.dtype in known:
        return known[tensor.dtype]
    return pa.float32() if "float" in tensor.dtype else pa.int32()


class _Numbers(pd.arrays.ArrowExtensionArray):
    """An Arrow array on which `map` does nothing.

    pyspark calls `map` on a column of arrays to turn every row into a list of Python numbers, of which it
    makes an Arrow array: 0.1 microseconds a number, longer than many models take to compute it.
    """

    def map(self, mapper: Any, na_action: Any = None) -> _Numbers:
        return self


def _column(result: np.ndarray, scalar: bool, invalid: np.ndarray) -> pd.Series:
    """Returns a column of an output, with null in the invalid rows."""
    if scalar:
        made = pa.array(result.ravel(), mask=invalid)
    else:
        rows, size = result.shape
        starts = np.arange(0, rows * size + 1, size, dtype=np.int32)
        made = pa.ListArray.from_arrays(starts, result.ravel(), mask=pa.array(invalid))
    return pd.Series(_Numbers(made))


def _named(columns: Sequence[str]) -> str:
    return ("column " if len(columns) == 1 else "columns ") + listed(map(repr, columns))
