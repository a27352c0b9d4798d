"""An ensemble's members as one Keras model."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from hvdkeras.models.schema import output_names, structures, tensors


def merged(members: Sequence[Any], disagreement: bool = False) -> Any:
    """Returns one Keras model, not compiled, whose outputs are the means of the members' outputs.

    It saves and loads on its own, as any Keras model does. The members are part of it and are renamed.

    Args:
        members: models with the same inputs and outputs.
        disagreement: add, after the means, an output with the members' standard deviation for each of them.
    """
    import keras

    first = members[0]
    inputs = [keras.Input(t.shape[1:], dtype=t.dtype, name=t.name) for t in tensors(first, "inputs")]
    outputs = []
    nested = keras.tree.pack_sequence_as(structures(first)[0], inputs)
    for number, member in enumerate(members):
        member.name = f"member_{number}"
        # Keras 3.5 asks a model for the metrics of the compiled models in it, too, which are never computed.
        member.compiled = False
        outputs.append(keras.tree.flatten(member(nested)))
    by_output = [list(each) for each in zip(*outputs, strict=True)]
    names = output_names(first)
    results = [_mean(each, name) for each, name in zip(by_output, names, strict=True)]
    if disagreement:
        results += [
            keras.layers.Identity(name=f"{name}_disagreement")(keras.ops.std(keras.ops.stack(each), axis=0))
            for each, name in zip(by_output, names, strict=True)
        ]
    return keras.Model(inputs if len(inputs) > 1 else inputs[0], results if len(results) > 1 else results[0])


def _mean(tensors: list[Any], name: str) -> Any:
    from keras import layers

    return layers.Average(name=name)(tensors) if len(tensors) > 1 else layers.Identity(name=name)(tensors[0])
