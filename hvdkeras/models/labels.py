"""What an output's loss asks of its labels.

Of Keras's own losses the form of the labels is known, so that wrong labels are found while the data is read.
All other losses, those of the user's own above all, get the labels in the form that the data has: whether
they can be computed is seen when they are, on a few rows, before a training is launched.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from hvdkeras.data.columns import Column, Form
from hvdkeras.naming import listed, shown

Shape = tuple[int | None, ...]


def losses_of(loss: Any, names: Sequence[str]) -> list[Any]:
    """Returns one resolved loss for each output, None for outputs without one.

    Args:
        loss: a Keras loss, its name or a function; for several outputs a list with None for those without a
            loss, or a dict by output name that may leave them out; None for no loss at all.
        names: of the outputs.

    Raises:
        ValueError: there are losses of other outputs, or one that Keras does not know.
    """
    if isinstance(loss, Mapping):
        if not loss or set(loss) - set(names):
            raise ValueError(
                f"loss must have an entry for each output that has a loss, of {listed(names)}. "
                f"Received: {shown(sorted(loss))}"
            )
        losses = [loss.get(name) for name in names]
    elif isinstance(loss, list | tuple):
        losses = list(loss)
    else:
        losses = [loss] * len(names)
    if len(losses) != len(names):
        raise ValueError(
            f"loss must have one entry for each output, {listed(names)}. Received: {len(losses)} losses"
        )
    try:
        return [_resolved(one) for one in losses]
    except ValueError as error:
        raise ValueError(
            f"loss must be a Keras loss, the name of one, or a function. Received: {shown(loss)}"
        ) from error


def takes_any_form(loss: Any) -> bool:
    """Returns whether labels of a loss, an element of what `losses_of` returned, have the data's form."""
    return _known(loss) is None


def label_column(name: str, shape: Shape, loss: Any, form: Form | None) -> Column:
    """Returns the column of an output's labels.

    Args:
        name: of the column.
        shape: of the output, without the batch axis.
        loss: an element of what `losses_of` returned.
        form: the form of the data's rows, None where it is not known. For a loss that takes any form, rows
            with as many values as the output get its shape, whatever their nesting, and others keep theirs.
    """
    known = _known(loss)
    if known == "sparse":
        ignored = getattr(loss, "_fn_kwargs", {}).get("ignore_class")
        return Column(name, shape[:-1], "int32", classes=shape[-1], ignored=ignored)
    if known == "categorical":
        return Column(name, shape, "float32", classes=shape[-1], one_hot=True)
    if known is not None or form is None:
        return Column(name, shape, "float32", nan=known is None and not _is_of_keras(loss))
    nan = form.dtype == "float32" and not _is_of_keras(loss)
    return Column(name, _shape(shape, form.shape), form.dtype, nan=nan)


def _shape(output: Shape, row: tuple[int, ...]) -> Shape:
    if None not in output:
        return output if math.prod(row) == math.prod(output) else row
    # Where the output's first axis is open, so is that of the labels.
    return (None, *row[1:]) if row and output[0] is None else row


def _resolved(loss: Any) -> Any:
    import keras

    # Which one "crossentropy" is depends on the labels.
    return loss if loss in ("crossentropy", "ce") else keras.losses.get(loss)


def _known(loss: Any) -> str | None:
    """What labels a loss of Keras's own takes: "sparse" or "categorical" classes, "numbers"; None: any."""
    sparse = _losses(
        "SparseCategoricalCrossentropy",
        "CategoricalGeneralizedCrossEntropy",
        "sparse_categorical_crossentropy",
        "categorical_generalized_cross_entropy",
    )
    categorical = _losses(
        "CategoricalCrossentropy",
        "CategoricalFocalCrossentropy",
        "CategoricalHinge",
        "categorical_crossentropy",
        "categorical_focal_crossentropy",
        "categorical_hinge",
    )
    any_form = _losses("CTC", "Circle", "ctc", "circle")
    if isinstance(loss, str) or not _is_of_keras(loss) or _is_one_of(loss, any_form):
        return None
    kinds = {"sparse": sparse, "categorical": categorical}
    kind = next((kind for kind, known in kinds.items() if _is_one_of(loss, known)), "numbers")
    other_axis = kind != "numbers" and getattr(loss, "_fn_kwargs", {}).get("axis", -1) != -1
    return None if other_axis else kind


def _losses(*names: str) -> tuple[Any, ...]:
    """Those of Keras's losses that its version has."""
    from keras import losses

    return tuple(getattr(losses, name) for name in names if hasattr(losses, name))


def _is_of_keras(loss: Any) -> bool:
    """Whether a loss is one of Keras's own, or a subclass that changes no formula."""
    import keras

    if loss is None or isinstance(loss, str):
        return loss is not None
    parts = [loss]
    if isinstance(loss, keras.losses.Loss):
        parts = [type(loss).call, type(loss).__call__, getattr(loss, "fn", type(loss).call)]
    return all((getattr(part, "__module__", None) or "").startswith("keras.") for part in parts)


def _is_one_of(loss: Any, known: tuple[Any, ...]) -> bool:
    return loss in known or isinstance(loss, tuple(entry for entry in known if isinstance(entry, type)))
