"""A Keras model as a file's content, with what a driver needs to know of it and no TensorFlow."""

from __future__ import annotations

import io
import json
import math
import zipfile
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from functools import cached_property
from typing import Any

from hvdkeras.models.schema import tensors
from hvdkeras.models.serialization import architecture, model_to_bytes, with_functions


@dataclass(frozen=True)
class Tensor:
    """One input or output of a model: its name, the shape of a row and the dtype."""

    name: str
    shape: tuple[int, ...]
    dtype: str

    @property
    def size(self) -> int:
        return math.prod(self.shape)


@dataclass(frozen=True)
class SavedModel:
    """A Keras model as the content of a `.keras` file, with what the driver has to know of it.

    Attributes:
        content: what Keras saves, for a file.
        inputs: the model's inputs.
        outputs: the model's outputs.
        named: the same with names in the place of the functions of Lambda layers, to be loaded; None where
            `content` is loaded itself. A model that was made in this process so needs no unsafe loading, and
            its functions keep the globals that they use, which no file holds.
        functions: these functions by name.
    """

    content: bytes
    inputs: tuple[Tensor, ...]
    outputs: tuple[Tensor, ...]
    named: bytes | None = None
    functions: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def of(cls, model: Any) -> SavedModel:
        """Saves a built Functional or Sequential model.

        Raises:
            ValueError: the model has no known inputs, or shapes that differ from row to row.
        """
        inputs, outputs = (_tensors(model, which) for which in ("inputs", "outputs"))
        named, functions = with_functions(model)
        if not functions:
            return cls(named, inputs, outputs)
        return cls(model_to_bytes(model), inputs, outputs, named, functions)

    @classmethod
    def from_metadata(cls, content: bytes, metadata: Mapping[str, Any]) -> SavedModel:
        """Puts together what was saved, and checks that the file is whole.

        Raises:
            ValueError: `content` is no `.keras` file, or a damaged one.
        """
        try:
            with zipfile.ZipFile(io.BytesIO(content)) as file:
                damaged = file.testzip()
                if damaged is None:
                    json.loads(file.read("config.json"))
        except (zipfile.BadZipFile, KeyError, ValueError, EOFError, OSError) as error:
            raise ValueError(f"the .keras file is damaged: {error}") from None
        if damaged is not None:
            raise ValueError(f"the .keras file is damaged: {damaged} is not what was written")
        read = (
            tuple(Tensor(t["name"], tuple(t["shape"]), t["dtype"]) for t in metadata[which])
            for which in ("inputs", "outputs")
        )
        return cls(content, *read)

    @property
    def loadable(self) -> bytes:
        """What `model_from_bytes` loads, with `functions` among its custom objects."""
        return self.content if self.named is None else self.named

    @property
    def metadata(self) -> dict[str, Any]:
        return {"inputs": [asdict(t) for t in self.inputs], "outputs": [asdict(t) for t in self.outputs]}

    @cached_property
    def registered_names(self) -> set[str]:
        """Names under which the model's own layers and functions are registered with Keras."""
        return set(_registered(architecture(self.content)))


def _registered(config: Any) -> Iterator[str]:
    if isinstance(config, dict):
        if isinstance(config.get("registered_name"), str):
            yield config["registered_name"]
        config = list(config.values())
    if isinstance(config, list):
        for item in config:
            yield from _registered(item)


def _tensors(model: Any, which: str) -> tuple[Tensor, ...]:
    known = tensors(model, which)
    for tensor in known:
        if None in tensor.shape[1:]:
            raise ValueError(
                f"the model's {which} must have a fixed shape beyond the batch. Received: "
                f"{tensor.name!r} of shape {tuple(tensor.shape)}"
            )
        if str(tensor.dtype) == "string":
            raise ValueError(f"the model's {which} must be numbers. Received: {tensor.name!r} of strings")
    return tuple(Tensor(t.name, tuple(t.shape[1:]), str(t.dtype)) for t in known)
