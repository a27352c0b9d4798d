"""What a training reads beside the inputs, labels and sample weights, and how a batch is nested."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from hvdkeras.data.columns import Column, Form
from hvdkeras.models.labels import Shape, label_column, losses_of, takes_any_form
from hvdkeras.models.schema import Names, feature_columns, in_order, output_names, structures, tensors
from hvdkeras.naming import listed


@dataclass(frozen=True)
class Batch:
    """How the columns of a training make up a batch, in the nesting in which the model's step gets it.

    Attributes:
        inputs: the columns' numbers, nested as the model's inputs.
        labels: nested as the model's outputs, or, where no output has a loss, as the user names the columns;
            None for an output without a column, or for all.
        weights: sample weights, nested as the outputs; None without.
        sparse: the numbers of the columns that the model takes as a `tf.SparseTensor`.
    """

    inputs: Any
    labels: Any
    weights: Any
    sparse: tuple[int, ...] = ()


@dataclass(frozen=True)
class Targets:
    """What a training reads beside the inputs.

    Attributes:
        labels: names of columns, nested as `Batch.labels`.
        weights: names of columns, nested as `Batch.weights`.
        outputs: for each label, in flat order, the shape of its output and its loss, None where it has none.
    """

    labels: Any
    weights: Any
    outputs: list[tuple[Shape, Any]]

    @property
    def names(self) -> list[str]:
        """The labels' columns, in their order."""
        return _flat(self.labels)

    @property
    def weight_names(self) -> list[str]:
        """The sample weights' columns: one for all outputs, or each output's."""
        flat = _flat(self.weights)
        return flat[:1] if len(set(flat)) == 1 else flat

    @property
    def of_any_form(self) -> list[str]:
        """The columns whose form depends on the data."""
        labels = zip(self.names, self.outputs, strict=True)
        return [*(name for name, (_, loss) in labels if takes_any_form(loss)), *self.weight_names]


def targets(model: Any, loss: Any, label_col: Names | None, sample_weight_col: Names | None) -> Targets:
    """Returns what a training reads beside the inputs.

    Args:
        model: a built Functional or Sequential Keras model.
        loss: a Keras loss, its name or a function; for several outputs a list, with None for those without a
            loss, or a dict by output name, which may leave them out. None: the model computes it, by
            `add_loss`, a `compute_loss` or a `train_step` of its own.
        label_col: see `Names`; one name for each output, or for each output that has a loss. Where no output
            has one, as the model's step takes labels. None: no labels.
        sample_weight_col: a column's name for all of the model's outputs, or one for each. Default: none.

    Raises:
        ValueError: if the model has no known outputs, a loss is unknown or missing, or the columns' names are
            not those of as many columns as there are outputs.
    """
    outputs, names = tensors(model, "outputs"), output_names(model)
    if loss is None and not _may_have_own_losses(model):
        raise ValueError(
            "loss must be given, or the model compiled with one, unless it computes losses of its own. "
            "Received: None"
        )
    losses = losses_of(loss, names)
    shapes = [tuple(tensor.shape[1:]) for tensor in outputs]
    weights = None
    if sample_weight_col is not None:
        flat = in_order("sample_weight_col", sample_weight_col, names, "outputs", for_all=True)
        weights = _packed(model, flat)
    if label_col is None or not any(losses):
        return Targets(*_free_labels(label_col, losses, names, shapes, weights))
    flat = in_order("label_col", label_col, names, "outputs", [one is not None for one in losses])
    there = [(shape, one) for name, shape, one in zip(flat, shapes, losses, strict=True) if name is not None]
    return Targets(_packed(model, flat), weights, there)


def _free_labels(
    label_col: Names | None, losses: list[Any], names: list[str], shapes: list[Shape], weights: Any
) -> tuple[Any, Any, list[tuple[Shape, Any]]]:
    """Labels that no loss of an output reads: none, or as the user names them."""
    if label_col is None:
        if any(losses):
            having = [name for name, one in zip(names, losses, strict=True) if one is not None]
            raise ValueError(
                f"label_col must name a column for each output that has a loss, {listed(having)}. "
                "Received: None"
            )
        if weights is not None:
            raise ValueError("sample_weight_col needs label_col. Received: label_col=None")
        return None, None, []
    labels = dict(label_col) if isinstance(label_col, Mapping) else label_col
    labels = tuple(labels) if isinstance(labels, list) else labels
    count = len(_flat(labels))
    # The output of the same place has the shape for flat lists, where there is one.
    of_outputs = shapes if count == len(shapes) else [()] * count
    return labels, weights, [(shape, None) for shape in of_outputs]


def columns(
    model: Any, features_col: Names, read: Targets, forms: Mapping[str, Form] | None = None
) -> tuple[Column, ...]:
    """Returns the columns that a training reads: one for each input, one for each label, sample weights.

    Args:
        model: a built Functional or Sequential Keras model.
        features_col: see `hvdkeras.models.schema.input_columns`.
        read: what else is read.
        forms: of the data's columns, by name, at least of `read.of_any_form`.

    Raises:
        ValueError: if the model has no known inputs, or the names are not those of as many columns.
    """
    forms = forms or {}
    features = feature_columns(model, features_col)
    labels = [
        label_column(name, shape, loss, forms.get(name))
        for name, (shape, loss) in zip(read.names, read.outputs, strict=True)
    ]
    # What an autoencoder reads twice is stored once: an input has no NaN.
    labels = [strict if (strict := replace(one, nan=False)) in features else one for one in labels]
    shapes = [forms[name].shape if name in forms else () for name in read.weight_names]
    weights = [Column(*each, "float32") for each in zip(read.weight_names, shapes, strict=True)]
    return (*features, *labels, *weights)


def batch(model: Any, read: Targets) -> Batch:
    """Returns how columns, in the order of `columns`, make up a batch.

    Args:
        model: a built Functional or Sequential Keras model.
        read: what is read beside the inputs.
    """
    import keras

    first, of_weights = len(tensors(model, "inputs")), read.weight_names
    numbers = iter(range(first))
    inputs = keras.tree.map_structure(lambda _: next(numbers), structures(model)[0])
    numbers = iter(range(first, first + len(read.names)))
    labels = keras.tree.map_structure(lambda name: None if name is None else next(numbers), read.labels)
    numbers = iter(range(first + len(read.names), first + len(read.names) + len(of_weights)))
    only = next(numbers) if len(of_weights) == 1 else None
    weights_of = keras.tree.map_structure(
        lambda name: None if name is None else next(numbers) if only is None else only, read.weights
    )
    # For tf.data a list is a tensor.
    sparse = tuple(
        number
        for number, tensor in enumerate(tensors(model, "inputs"))
        if getattr(tensor, "sparse", False) and len(tensor.shape) == 2 and tensor.shape[1]
    )
    return Batch(*map(keras.tree.lists_to_tuples, (inputs, labels, weights_of)), sparse)


def nested(batch: Batch, arrays: Sequence[Any]) -> Any:
    """Returns the arrays or tensors of a batch's columns as Keras's `fit` gives them to the model's step."""
    import keras

    inputs, labels, weights = (
        keras.tree.map_structure(lambda number: None if number is None else arrays[number], part)
        for part in (batch.inputs, batch.labels, batch.weights)
    )
    return keras.utils.pack_x_y_sample_weight(inputs, labels, weights)


def complete_losses(model: Any, loss: Any, loss_weights: Any) -> dict[str, Any]:
    """Returns the arguments `loss` and `loss_weights` of `compile` with all outputs in their dicts.

    Keras wants all of them there where the model does not give a dict itself.
    """
    completed, names = {"loss": loss, "loss_weights": loss_weights}, output_names(model)
    is_whole = not isinstance(loss, Mapping) or set(loss) == set(names)
    if is_whole or isinstance(structures(model)[1], Mapping):
        return completed
    completed["loss"] = {name: loss.get(name) for name in names}
    if isinstance(loss_weights, Mapping):
        completed["loss_weights"] = {name: loss_weights.get(name, 1.0) for name in names}
    return completed


def _may_have_own_losses(model: Any) -> bool:
    """Whether a model may compute a loss though it is compiled with none."""
    import keras

    kind = type(model)
    if kind.compute_loss is not keras.Model.compute_loss or kind.train_step is not keras.Model.train_step:
        return True
    return any(
        not type(layer).__module__.startswith("keras.")
        or isinstance(layer, keras.layers.ActivityRegularization)
        or getattr(layer, "activity_regularizer", None) is not None
        for layer in model._flatten_layers()
    )


def _packed(model: Any, flat: list[str | None]) -> Any:
    import keras

    return keras.tree.pack_sequence_as(structures(model)[1], flat)


def _flat(nested: Any) -> list[str]:
    """The names in a nesting, without what is None, in its order."""
    import keras

    return [name for name in keras.tree.flatten(nested) if name is not None]
