"""A training step on a handful of rows, on the driver, before anything is launched.

Whether labels fit a loss is not derived, it is tried: the model's own step runs on rows of the data. The step
is eager, because a compilation would cost seconds, and on the CPU, because a GPU belongs to a rank.
"""

from __future__ import annotations

import contextlib
import logging
import random
import re
import warnings
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from hvdkeras.data.columns import Column, DataError, row_bytes
from hvdkeras.data.decoding import DecodedRows
from hvdkeras.data.rows import Rows
from hvdkeras.data.shards import Shards
from hvdkeras.models import schema
from hvdkeras.models.optimizers import HiddenOptimizerError, hidden_refused
from hvdkeras.models.targets import nested
from hvdkeras.naming import listed
from hvdkeras.spec import DataSpec

logger = logging.getLogger("hvdkeras")

# Few, so that large models take seconds on a CPU; a number that is rarely an axis of labels or outputs, for
# which the rows' axis could be taken by broadcasting.
_ROWS = 5
# Where values may be NaN, the rows are chosen among so many, of at most so many bytes.
_CHOICE, _CHOICE_BYTES = 1000, 4 << 20
_REASON = 600


def try_out(model: Any, data: DataSpec, averages_gradients: bool) -> None:
    """Runs a training step of a copy of the model on the data's first rows, and a step of evaluation.

    The user's own model, and the random state of this process, are as before.

    Args:
        model: the copy, on the CPU. It has learned afterwards.
        data: what the ranks get.
        averages_gradients: whether ranks average the gradients of all optimizers that the step applies.

    Raises:
        HiddenOptimizerError: they can't average those of one. Where they need not, nothing is tried, because
            that optimizer would learn from the trial.
        DataError: a step raises, with the columns' shapes and dtypes and Keras's reason; or NaN among the
            values makes the loss NaN.
    """
    import tensorflow as tf

    with kept_random_state(), tf.device("/CPU:0"), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        columns, arrays = _some_rows(data.shards, data, _batch_size(model, data))
        try:
            with hidden_refused(model):
                logs = _step(model, data, columns, arrays)
        except HiddenOptimizerError:
            if averages_gradients:
                raise
            return
        except tf.errors.OpError as error:
            if not _is_of_the_cpu(error):
                raise _error(model, data, columns, arrays, error) from error
            logger.warning(
                "the data was not tried out, which this machine's CPU can't do: %s", _reason(error)
            )
            return
        except Exception as error:
            raise _error(model, data, columns, arrays, error) from error
        missing = [
            column.name
            for column, array in zip(columns, arrays, strict=True)
            if column.nan and not np.isfinite(array).all()
        ]
        if missing and not np.isfinite(logs.get("loss", 0.0)).all():
            raise DataError(
                f"columns {listed(missing)} must hold finite numbers, unless the loss masks or the model "
                f"replaces others. Received: NaN in these columns, and the loss {logs['loss']}"
            )


def _step(model: Any, data: DataSpec, columns: Sequence[Column], arrays: Sequence[np.ndarray]) -> dict:
    """The logs of a training step; with validation, a step of evaluation follows."""
    import tensorflow as tf

    batch = nested(data.batch, [tf.convert_to_tensor(array) for array in arrays])
    model.reset_metrics()
    logs = model.train_step(_weighted(model, data, columns, batch))
    if data.is_evaluated:
        model.test_step(batch)
    return {name: np.asarray(value) for name, value in logs.items()} if isinstance(logs, dict) else {}


def _weighted(model: Any, data: DataSpec, columns: Sequence[Column], batch: Any) -> Any:
    """The batch, with sample weights in place of the weights of classes, as Keras's `fit` gives it."""
    import tensorflow as tf

    weights = schema.class_weights(model, data.class_weight, columns)
    if weights is None:
        return batch
    inputs, labels = batch
    label = columns[data.batch.labels]
    numbers = np.asarray(labels)
    numbers = numbers.argmax(-1) if label.shape and label.shape[-1] > 1 else numbers.reshape(len(numbers))
    return inputs, labels, tf.constant([weights[int(number)] for number in numbers], tf.float32)


def _batch_size(model: Any, data: DataSpec) -> int:
    fixed = schema.tensors(model, "inputs")[0].shape[0]
    return fixed or min(_ROWS, data.batch_size, data.shards.rows)


def _some_rows(shards: Shards, data: DataSpec, count: int) -> tuple[Sequence[Column], list[np.ndarray]]:
    """The first rows of the data, of which those with NaN come first."""
    may_miss = any(column.nan for column in shards.columns)
    among = min(_CHOICE, _CHOICE_BYTES // row_bytes(shards.distinct)) if may_miss else count
    among = min(max(count, among), shards.rows)
    # One of so many ranks maps no more than it needs, also from a remote store.
    rows: Rows | DecodedRows = Rows(shards, 0, max(1, shards.rows // among), among, seed=0)
    if data.decode:
        rows = DecodedRows(rows, data.decode, 1)
    found, _ = rows.block(0, 0)
    whole = np.ones(len(found[0]), bool)
    for column, array in zip(rows.columns, found, strict=True):
        if column.nan:
            whole &= np.isfinite(array.reshape(len(array), -1)).all(axis=1)
    # Some of both kinds: a loss may need a label that is there.
    missing, there = np.flatnonzero(~whole), np.flatnonzero(whole)
    chosen = [*missing[: max(count // 2, count - len(there))], *there][:count]
    return rows.columns, [array[chosen] for array in found]


@contextlib.contextmanager
def kept_random_state() -> Iterator[None]:
    """Restores the state of the random numbers of Python, NumPy, TensorFlow and Keras."""
    from keras.src.backend.common import global_state
    from tensorflow.python.eager import context

    # Keras makes its generator when it is first used, TensorFlow its own when a seed is set.
    name = "global_seed_generator"
    of_keras = global_state.get_global_attribute(name)
    state = None if of_keras is None else np.asarray(of_keras.state)
    of_tensorflow = getattr(context.context(), "_rng", None)
    seeds = of_tensorflow.getstate() if of_tensorflow else None
    of_python, of_numpy = random.getstate(), np.random.get_state()
    try:
        yield
    finally:
        random.setstate(of_python)
        np.random.set_state(of_numpy)
        if of_keras is None:
            global_state.set_global_attribute(name, None)
        else:
            of_keras.state.assign(state)
        if of_tensorflow:
            of_tensorflow.setstate(seeds)


def _is_of_the_cpu(error: Any) -> bool:
    """Whether an error says that this machine can't compute what a rank's GPU may."""
    import tensorflow as tf

    kinds = (tf.errors.UnimplementedError, tf.errors.NotFoundError, tf.errors.ResourceExhaustedError)
    return isinstance(error, kinds) or "NHWC" in str(error)


def _error(
    model: Any, data: DataSpec, columns: Sequence[Column], arrays: Sequence[np.ndarray], error: Exception
) -> DataError:
    import keras

    numbers = [
        {number for number in keras.tree.flatten(part) if number is not None}
        for part in (data.batch.inputs, data.batch.labels, data.batch.weights)
    ]
    shown = [
        f"{kind} {column.name!r} of shape {array.shape}, {array.dtype}"
        for kind, of_kind in zip(("input", "label", "sample weight"), numbers, strict=True)
        for number, (column, array) in enumerate(zip(columns, arrays, strict=True))
        if number in of_kind
    ]
    outputs = listed(
        f"{name!r} of shape {tuple(tensor.shape)}"
        for name, tensor in zip(schema.output_names(model), schema.tensors(model, "outputs"), strict=True)
    )
    return DataError(
        f"the model, its loss and its metrics must work on the data. "
        f"Received: columns {listed(shown, '; ', longest=200)}; "
        f"outputs {outputs}; on these {len(arrays[0])} rows {type(error).__name__}: {_reason(error)}"
    )


def _reason(error: Exception) -> str:
    text = re.sub(r"\{\{function_node [^}]*\}\} ", "", str(error)).strip()
    return text if len(text) <= _REASON else f"{text[:_REASON]}..."
