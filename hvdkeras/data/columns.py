"""What a model requires of a data column, and the checks that need only the column's name and type."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from hvdkeras.data.raw import is_binary, is_list, is_number, is_string, plain_type
from hvdkeras.naming import cut, did_you_mean, listed

# Assumed size of a row of bytes, for the planning of memory: the column's type does not contain it. 64 such
# rows make a block of 4 MB. Photos for training have about this size; 64 photos of a camera are 300 MB, which
# fits in a task's memory, and blocks of 64 small ones cost little.
_ENCODED_BYTES = 64 << 10
# The same for strings and lists of any length.
_RAGGED_BYTES = 4 << 10


class DataError(ValueError):
    """The data does not fit the model. The message names the column, the rows and what was expected.

    Attributes:
        faults: pairs of a column's name and the fault of some of its rows, as `Problem.what`.
    """

    def __init__(self, message: str, faults: Iterable[tuple[str, str]] = ()):
        super().__init__(message)
        self.faults = frozenset(faults)


@dataclass(frozen=True)
class Form:
    """The form that the rows of one column of the data have.

    Attributes:
        shape: shape of a row, without the batch axis; () for a scalar.
        dtype: NumPy dtype in which Keras would get it: float32 for all floats, integers and booleans as they
            are.
    """

    shape: tuple[int, ...]
    dtype: str


@dataclass(frozen=True)
class Column:
    """What the model requires of one column of the data.

    A row is accepted if it has as many values as `shape`, whatever its nesting: a list of 784 values fits
    (28, 28, 1), and a plain number fits () and (1,).

    Attributes:
        name: name of the column in the data.
        shape: shape of one row, without the batch axis; () for a scalar. An axis that the model leaves open
            is None until the data has decided its length; with `padding` the first axis remains None.
        dtype: NumPy dtype in which it is stored and fed, or "string".
        classes: number of classes, for labels; the values are then whole numbers from 0 to classes - 1.
        ignored: a class number, beside these, of values that the loss ignores; None without.
        one_hot: the model takes one-hot rows, so the last axis of `shape` is `classes` long. Class numbers
            are converted to one-hot rows; rows that already have `classes` values are not changed.
        encoded: the data has bytes in this column, of any length in each row, and they are stored as they
            are. `hvdkeras.data.decoding` decodes them on the ranks, to what the other attributes describe.
        nan: NaN is a value like others: of labels that the user's own loss masks, or of features that the
            model replaces. A null in place of a number counts as NaN.
        padding: rows have any length along the first axis; in a batch, shorter ones get this value at their
            end. None: all rows have one length.
        stacked: names of several columns of the data, with one number in each row, that together are the
            values of a row. `name` is then for messages only.

    Raises:
        ValueError: `shape`, `dtype` or `classes` can't describe a column.
    """

    name: str
    shape: tuple[int, ...]
    dtype: str
    classes: int | None = None
    one_hot: bool = False
    encoded: bool = False
    ignored: int | None = None
    nan: bool = False
    padding: float | None = None
    stacked: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        try:
            kind = "U" if self.is_string else np.dtype(self.dtype).kind
        except TypeError:
            kind = "?"
        if kind not in "fiubU":
            raise ValueError(
                f'dtype must be a NumPy number type or "string". Received: {self.dtype!r} ({self.name!r})'
            )
        shape = tuple(None if axis is None else int(axis) for axis in self.shape)
        object.__setattr__(self, "shape", shape)
        object.__setattr__(self, "stacked", tuple(self.stacked))
        if any(axis is not None and axis < 1 for axis in self.shape):
            raise ValueError(f"shape must have positive axes. Received: {self.shape} ({self.name!r})")
        if self.classes is not None and self.classes < 1:
            raise ValueError(f"classes must be positive. Received: {self.classes} ({self.name!r})")
        if self.one_hot and (not self.shape or self.shape[-1] != self.classes):
            raise ValueError(
                f"one_hot needs classes as the last axis of shape. "
                f"Received: classes={self.classes}, shape={self.shape} ({self.name!r})"
            )

    @property
    def is_string(self) -> bool:
        """Whether the values are strings."""
        return self.dtype == "string"

    @property
    def sources(self) -> tuple[str, ...]:
        """The names of the data's columns that it is read from."""
        return self.stacked or (self.name,)

    @property
    def is_open(self) -> bool:
        """Whether the data must decide the length of an axis."""
        return None in (self.shape if self.padding is None else self.shape[1:])

    @property
    def of_bytes(self) -> bool:
        """Whether rows are stored as bytes of any length."""
        return self.encoded or self.is_string or self.padding is not None

    @property
    def size(self) -> int:
        """Number of values in a row, as the model gets it; with `padding`, at one place of its first axis."""
        return math.prod(1 if axis is None else axis for axis in self.shape)

    @property
    def sizes(self) -> tuple[int, ...]:
        """The accepted numbers of values in a row of the data."""
        if self.one_hot and self.classes > 1:
            return (self.size, self.size // self.classes)
        return (self.size,)

    @property
    def requirement(self) -> str:
        """What a row must have, in words."""
        if self.encoded:
            return f"bytes in every row (to be decoded to shape {self.shape}, {self.dtype})"
        if self.padding is not None:
            required = f"lists of {'numbers' if self.size == 1 else f'{self.size} numbers at a place'}"
        elif self.is_string:
            required = _counted(self.size, "string")
        elif self.one_hot:
            required = f"{_counted(self.size, 'number')}, or {_counted(self.sizes[-1], 'class number')}"
        elif self.classes is not None:
            required = _counted(self.size, "class number")
        else:
            kind = "whole " if np.dtype(self.dtype).kind != "f" else "" if self.nan else "finite "
            required = _counted(self.size, f"{kind}number")
        span = "" if self.classes is None else f" from 0 to {self.classes - 1}"
        span += "" if self.ignored is None else f" or {self.ignored}"
        return f"{required}{span} in every row (shape {self.shape}, {self.dtype})"


def _counted(count: int, noun: str) -> str:
    return f"one {noun}" if count == 1 else f"{count} {noun}s"


def row_bytes(columns: Iterable[Column]) -> int:
    """Returns the bytes of a stored row of these columns; columns of any length count with an estimate."""
    return sum(map(_row_bytes, columns))


def _row_bytes(column: Column) -> int:
    if column.encoded:
        return _ENCODED_BYTES
    return _RAGGED_BYTES if column.of_bytes else column.size * np.dtype(column.dtype).itemsize


def check_names(columns: Sequence[Column], present: Iterable[str]) -> None:
    """Checks that every column is in the data.

    Raises:
        DataError: one is missing; the message has the most similar names that are in the data.
    """
    present = dict.fromkeys(present)
    for name in dict.fromkeys(name for column in columns for name in column.sources):
        if name not in present:
            raise DataError(
                f"column {name!r} is not in the data.{did_you_mean(name, present)} "
                f"Received columns: {listed(present)}"
            )


def check_type(column: Column, arrow_type: pa.DataType | None, shown: str) -> None:
    """Checks a column by its type alone, before any row is read.

    Args:
        column: what the model requires.
        arrow_type: type of the data's column in Arrow; None for a type that Arrow does not have.
        shown: name of the type, for the message.

    Raises:
        DataError: values of this type can't be converted.
    """
    if column.encoded:
        if arrow_type is None or not is_binary(arrow_type):
            raise DataError(f"column {column.name!r} must hold bytes, for decode. Received: {shown}")
        return
    inner, length = arrow_type if column.is_string else arrow_type and plain_type(arrow_type), 1
    while inner is not None and is_list(inner):
        # The length of a list is part of its type only in some types.
        length *= inner.list_size if pa.types.is_fixed_size_list(inner) else math.nan
        inner = inner.value_type
    if column.is_string:
        if inner is None or not is_string(inner):
            raise DataError(f"column {column.name!r} must hold {column.requirement}. Received: {cut(shown)}")
        return
    if inner is None or not is_number(inner):
        hint = ""
        if inner is not None and (is_string(inner)):
            hint = " (pyspark.ml.feature.StringIndexer makes class numbers of strings)"
        raise DataError(
            f"column {column.name!r} must hold numbers, arrays of numbers or vectors. "
            f"Received: {cut(shown)}{hint}"
        )
    if column.padding is None and not math.isnan(length) and length not in column.sizes:
        raise DataError(
            f"column {column.name!r} must hold {column.requirement}. Received: {shown}, {length} a row"
        )
