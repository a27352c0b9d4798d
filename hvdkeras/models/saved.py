"""A Keras model as a file's content, with what a driver needs to know of it and no TensorFlow."""

from __future__ import annotations

import io
import json
import math
import zipfile
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from functools import cached_property
from typing import Any

from hvdkeras.models.schema import fixed_batch, tensors
from hvdkeras.models.serialization import architecture, model_to_bytes, texts_of, with_functions
from hvdkeras.models.signature import functional, signature_of

# Assumed numbers in a row of strings or of any length, for the planning of memory: 4 KB.
_OPEN_NUMBERS = 512


@dataclass(frozen=True)
class Tensor:
    """One input or output of a model.

    Attributes:
        name: its name.
        shape: shape of a row; of an input at most one axis is None, whose length is open.
        dtype: of its values, or "string".
    """

    name: str
    shape: tuple[int | None, ...]
    dtype: str

    @property
    def size(self) -> int:
        """Number of values in a row; at one place of an axis that is open."""
        return math.prod(1 if axis is None else axis for axis in self.shape)

    @property
    def is_open(self) -> bool:
        """Whether the length of an axis is open."""
        return None in self.shape

    @property
    def is_string(self) -> bool:
        """Whether the values are strings."""
        return self.dtype == "string"

    @property
    def numbers(self) -> int:
        """How many numbers a row is for the planning of memory; an estimate where that is open."""
        return self.size * (_OPEN_NUMBERS if self.is_open or self.is_string else 1)


@dataclass(frozen=True)
class SavedModel:
    """A Keras model as the content of a `.keras` file, with what the driver has to know of it.

    Attributes:
        content: what Keras saves, for a file.
        inputs: the inputs, in the model's order.
        outputs: the outputs, in the model's order.
        batch: the batch size that the model's Input has; None where it is open.
        named: the same with names in the place of the functions of Lambda layers, to be loaded; None where
            `content` is loaded itself. A model that was made in this process so needs no unsafe loading, and
            its functions keep the globals that they use, which no file holds.
        functions: these functions by name.
    """

    content: bytes
    inputs: tuple[Tensor, ...]
    outputs: tuple[Tensor, ...]
    batch: int | None = None
    named: bytes | None = None
    functions: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def of(cls, model: Any) -> SavedModel:
        """Saves a model whose inputs are known; one that was built from data becomes a Functional one.

        Raises:
            ValueError: the model has no known inputs, an output whose shape differs from row to row, or an
                input with more than one open axis.
        """
        if signature_of(model) is not None:
            model = functional(model)
        inputs, outputs = (_tensors(model, which) for which in ("inputs", "outputs"))
        batch = fixed_batch(model)
        named, functions = with_functions(model)
        if not functions:
            return cls(named, inputs, outputs, batch)
        return cls(model_to_bytes(model), inputs, outputs, batch, named, functions)

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
        return cls(content, *read, metadata.get("batch"))

    @property
    def loadable(self) -> bytes:
        """What `model_from_bytes` loads, with `functions` among its custom objects."""
        return self.content if self.named is None else self.named

    @property
    def metadata(self) -> dict[str, Any]:
        return {
            "inputs": [asdict(t) for t in self.inputs],
            "outputs": [asdict(t) for t in self.outputs],
            "batch": self.batch,
        }

    @cached_property
    def registered_names(self) -> set[str]:
        """Names under which the model's own layers and functions are registered with Keras."""
        return set(texts_of(architecture(self.content), "registered_name"))


def _tensors(model: Any, which: str) -> tuple[Tensor, ...]:
    known = tensors(model, which)
    most, allowed = (1, "at most one open axis") if which == "inputs" else (0, "a fixed shape")
    for tensor in known:
        if list(tensor.shape[1:]).count(None) > most:
            raise ValueError(
                f"the model's {which} must have {allowed} beyond the batch: with an input of a fixed shape, "
                "keras.Model(input, model(input)) has it. Received: "
                f"{tensor.name!r} of shape {tuple(tensor.shape)}"
            )
        if str(tensor.dtype) == "string" and which == "outputs":
            raise ValueError(f"the model's {which} must be numbers. Received: {tensor.name!r} of strings")
    return tuple(Tensor(t.name, tuple(t.shape[1:]), str(t.dtype)) for t in known)
