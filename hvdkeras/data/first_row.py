"""One row of the data, for what a model leaves open and its data decides."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from hvdkeras.data.columns import Column, DataError, check_names
from hvdkeras.data.shards import Shards
from hvdkeras.data.sources import check_kind, is_dataframe
from hvdkeras.data.writing import open_parquet
from hvdkeras.naming import listed

if TYPE_CHECKING:
    from pyarrow import dataset


def first_row(data: Any, names: Sequence[str]) -> dict[str, Any]:
    """Returns a row of the data without nulls in these columns, as NumPy arrays, strings or bytes.

    It costs the read of a few rows; of a DataFrame, a Spark job.

    Raises:
        DataError: a column is not in the data, or has no row without nulls.
    """
    check_kind(data)
    names = list(dict.fromkeys(names))
    if isinstance(data, Shards):
        known = {column.name: column for column in data.columns}
        check_names([Column(name, (), "float32") for name in names], known)
        return {name: np.zeros(known[name].shape, known[name].dtype) for name in names}
    columns = [Column(name, (), "float32") for name in names]
    if is_dataframe(data):
        from hvdkeras.data.frames import first_values

        check_names(columns, data.columns)
        row = first_values(data, names)
    elif isinstance(data, Mapping):
        check_names(columns, data)
        row = next(zip(*(data[name][:1] for name in names), strict=True), None)
    else:
        source = open_parquet(data)
        check_names(columns, source.schema.names)
        row = _first_of_parquet(source, names)
    if row is None:
        raise DataError(
            f"the data must have a row without nulls in the columns {listed(names)}. Received: none"
        )
    return dict(zip(names, map(_as_array, row), strict=True))


def _first_of_parquet(source: dataset.Dataset, names: list[str]) -> list[Any] | None:
    for batch in source.to_batches(columns=names, batch_size=64, batch_readahead=1, fragment_readahead=1):
        for row in batch.to_pylist():
            if all(row[name] is not None for name in names):
                return [row[name] for name in names]
    return None


def _as_array(value: Any) -> Any:
    if isinstance(value, str | bytes | np.str_ | np.bytes_):
        return value
    if isinstance(value, Mapping):
        # A vector, as Spark stores it in Parquet.
        return np.zeros(value["size"]) if value["size"] else np.asarray(value["values"])
    return np.asarray(value)
