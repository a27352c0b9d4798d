"""The kinds of data that `train` takes: how they are recognized, and written as shards."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from hvdkeras.data.columns import Column
from hvdkeras.data.shards import Shards, open_parquet, write_arrays, write_dataframe, write_parquet


def is_dataframe(data: Any) -> bool:
    """Returns whether `data` is a Spark DataFrame, without importing Spark."""
    return hasattr(data, "sparkSession")


def write(data: Any, columns: Sequence[Column], store: str | None) -> Shards:
    """Writes data as shards, in a new folder in `store`.

    Args:
        data: a Spark DataFrame, a dict of NumPy arrays by column name, or the path of Parquet files.
        columns: what the model requires.
        store: as in `write_dataframe`.

    Raises:
        DataError: a column or its rows do not fit the model.
        ValueError: `data` is of another kind, or the store can't be written.
    """
    _check_kind(data)
    if is_dataframe(data):
        return write_dataframe(data, columns, store)
    if isinstance(data, Mapping):
        return write_arrays(data, columns, store)
    return write_parquet(data, columns, store)


def scalar_columns(data: Any) -> set[str]:
    """Returns the names of the columns that have one number in each row."""
    _check_kind(data)
    if isinstance(data, Shards):
        return {column.name for column in data.columns if column.shape == ()}
    if is_dataframe(data):
        return {name for name, kind in data.dtypes if kind != "vector" and not kind.startswith("array")}
    if isinstance(data, Mapping):
        return {name for name, array in data.items() if np.ndim(array[:1]) == 1}
    return {field.name for field in open_parquet(data).schema if not pa.types.is_nested(field.type)}


def _check_kind(data: Any) -> None:
    if not is_dataframe(data) and not isinstance(data, Shards | Mapping | str | os.PathLike):
        raise ValueError(
            "data must be a Spark DataFrame, a dict of NumPy arrays by column name, the path of Parquet "
            f"files, or Shards. Received: {type(data).__name__}"
        )
