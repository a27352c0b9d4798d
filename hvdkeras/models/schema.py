"""What a model and its losses ask of the data's columns."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from hvdkeras.data.columns import Column
from hvdkeras.models.signature import has_inputs, signature_of
from hvdkeras.naming import did_you_mean, listed, shown

Names = str | Sequence[str | None] | Mapping[str, str | None]
"""Columns of a model's inputs or outputs: the only one's, a list in their order, or a dict by their names. Of
outputs, None for those without a column. For a model's only input, of shape (n,), a list of n > 1 columns,
with one of its numbers each."""


def feature_columns(model: Any, features_col: Names) -> list[Column]:
    """Returns what the model's inputs require of their columns.

    Args:
        model: a built Functional or Sequential Keras model.
        features_col: a column's name for each of the model's inputs, see `input_columns`.

    Raises:
        ValueError: if the model has no known inputs, or the names are not those of as many columns.
    """
    inputs, features = tensors(model, "inputs"), input_columns(model, features_col)
    if are_stacked(features, [tuple(tensor.shape[1:]) for tensor in inputs]):
        return [Column(listed(features), (len(features),), _column_dtype(inputs[0].dtype), stacked=features)]
    return [
        Column(name, tuple(tensor.shape[1:]), _column_dtype(tensor.dtype))
        for name, tensor in zip(features, inputs, strict=True)
    ]


def input_columns(model: Any, features_col: Names) -> list[str]:
    """Returns the names of columns for the model's inputs as a list in the order of `model.inputs`.

    There is one for each input, or, for an only input whose columns are stacked, several.

    Args:
        model: a built Functional or Sequential Keras model.
        features_col: the only input's column, a list, or a dict by the inputs' names. Those are the names of
            the Input layers, or, of a model that takes a dict, its keys. See `are_stacked` for a list of
            columns for one input.

    Raises:
        ValueError: if there is not one name for each input, or a key of the dict is no input.
    """
    inputs = tensors(model, "inputs")
    if isinstance(features_col, list | tuple) and len(inputs) == 1 and len(features_col) > 1:
        check_stacked(features_col, inputs[0].name, tuple(inputs[0].shape[1:]), str(inputs[0].dtype))
        return list(features_col)
    known = _paths(model, 0) or [tensor.name for tensor in inputs]
    return in_order("features_col", features_col, known, "inputs")


def are_stacked(names: Sequence[str], shapes: Sequence[tuple[int | None, ...]]) -> bool:
    """Returns whether a list names the columns of the numbers of a model's only input, of shape (n,).

    Args:
        names: columns' names.
        shapes: of a row of each of the model's inputs.
    """
    return len(names) > 1 and list(shapes) == [(len(names),)]


def check_stacked(names: Sequence[str], name: str, shape: tuple[int | None, ...], dtype: str) -> None:
    """Raises ValueError unless several columns of numbers can be stacked to the rows of an input."""
    if not are_stacked(names, [shape]) or dtype == "string":
        is_row = len(shape) == 1 and shape != (1,) and dtype != "string"
        several = f", or {shape[0]} columns of one number" if is_row else ""
        raise ValueError(
            f"features_col must name the column of the model's only input{several}: a row of {name!r} has "
            f"shape {shape}, {dtype}. Received: {shown(names)}"
        )


def check_nan_cols(nan_cols: Sequence[str], stacked: Sequence[str]) -> None:
    """Raises ValueError where NaN is a value in some of the columns that are stacked and not in others."""
    named = set(nan_cols) & set(stacked)
    if named and named != set(stacked):
        raise ValueError(
            "nan_cols must name all or none of the columns that features_col stacks to one input: "
            f"{listed(stacked)}. Received: {listed(sorted(named))}"
        )


def class_weights(
    model: Any, class_weight: Mapping[int, float] | None, columns: Sequence[Column]
) -> dict[int, float] | None:
    """Returns Keras's `class_weight` with an entry for each class: 1 where none is given.

    Keras fails at class numbers above the last one that has an entry.

    Args:
        model: a built Functional or Sequential Keras model.
        class_weight: weights by class number, or None.
        columns: what `hvdkeras.models.targets.columns` returned for the model.

    Raises:
        ValueError: if the model has several outputs, or one that is no class; if there are sample weights,
            too; or for entries that are not weights of classes.
    """
    if class_weight is None:
        return None
    num_inputs = len(tensors(model, "inputs"))
    read = columns[num_inputs:]
    # Keras takes no nested labels here, not even a dict of one.
    if len(read) != 1 or len(tensors(model, "outputs")) > 1 or _paths(model, 1):
        raise ValueError(
            "class_weight needs a model with one output, not in a dict, and no sample_weight_col. "
            f"Received: columns {listed(column.name for column in read)}"
        )
    count = _class_count(read[0])
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
            f"Received: {shown(class_weight)}"
        )
    return {number: float(class_weight.get(number, 1.0)) for number in range(count or max(class_weight) + 1)}


def as_list(names: str | Sequence[str]) -> list[str]:
    """Returns one name or several as a list."""
    return list(names) if isinstance(names, list | tuple) else [names]


def output_names(model: Any) -> list[str]:
    """Returns the names of a model's outputs: their layers', or, of a model that gives a dict, its keys."""
    # A Sequential model keeps them in its last layer.
    signed = signature_of(model)
    if signed is not None and not isinstance(signed.outputs, Mapping):
        return [f"output_{number + 1}" for number in range(len(tensors(model, "outputs")))]
    return _paths(model, 1) or list(getattr(model, "output_names", None) or [model.layers[-1].name])


def fixed_batch(model: Any) -> int | None:
    """Returns the batch size that a model's Input has; None where it is open."""
    return next((tensor.shape[0] for tensor in tensors(model, "inputs") if tensor.shape[0]), None)


def structures(model: Any) -> tuple[Any, Any]:
    """Returns the inputs and outputs in the nesting in which a model takes and gives them.

    A list of one is that one itself, as it is for Keras.

    Raises:
        ValueError: if they are not known.
    """
    import keras

    inputs, outputs = tensors(model, "inputs"), tensors(model, "outputs")
    signed = signature_of(model)
    if signed is not None:
        return signed.inputs, signed.outputs
    if isinstance(model, keras.Sequential):
        return inputs[0], outputs[0]
    return tuple(
        nested[0] if isinstance(nested, list | tuple) and len(nested) == 1 else nested
        for nested in (model.input, model.output)
    )


def tensors(model: Any, which: str) -> list[Any]:
    """Returns the symbolic `inputs` or `outputs` of a model.

    Raises:
        ValueError: they are not known: it is neither a built Functional or Sequential model, nor was it
            built from data.
    """
    import keras

    if not has_inputs(model):
        raise ValueError(
            "keras_model must be a Keras model whose inputs are known: give it an Input, or wrap it, "
            "keras.Model(inputs, model(inputs)). Received: "
            f"{type(model).__name__} {getattr(model, 'name', '')!r}"
        )
    signed = signature_of(model)
    return keras.tree.flatten(getattr(model if signed is None else signed, which))


def _paths(model: Any, which: int) -> list[str]:
    """The keys of a model's inputs (0) or outputs (1) where they are in a dict, in the model's order."""
    import keras

    structure = structures(model)[which]
    if not isinstance(structure, Mapping):
        return []
    count = len(keras.tree.flatten(structure))
    by_number = dict(_numbered_paths(keras.tree.pack_sequence_as(structure, list(range(count)))))
    return [by_number[number] for number in range(count)]


def _numbered_paths(nested: Any, *path: str) -> Iterator[tuple[int, str]]:
    """The numbers in nested dicts and sequences, each with the keys that lead to it."""
    if isinstance(nested, Mapping):
        entries = nested.items()
    elif isinstance(nested, list | tuple):
        entries = enumerate(nested)
    else:
        yield nested, ".".join(path)
        return
    for key, value in entries:
        yield from _numbered_paths(value, *path, str(key))


def in_order(
    argument: str,
    names: Names,
    known: Sequence[str],
    what: str,
    needed: Sequence[bool] | None = None,
    for_all: bool = False,
) -> list[str | None]:
    """Returns names in the order of what is known, None for outputs without one.

    Args:
        argument: whose value `names` is.
        names: what the user wrote.
        known: names of inputs or outputs.
        what: what they are, for the message.
        needed: whether each of them needs a column; the others may have None or be left out. Default: all.
        for_all: whether a single name is that of the column of all; a list or a dict may then leave some out.

    Raises:
        ValueError: the names are not those of as many columns.
    """
    optional = needed is not None or for_all
    needed = list(needed or [not for_all] * len(known))
    if isinstance(names, Mapping):
        fits = set(names) <= set(known)
        ordered = [names.get(name) for name in known]
    else:
        ordered = as_list(names)
        if for_all and isinstance(names, str):
            ordered = [names] * len(known)
        elif optional and len(ordered) == sum(needed) < len(known):
            given = iter(ordered)
            ordered = [next(given) if here else None for here in needed]
        fits = len(ordered) == len(known)
    fits = fits and not any(here and name is None for here, name in zip(needed, ordered, strict=True))
    if not fits:
        unknown = [name for name in names if name not in known] if isinstance(names, Mapping) else []
        among = [name for name, here in zip(known, needed, strict=True) if here or for_all]
        raise ValueError(
            f"{argument} must name one column for each of the model's {len(among)} {what} "
            + ("" if len(among) == len(known) else "that have a loss ")
            + f"({listed(among)}).{did_you_mean(unknown[0], known) if unknown else ''} "
            f"Received: {shown(names)}"
        )
    if not all(isinstance(name, str | (type(None) if optional else str)) for name in ordered):
        raise ValueError(
            f"{argument} must be a column's name, a list of them, or a dict. Received: {shown(names)}"
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


def _column_dtype(dtype: Any) -> str:
    """The dtype in which shards hold an input: its own, and float32 for bfloat16, which NumPy has not."""
    return "float32" if str(dtype) == "bfloat16" else str(dtype)
