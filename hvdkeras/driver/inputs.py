"""What the data says of a model's inputs, where the model itself leaves it open."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from hvdkeras.data.columns import Column, DataError
from hvdkeras.data.conversion import NAN
from hvdkeras.data.first_row import first_row
from hvdkeras.data.raw import RAGGED, SIZE
from hvdkeras.data.shards import Shards
from hvdkeras.driver.configuration import Configuration
from hvdkeras.models import schema, targets
from hvdkeras.models.recipe import Recipe
from hvdkeras.models.signature import Nested, RowShape, has_inputs, sign
from hvdkeras.naming import cut, did_you_mean, listed


def build_from_data(configuration: Configuration, data: Any) -> None:
    """Builds a model whose inputs are not known, a subclassed one or a Sequential one without Input.

    Keras's `fit` builds it from the first batch; ranks, and the checks of the driver, need to know it before.
    A model that takes several inputs is called with a list of them, or with a dict where `features_col` is
    one.

    Raises:
        DataError: a column of the inputs is not in the data.
        ValueError: the model can't be called on inputs of the data's shapes.
    """
    model = configuration.keras_model
    if has_inputs(model):
        return
    by_input = configuration.features_col
    columns = list(by_input.values()) if isinstance(by_input, Mapping) else schema.as_list(by_input)
    row = _first_row(configuration, data, columns)
    names = list(by_input) if isinstance(by_input, Mapping) else columns
    each = [_row_shape(name, row[column]) for name, column in zip(names, columns, strict=True)]
    described: Nested = each if len(each) > 1 else each[0]
    if isinstance(by_input, Mapping):
        described = dict(zip(names, each, strict=True))
    try:
        sign(model, described)
    except Exception as error:
        reason = str(error).split("Arguments received by ")[0].replace("\033[1m", "").replace("\033[0m", "")
        raise ValueError(
            "keras_model must have an Input, or a `call` of layers and keras.ops, which works on symbolic "
            f"inputs of the data's shapes, {listed(f'{one.name} {one.shape} {one.dtype}' for one in each)}. "
            f"Received: {type(model).__name__} {model.name!r}, {type(error).__name__}: {cut(reason, 800)}"
        ) from error


def decided(configuration: Configuration, data: Any, columns: Sequence[Column]) -> tuple[Column, ...]:
    """Returns the columns with `padding` and `nan_cols` of the user, and with the axes that the data decides.

    Raises:
        DataError: the data's first row does not decide the length of an axis.
        ValueError: `padding` or `nan_cols` names a column that it can't concern.
    """
    padding, nan_cols = configuration.padding, configuration.nan_cols
    features = schema.input_columns(configuration.keras_model, configuration.features_col)
    unequal = {column.name for column in columns if column.shape[:1] == (None,) and not column.encoded}
    _check_named("padding", padding, unequal, "whose first axis the model leaves open, and without decode")
    _check_named("nan_cols", nan_cols, features, "of features")
    for column in columns:
        schema.check_nan_cols(nan_cols, column.stacked)
    columns = [
        replace(
            column,
            padding=padding.get(column.name) if column.name in unequal else None,
            nan=column.nan or set(column.sources) <= set(nan_cols),
        )
        for column in columns
    ]
    names = [column.name for column in columns if column.is_open]
    if not names:
        return tuple(columns)
    if isinstance(data, Shards):
        stored = {column.name: column.shape for column in data.columns}
        return tuple(
            replace(each, shape=stored[each.name]) if each.is_open and each.name in stored else each
            for each in columns
        )
    row = _first_row(configuration, data, names)
    return tuple(
        replace(column, shape=_closed(column, row[column.name])) if column.is_open else column
        for column in columns
    )


def input_shapes(configuration: Configuration, data: Any) -> list[tuple[int | None, ...]] | None:
    """Returns the shapes that the data gives a model's inputs where a flat row does not decide them.

    They are lists of numbers in Spark's columns; with more than one open axis, their number is not enough.

    Returns:
        For each input the shape of a row; None for a model that has no such input.
    """
    inputs = schema.tensors(configuration.keras_model, "inputs")
    if all(list(tensor.shape[1:]).count(None) < 2 for tensor in inputs):
        return None
    model, features_col = configuration.keras_model, configuration.features_col
    columns = [
        replace(column, encoded=column.name in configuration.decode)
        for column in targets.columns(model, features_col, configuration.targets())
    ]
    return [column.shape for column in decided(configuration, data, columns)[: len(inputs)]]


def closed(model: Any, shapes: Sequence[tuple[int | None, ...]] | None) -> Any:
    """Returns a model, or an ensemble of models, whose inputs have these shapes; itself for None."""
    if shapes is None:
        return model
    if isinstance(model, list):
        return [closed(member, shapes) for member in model]
    import keras

    inputs = [
        keras.Input(shape, dtype=tensor.dtype, name=tensor.name)
        for shape, tensor in zip(shapes, schema.tensors(model, "inputs"), strict=True)
    ]
    nested = keras.tree.pack_sequence_as(schema.structures(model)[0], inputs)
    return keras.Model(nested, model(nested))


def _check_named(argument: str, names: Iterable[str], known: Collection[str], what: str) -> None:
    unknown = [name for name in names if name not in known]
    if unknown:
        raise ValueError(
            f"{argument} must name columns {what}: {listed(known) or 'there are none'}. "
            f"Received: {listed(unknown)}.{did_you_mean(unknown[0], known)}"
        )


@contextlib.contextmanager
def remedy_named(configuration: Configuration) -> Iterator[None]:
    """Names `padding` or `nan_cols` in a DataError about rows that one of them would make fit."""
    try:
        yield
    except DataError as error:
        model, features_col = configuration.keras_model, configuration.features_col
        features = schema.input_columns(model, features_col)
        for column in targets.columns(model, features_col, configuration.targets()):
            faults = {what for name, what in error.faults if name == column.name}
            if column.shape[:1] == (None,) and faults & {SIZE, RAGGED}:
                hint = f"padding={{{column.name!r}: 0}} makes the rows of a batch equally long"
                raise DataError(f"{error}. {hint}", error.faults) from None
            if set(column.sources) <= set(features) and NAN in faults:
                hint = f"nan_cols={list(column.stacked) or column.name!r} lets NaN through, for a model that"
                raise DataError(f"{error}. {hint} replaces it", error.faults) from None
        raise


def take_batch_size(configuration: Configuration) -> None:
    """Sets a `batch_size` that was not given to that of the model's Input, where it has one."""
    size = schema.fixed_batch(configuration.keras_model)
    if size is not None and not configuration.is_given("batch_size"):
        configuration.batch_size = size


def check_batches(
    configuration: Configuration, recipe: Recipe, rows: Mapping[str, int], parts: Mapping[str, int]
) -> None:
    """Checks that a model whose Input has a batch size gets batches that it takes.

    Args:
        configuration: of the training.
        recipe: the model.
        rows: numbers of rows that are trained and evaluated on, by what they are.
        parts: into how many parts the rows are dealt, each with whole batches of its own, by the same names.

    Raises:
        ValueError: a batch would have another size, and the model does not take it.
    """
    size = schema.fixed_batch(configuration.keras_model)
    if size is None:
        return
    fits = configuration.batch_size == size and all(
        count % (size * parts[what]) == 0 for what, count in rows.items()
    )
    if fits or _takes_any_batch(recipe, 1 if size > 1 else 2):
        return
    if configuration.batch_size != size:
        raise ValueError(
            f"batch_size must be that of the model's Input, {size}, which does not work with others. "
            f"Received: {configuration.batch_size}"
        )
    needed = ", ".join(f"{size * parts[what]} for {what}" for what in rows)
    raise ValueError(
        "the data must have whole batches for each rank, because the model works only with the batch_size "
        f"of its Input, {size}: a multiple of {needed}. Received: "
        + ", ".join(f"{count} rows for {what}" for what, count in rows.items())
    )


def _takes_any_batch(recipe: Recipe, rows: int) -> bool:
    """Whether a copy of the model gives as many rows as it gets, for another number than its Input has."""
    import keras
    import tensorflow as tf

    model = recipe.build()
    inputs = [
        tf.zeros((rows, *(axis or 1 for axis in tensor.shape[1:])), tensor.dtype)
        for tensor in schema.tensors(model, "inputs")
    ]
    try:
        outputs = model(keras.tree.pack_sequence_as(schema.structures(model)[0], inputs), training=True)
    except Exception:
        # Whatever it is, batches of another size would meet it on the ranks.
        return False
    return all(len(output) == rows for output in keras.tree.flatten(outputs))


def _first_row(configuration: Configuration, data: Any, names: Sequence[str]) -> dict[str, np.ndarray]:
    """A row of the data as arrays: bytes as decoded, or as the numbers that they are."""
    row = first_row(data, names)
    for name, value in row.items():
        if name in configuration.decode:
            value = configuration.decode[name](value)
        row[name] = np.asarray(np.frombuffer(value, np.uint8) if isinstance(value, bytes) else value)
    return row


def _closed(column: Column, value: np.ndarray) -> tuple[int | None, ...]:
    """The column's shape with the lengths that a row of the data has."""
    shape = column.shape
    if column.padding is not None:
        shape = (len(value), *shape[1:])
    lengths = value.shape if value.ndim == len(shape) else None
    if column.one_hot and value.ndim == len(shape) - 1:
        lengths = (*value.shape, shape[-1])
    if lengths is None and shape.count(None) == 1:
        known = math.prod(axis for axis in shape if axis is not None)
        lengths = [axis or value.size // known for axis in shape]
    closed = tuple(
        length if axis is None else axis for axis, length in zip(shape, lengths or shape, strict=True)
    )
    if not all(closed) or math.prod(closed) not in (value.size, value.size * (column.classes or 1)):
        raise DataError(
            f"column {column.name!r} must hold nested lists or arrays of shape {column.shape} in its first "
            f"row, which decides the open lengths. Received: shape {value.shape}"
        )
    return closed if column.padding is None else (None, *closed[1:])


def _row_shape(name: str, value: np.ndarray) -> RowShape:
    """Describes an input by its value in a row."""
    kinds = {"f": "float32", "U": "string", "S": "string", "O": "string"}
    dtype = kinds.get(value.dtype.kind, str(value.dtype))
    # Keras takes no slash in a name.
    return RowShape(value.shape, dtype, name.replace("/", "_"))
