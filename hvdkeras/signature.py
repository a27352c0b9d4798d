"""What a model and its losses ask of the data's columns."""

from __future__ import annotations

from collections.abc import Container, Mapping, Sequence
from typing import Any

from hvdkeras.data.columns import Column


def columns(
    model: Any,
    loss: Any,
    features_col: str | Sequence[str],
    label_col: str | Sequence[str],
    scalars: Container[str] = (),
) -> tuple[Column, ...]:
    """Returns the columns that a training reads: one for each input, then one for each output.

    Args:
        model: a built Functional or Sequential Keras model.
        loss: a Keras loss, its name or a function; for several outputs a list, or a dict by output name.
        features_col: a column's name for each of the model's inputs, in their order.
        label_col: a column's name for each of the model's outputs, in their order.
        scalars: names of the data's columns that hold one number a row. A loss of the user's own may take
            class numbers or vectors of the output's shape: what the data has decides.

    Raises:
        ValueError: if the model has no known inputs, a loss is unknown, or the numbers of columns and of
            inputs or outputs differ.
    """
    inputs, outputs = _tensors(model, "inputs"), _tensors(model, "outputs")
    features, labels = as_list(features_col), as_list(label_col)
    for argument, names, tensors, what in (
        ("features_col", features, inputs, "inputs"),
        ("label_col", labels, outputs, "outputs"),
    ):
        if not all(isinstance(name, str) for name in names):
            raise ValueError(f"{argument} must be a column's name or a list of them. Received: {names!r}")
        if len(names) != len(tensors):
            raise ValueError(
                f"{argument} must name one column for each of the model's {len(tensors)} {what} "
                f"({', '.join(tensor.name for tensor in tensors)}). Received: {names}"
            )
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
    return (*features_columns, *label_columns)


def as_list(names: str | Sequence[str]) -> list[str]:
    """Returns one name or several as a list."""
    return list(names) if isinstance(names, list | tuple) else [names]


def output_names(model: Any) -> list[str]:
    """Returns the names of a model's outputs, which a Sequential model keeps in its last layer."""
    return list(getattr(model, "output_names", None) or [model.layers[-1].name])


def _tensors(model: Any, which: str) -> list[Any]:
    """The symbolic inputs or outputs of a model, which only built Functional and Sequential models have."""
    try:
        tensors = getattr(model, which)
    except (AttributeError, ValueError):
        tensors = None
    if not tensors:
        raise ValueError(
            "keras_model must be a built Functional or Sequential model: give it an Input, or wrap it, "
            "keras.Model(inputs, model(inputs)). Received: "
            f"{type(model).__name__} {getattr(model, 'name', '')!r}"
        )
    return list(tensors)


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
