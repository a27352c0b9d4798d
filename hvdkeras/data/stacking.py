"""Several columns of numbers stacked to the rows of one input: their check, and the stacking."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from hvdkeras.data.columns import Column, DataError
from hvdkeras.data.raw import is_number, nulls_as_nan
from hvdkeras.naming import cut


def check_stacked_type(column: Column, name: str, arrow_type: pa.DataType | None, shown: str) -> None:
    """Checks one of the columns that are stacked, by its type alone.

    Args:
        column: what the model requires.
        name: of the column of the data.
        arrow_type: its type in Arrow; None for a type that Arrow does not have.
        shown: name of the type, for the message.

    Raises:
        DataError: the column does not hold plain numbers.
    """
    if arrow_type is None or not is_number(arrow_type):
        raise DataError(
            f"column {name!r} must hold one number in every row, because features_col stacks "
            f"{len(column.stacked)} columns to one input. Received: {cut(shown)}"
        )


def stacked_arrow(column: Column, arrays: Sequence[pa.Array]) -> pa.Array:
    """Returns columns of n numbers as n lists of a fixed size; with `nan` of the column, NaN for null."""
    if column.nan:
        arrays = [nulls_as_nan(array) for array in arrays]
    kinds = {array.type for array in arrays}
    if len(kinds) > 1:
        whole = all(pa.types.is_integer(kind) or pa.types.is_boolean(kind) for kind in kinds)
        arrays = [pc.cast(array, pa.int64() if whole else pa.float64(), safe=whole) for array in arrays]
    rows = len(arrays[0])
    order = np.arange(rows * len(arrays)).reshape(len(arrays), rows).T.ravel()
    return pa.FixedSizeListArray.from_arrays(pa.concat_arrays(arrays).take(pa.array(order)), len(arrays))


def stacked_numpy(column: Column, arrays: Sequence[Any]) -> np.ndarray:
    """Returns columns of n numbers as an array of shape `(n, k)`.

    Raises:
        DataError: one does not hold plain numbers, or they have different lengths.
    """
    arrays = [np.asarray(array) for array in arrays]
    for name, array in zip(column.stacked, arrays, strict=True):
        if array.dtype.kind not in "fiub" or array.ndim != 1:
            raise DataError(
                f"column {name!r} must be an array of one number a row, because features_col stacks "
                f"{len(column.stacked)} columns to one input. Received: dtype {array.dtype}, "
                f"shape {array.shape}"
            )
    if len({len(array) for array in arrays}) > 1:
        lengths = dict(zip(column.stacked, map(len, arrays), strict=True))
        raise DataError(f"arrays must have equally many rows. Received: {lengths}")
    return np.stack(arrays, axis=1)
