"""Flattens Arrow columns of numbers, lists, bytes and Spark vectors to NumPy arrays of one axis a row."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

NULL = "null values"
RAGGED = "lists of unequal lengths"
SIZE = "another number of values"

# The fields of a vector of Spark ML in Parquet. Type 0 is sparse, 1 is dense.
_VECTOR_FIELDS = ("type", "size", "indices", "values")


def is_list(kind: pa.DataType) -> bool:
    """Returns whether Arrow values of this type are lists."""
    return pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind)


def is_number(kind: pa.DataType) -> bool:
    """Returns whether Arrow values of this type are numbers, or booleans or decimals."""
    types = pa.types
    return (
        types.is_integer(kind) or types.is_floating(kind) or types.is_boolean(kind) or types.is_decimal(kind)
    )


def is_binary(kind: pa.DataType) -> bool:
    """Returns whether Arrow values of this type are bytes."""
    return pa.types.is_binary(kind) or pa.types.is_large_binary(kind)


def is_string(kind: pa.DataType) -> bool:
    """Returns whether Arrow values of this type are strings, or bytes that TensorFlow takes as such."""
    return pa.types.is_string(kind) or pa.types.is_large_string(kind) or is_binary(kind)


def nulls_as_nan(array: pa.Array) -> pa.Array:
    """Returns plain numbers with NaN in place of null; other arrays as they are."""
    if not array.null_count or not is_number(array.type):
        return array
    return array.cast(pa.float64()).fill_null(float("nan"))


def plain_type(kind: pa.DataType) -> pa.DataType:
    """Returns the type as which values are read: bytes as lists of uint8, vectors as lists of doubles."""
    if isinstance(kind, pa.BaseExtensionType):
        return plain_type(kind.storage_type)
    if is_binary(kind):
        return pa.list_(pa.uint8())
    if is_vector(kind):
        return pa.list_(pa.float64())
    return kind


def binary_values(array: pa.Array) -> tuple[np.ndarray, np.ndarray]:
    """Returns the buffers of an Arrow array of n rows of bytes without nulls; n > 0.

    Returns:
        offsets: where each row begins and the last one ends, shape `(n + 1,)`, int64.
        values: the bytes, uint8, not copied.
    """
    width = np.int64 if pa.types.is_large_binary(array.type) else np.int32
    _, offsets, data = array.buffers()
    offsets = np.frombuffer(offsets, width)[array.offset : array.offset + len(array) + 1]
    values = np.frombuffer(data or b"", np.uint8)[offsets[0] : offsets[-1]]
    return offsets.astype(np.int64) - offsets[0], values


def flat_values(
    array: pa.Array, sizes: tuple[int, ...]
) -> tuple[np.ndarray, np.ndarray | None, dict[str, np.ndarray]]:
    """Flattens each row, a number or nested lists of numbers, to a row of values.

    Args:
        array: n rows, n > 0.
        sizes: the accepted numbers of values in a row.

    Returns:
        values: the values of the m rows without a fault, shape `(m, k)`, not copied if Arrow's layout allows
            it.
        used: the numbers of these rows if m < n, else None.
        faults: for every kind of fault (NULL, RAGGED, SIZE), a mask of shape `(n,)` of the rows that have it.
    """
    array = as_lists(array)
    values = _uniform(array)
    if values is not None:
        return values, None, {}
    return _without_faults(array, sizes)


def ragged_values(array: pa.Array) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Flattens rows, nested lists of any lengths.

    Returns:
        values: all values, row after row.
        counts: how many values each row has, shape `(n,)`.
        null: a mask of the rows that are null or hold a null, shape `(n,)`; for nulls there are zeros in
            `values`.
    """
    array, rows = as_lists(array), len(array)
    row, null = np.arange(rows), np.zeros(rows, bool)
    while is_list(array.type):
        null[row[array.is_null().to_numpy(zero_copy_only=False)]] = True
        row = np.repeat(row, _lengths(array))
        array = array.flatten()
    null[row[array.is_null().to_numpy(zero_copy_only=False)]] = True
    if array.null_count:
        array = array.fill_null(False if pa.types.is_boolean(array.type) else 0)
    return _numbers(array), np.bincount(row, minlength=rows), null


def _uniform(array: pa.Array) -> np.ndarray | None:
    """Returns the values if all rows have one shape and no nulls, as nearly always; else None."""
    rows = len(array)
    while is_list(array.type):
        if array.null_count:
            return None
        lengths = _lengths(array)
        if len(lengths) and lengths.min() != lengths.max():
            return None
        array = array.flatten()
    if array.null_count:
        return None
    return _numbers(array).reshape(rows, -1)


def _without_faults(
    array: pa.Array, sizes: tuple[int, ...]
) -> tuple[np.ndarray, np.ndarray, dict[str, np.ndarray]]:
    """As `flat_values`, for arrays in which some rows have a fault or another size."""
    rows = len(array)
    null, ragged = np.zeros(rows, bool), np.zeros(rows, bool)
    row = np.arange(rows)
    outermost = True
    while is_list(array.type):
        missing = array.is_null().to_numpy(zero_copy_only=False)
        null[row[missing]] = True
        lengths = _lengths(array)
        if not outermost and not missing.all():
            usual = np.bincount(lengths[~missing]).argmax()
            ragged[row[(lengths != usual) & ~missing]] = True
        row = np.repeat(row, lengths)
        array = array.flatten()
        outermost = False
    missing = array.is_null().to_numpy(zero_copy_only=False)
    null[row[missing]] = True
    counts = np.bincount(row, minlength=rows)
    size = next((size for size in sizes if (counts == size).any()), sizes[0])
    ragged &= ~null
    wrong = (counts != size) & ~null & ~ragged
    good = ~(null | ragged | wrong)
    values = _numbers(array.fill_null(False if pa.types.is_boolean(array.type) else 0))[good[row]]
    faults = {NULL: null, RAGGED: ragged, SIZE: wrong}
    return (
        values.reshape(-1, size),
        np.flatnonzero(good),
        {k: mask for k, mask in faults.items() if mask.any()},
    )


def _numbers(array: pa.Array) -> np.ndarray:
    if pa.types.is_boolean(array.type):
        array = array.cast(pa.uint8())
    elif pa.types.is_decimal(array.type):
        array = array.cast(pa.float64())
    return array.to_numpy(zero_copy_only=False)


def as_lists(array: pa.Array) -> pa.Array:
    """Returns the array as values of its `plain_type`."""
    if isinstance(array.type, pa.BaseExtensionType):
        return as_lists(array.storage)
    if is_binary(array.type):
        return _bytes_as_list(array)
    if is_vector(array.type):
        return _vectors_as_lists(array)
    return array


def is_vector(kind: pa.DataType) -> bool:
    """Returns whether Arrow values of this type are Spark's vectors, as their fields."""
    return pa.types.is_struct(kind) and tuple(field.name for field in kind) == _VECTOR_FIELDS


def _bytes_as_list(array: pa.Array) -> pa.Array:
    return _lists(*binary_values(array.fill_null(b"") if array.null_count else array), array)


def _vectors_as_lists(array: pa.Array) -> pa.Array:
    """Converts Spark's vectors, dense and sparse ones mixed, to dense lists."""
    offsets, values, _ = vectors_of(array).expanded()
    return _lists(offsets, values, array)


class Vectors(NamedTuple):
    """The fields of n of Spark's vectors, row after row.

    Attributes:
        sparse: whether the row is a sparse vector, shape `(n,)`.
        sizes: numbers of values of the rows, shape `(n,)`; 0 for null.
        counts: how many of them are given, shape `(n,)`.
        indices: where the given values of sparse rows belong.
        values: the given values of all rows.
    """

    sparse: np.ndarray
    sizes: np.ndarray
    counts: np.ndarray
    indices: np.ndarray
    values: np.ndarray

    def expanded(self, kept: np.ndarray | None = None) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Returns the rows with all their values, but some of the sparse ones as they are.

        Args:
            kept: whether a row is to stay sparse, shape `(n,)`, bool. Default: none is.

        Returns:
            offsets: where each row begins in the values and where the last one ends, shape `(n + 1,)`.
            values: the rows' values: of the kept rows those that are given, of others all.
            indices: those of the kept rows.
        """
        expanded = self.sparse if kept is None else self.sparse & ~kept
        offsets = np.zeros(len(self.sizes) + 1, np.int64)
        np.cumsum(np.where(expanded, self.sizes, self.counts), out=offsets[1:])
        if not expanded.any():
            return offsets, self.values, self.indices
        # The place of each given value in its row: its index in expanded rows, its own in others.
        row = np.repeat(np.arange(len(self.sizes)), self.counts)
        place = np.arange(len(row)) - np.repeat(np.cumsum(self.counts) - self.counts, self.counts)
        of_expanded = expanded[row[self.sparse[row]]]
        place[expanded[row]] = self.indices[of_expanded]
        values = np.zeros(offsets[-1], self.values.dtype)
        values[offsets[row] + place] = self.values
        return offsets, values, self.indices[~of_expanded]


def vectors_of(array: pa.Array) -> Vectors:
    """Returns the fields of an Arrow array of Spark's vectors.

    Raises:
        ValueError: a sparse vector has an index outside it.
    """
    kind, size, indices, given = array.flatten()  # null rows are null in all four
    sparse = (kind.fill_null(1) if kind.null_count else kind).to_numpy() == 0
    counts = _lengths(given)
    sizes = np.where(sparse, size.fill_null(0).to_numpy(zero_copy_only=False), counts)
    places = indices.flatten().to_numpy(zero_copy_only=False)
    outside = (places < 0) | (places >= np.repeat(sizes[sparse], counts[sparse]))
    if outside.any():
        raise ValueError(
            f"the indices of sparse vectors must be from 0 to their size - 1. Received: {places[outside][0]}"
        )
    return Vectors(sparse, sizes, counts, places, given.flatten().to_numpy(zero_copy_only=False))


def _lists(offsets: np.ndarray, values: np.ndarray, like: pa.Array) -> pa.Array:
    mask = like.is_null() if like.null_count else None
    return pa.LargeListArray.from_arrays(offsets.astype(np.int64), pa.array(values), mask=mask)


def _lengths(lists: pa.Array) -> np.ndarray:
    return pc.list_value_length(lists).fill_null(0).to_numpy(zero_copy_only=False)
