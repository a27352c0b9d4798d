"""What models that have no symbolic inputs of their own, as subclassed ones, take and give."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from weakref import WeakKeyDictionary


@dataclass(frozen=True)
class RowShape:
    """One input of a model, as plain data.

    Attributes:
        shape: shape of a row.
        dtype: of its values, or "string".
        name: the input's name.
    """

    shape: tuple[int | None, ...]
    dtype: str
    name: str


Nested = RowShape | Sequence[RowShape] | Mapping[str, RowShape]
"""The inputs of a model in the nesting in which it takes them."""


@dataclass(frozen=True)
class Signature:
    """What a model takes and gives.

    Attributes:
        described: the inputs, as plain data.
        inputs: the inputs as symbolic tensors, in the same nesting.
        outputs: the outputs as symbolic tensors, in the nesting in which the model gives them.
    """

    described: Nested
    inputs: Any
    outputs: Any


# Keras keeps no such thing in a subclassed model, and would track it as a part of the model if it were an
# attribute there.
_signatures: WeakKeyDictionary[Any, Signature] = WeakKeyDictionary()


def signature_of(model: Any) -> Signature | None:
    """Returns what `sign` has found out; None for a model that has symbolic inputs, or is unknown."""
    return _signatures.get(model)


def has_inputs(model: Any) -> bool:
    """Returns whether a model's inputs are known: it has symbolic ones, or was signed."""
    try:
        return bool(getattr(model, "inputs", None)) or model in _signatures
    except ValueError:
        return model in _signatures


def sign(model: Any, described: Nested) -> None:
    """Calls a model on symbolic inputs, which builds it, and notes what it takes and gives.

    A Sequential model gets symbolic inputs of its own by that.

    Args:
        model: a Keras model, built or not.
        described: its inputs.

    Raises:
        Exception: whatever the model's `call` raises.
    """
    import keras

    inputs = _inputs(described)
    outputs = model(inputs)
    if not has_inputs(model):
        # Without their history, or the model would keep itself alive.
        bare = (keras.tree.map_structure(_bare, nested) for nested in (inputs, outputs))
        _signatures[model] = Signature(described, *bare)


def functional(model: Any) -> Any:
    """Returns a signed model as a Functional one, which has it as a layer and shares its weights."""
    import keras

    inputs = _inputs(_signatures[model].described)
    return keras.Model(inputs, model(inputs), name=f"{model.name}_functional")


def _inputs(described: Nested) -> Any:
    """Symbolic inputs in the nesting of their descriptions."""
    import keras

    if isinstance(described, Mapping):
        return {name: _inputs(one) for name, one in described.items()}
    if isinstance(described, list | tuple):
        return [_inputs(one) for one in described]
    return keras.Input(described.shape, dtype=described.dtype, name=described.name)


def _bare(tensor: Any) -> Any:
    import keras

    return keras.KerasTensor(tensor.shape, tensor.dtype, name=tensor.name)
