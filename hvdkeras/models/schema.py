"""What a model and its losses ask of the data's columns."""

from __future__ import annotations

from collections.abc import Container, Mapping, Sequence
from typing import Any

import numpy as np

from hvdkeras.data.columns import Column

Names = str | Sequence[str] | Mapping[str, str]
"""Columns of a model's inputs or outputs: the only one's, a list in their order, or a dict by their names."""


def columns(
    model: Any,
    loss: Any,
    features_col: Names,
    label_col: Names,
    scalars: Container[str] = (),
    sample_weight_col: Names | None = None,
) -> tuple[Column, ...]:
    """Returns the columns that a training reads: one for each input, one for each output, sample weights.

    Args:
        model: a built Functional or Sequential Keras model.
        loss: a Keras loss, its name or a function; for several outputs a list, or a dict by output name.
        features_col: a column's name for each of the model's inputs, see `input_columns`.
        label_col: a column's name for each of the model's outputs, see `output_columns`.
        scalars: names of the data's columns that hold one number a row. A loss of the user's own may take
            class numbers or vectors of the output's shape: what the data has decides.
        sample_weight_col: a column's name for all of the model's outputs, or one for each. Default: none.

    Raises:
        ValueError: if the model has no known inputs, a loss is unknown, or the columns' names are not those
            of as many columns as there are inputs or outputs.
    """
    inputs, outputs = tensors(model, "inputs"), tensors(model, "outputs")
    features, labels = input_columns(model, features_col), output_columns(model, label_col)
    if sample_weight_col is None or isinstance(sample_weight_col, str):
        weights = as_list(sample_weight_col or [])
    else:
        weights = _in_order("sample_weight_col", sample_weight_col, output_names(model), "outputs")
    for tensor in inputs:
        if None in tensor.shape[1:]:
            raise ValueError(
                "the model's inputs must have a fixed shape beyond the batch. Received: input "
                f"{tensor.name!r} of shape {tuple(tensor.shape)}"
            )
    features_columns = [
        Column(name, tuple(tensor.shape[1:]), _column_dtype(tensor.dtype))
        for name, tensor in zip(features, inputs, strict=True)
    ]
    label_columns = [
        _label_column(name, tensor, output_loss, name in scalars)
        for name, tensor, output_loss in zip(labels, outputs, _losses(model, loss), strict=True)
    ]
    return (*features_columns, *label_columns, *(Column(name, (), "float32") for name in weights))


def input_columns(model: Any, features_col: Names) -> list[str]:
    """Returns the names of columns for the model's inputs as a list in the order of `model.inputs`.

    Args:
        model: a built Functional or Sequential Keras model.
        features_col: the only input's column, a list, or a dict by the inputs' names. Those are the names of
            the Input layers, or, of a model that takes a dict, its keys.

    Raises:
        ValueError: if there is not one name for each input, or a key of the dict is no input.
    """
    known = _paths(model, 0) or [tensor.name for tensor in tensors(model, "inputs")]
    return _in_order("features_col", features_col, known, "inputs")


def output_columns(model: Any, label_col: Names) -> list[str]:
    """Returns the names of columns for the model's outputs, as `input_columns` does for the inputs."""
    return _in_order("label_col", label_col, output_names(model), "outputs")


def class_weights(
    model: Any, class_weight: Mapping[int, float] | None, columns: Sequence[Column]
) -> dict[int, float] | None:
    """Returns Keras's `class_weight` with an entry for each class: 1 where none is given.

    Keras fails at class numbers above the last one that has an entry.

    Args:
        model: a built Functional or Sequential Keras model.
        class_weight: weights by class number, or None.
        columns: what `columns` returned for the model.

    Raises:
        ValueError: if the model has several outputs, or one that is no class; if there are sample weights,
            too; or for entries that are not weights of classes.
    """
    if class_weight is None:
        return None
    num_inputs = len(tensors(model, "inputs"))
    label, *more = columns[num_inputs:]
    # Keras takes no nested labels here, not even a dict of one.
    if more or _paths(model, 1):
        raise ValueError(
            "class_weight needs a model with one output, not in a dict, and no sample_weight_col. "
            f"Received: columns {[column.name for column in columns[num_inputs:]]}"
        )
    count = _class_count(label)
    fits = isinstance(class_weight, Mapping) and len(class_weight) > 0
    fits = fits and all(
        isinstance(number, int | np.integer)
        and 0 <= number < (count or np.inf)
        and isinstance(weight, int | float | np.number)
        and 0 <= weight < np.inf
        for number, weight in class_weight.items()
    )
    if not fits:
        span = f"from 0 to {count - 1}" if count else "from 0"
        raise ValueError(
            f"class_weight must be a dict of class numbers {span} and weights that are not negative. "
            f"Received: {class_weight!r}"
        )
    return {number: float(class_weight.get(number, 1.0)) for number in range(count or max(class_weight) + 1)}


def as_list(names: str | Sequence[str]) -> list[str]:
    """Returns one name or several as a list."""
    return list(names) if isinstance(names, list | tuple) else [names]


def output_names(model: Any) -> list[str]:
    """Returns the names of a model's outputs: their layers', or, of a model that gives a dict, its keys."""
    # A Sequential model keeps them in its last layer.
    return _paths(model, 1) or list(getattr(model, "output_names", None) or [model.layers[-1].name])


def structures(model: Any) -> tuple[Any, Any]:
    """Returns the inputs and outputs in the nesting in which a model takes and gives them.

    A list of one is that one itself, as it is for Keras.

    Raises:
        ValueError: if they are not known.
    """
    import keras

    inputs, outputs = tensors(model, "inputs"), tensors(model, "outputs")
    if isinstance(model, keras.Sequential):
        return inputs[0], outputs[0]
    return tuple(
        nested[0] if isinstance(nested, list | tuple) and len(nested) == 1 else nested
        for nested in (model.input, model.output)
    )


def tensors(model: Any, which: str) -> list[Any]:
    """Returns the symbolic `inputs` or `outputs` of a model.

    Raises:
        ValueError: it has none, because it is no built Functional or Sequential model.
    """
    try:
        known = getattr(model, which)
    except (AttributeError, ValueError):
        known = None
    if not known:
        raise ValueError(
            "keras_model must be a built Functional or Sequential model: give it an Input, or wrap it, "
            "keras.Model(inputs, model(inputs)). Received: "
            f"{type(model).__name__} {getattr(model, 'name', '')!r}"
        )
    return list(known)


def _paths(model: Any, which: int) -> list[str]:
    """The keys of a model's inputs (0) or outputs (1) where they are in a dict, in the model's order."""
    import keras

    structure = structures(model)[which]
    if not isinstance(structure, Mapping):
        return []
    return [".".join(map(str, path)) for path, _ in keras.tree.flatten_with_path(structure)]


def _in_order(argument: str, names: Names, known: Sequence[str], what: str) -> list[str]:
    if isinstance(names, Mapping):
        fits = set(names) == set(known)
        ordered = [names.get(name) for name in known]
    else:
        ordered = as_list(names)
        fits = len(ordered) == len(known)
    if not fits:
        raise ValueError(
            f"{argument} must name one column for each of the model's {len(known)} {what} "
            f"({', '.join(known)}). Received: {names}"
        )
    if not all(isinstance(name, str) for name in ordered):
        raise ValueError(
            f"{argument} must be a column's name, a list of them, or a dict. Received: {names!r}"
        )
    return ordered


def _class_count(label: Column) -> int | None:
    """How many classes a column of labels tells apart, None where it is open."""
    if label.shape == ():
        return label.classes
    if label.shape == (1,):
        return label.classes or 2
    if len(label.shape) == 1 and (label.one_hot or label.classes is None):
        return label.shape[0]
    raise ValueError(
        f"class_weight needs labels of one class a row. Received: {label.name!r} of shape {label.shape}"
    )


def _losses(model: Any, loss: Any) -> list[Any]:
    """One resolved loss for each output."""
    import keras

    names = output_names(model)
    if loss is None:
        raise ValueError("loss must be given, or the model compiled with one. Received: None")
    if isinstance(loss, Mapping):
        if set(loss) != set(names):
            raise ValueError(f"loss must have one entry for each output, {names}. Received: {sorted(loss)}")
        losses = [loss[name] for name in names]
    elif isinstance(loss, list | tuple):
        losses = list(loss)
    else:
        losses = [loss] * len(names)
    if len(losses) != len(names):
        raise ValueError(f"loss must have one entry for each output, {names}. Received: {len(losses)} losses")
    try:
        return [keras.losses.get(one) for one in losses]
    except ValueError as error:
        raise ValueError(
            f"loss must be a Keras loss, the name of one, or a function. Received: {loss!r}"
        ) from error


def _label_column(name: str, output: Any, loss: Any, is_scalar: bool) -> Column:
    """What an output with this loss asks of its label column."""
    from keras import losses

    shape = tuple(output.shape[1:])
    sparse = (losses.SparseCategoricalCrossentropy, losses.sparse_categorical_crossentropy)
    categorical = (
        losses.CategoricalCrossentropy,
        losses.CategoricalFocalCrossentropy,
        losses.CategoricalHinge,
        losses.categorical_crossentropy,
        losses.categorical_focal_crossentropy,
        losses.categorical_hinge,
    )
    if _is_one_of(loss, sparse):
        return Column(name, shape[:-1], "int32", classes=shape[-1])
    if _is_one_of(loss, categorical):
        return Column(name, shape, "float32", classes=shape[-1], one_hot=True)
    if is_scalar and _is_the_users_own(loss) and shape != (1,):
        return Column(name, (), "float32")
    return Column(name, shape, "float32")


def _is_the_users_own(loss: Any) -> bool:
    function = getattr(loss, "fn", loss)
    defined = function if hasattr(function, "__module__") else type(function)
    return not defined.__module__.startswith("keras.")


def _is_one_of(loss: Any, known: tuple[Any, ...]) -> bool:
    return loss in known or isinstance(loss, tuple(entry for entry in known if isinstance(entry, type)))


def _column_dtype(dtype: Any) -> str:
    """The dtype in which shards hold an input: float32 for all floats, the integer types as they are."""
    name = str(dtype)
    return "float32" if name in ("float16", "bfloat16", "float64") else name
