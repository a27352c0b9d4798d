"""The kinds of data that `train` takes: how they are recognized, and written as shards."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from hvdkeras.data.columns import Column, Form
from hvdkeras.data.decoding import Decoder
from hvdkeras.data.raw import as_lists, is_list, is_number, plain_type
from hvdkeras.data.shards import Shards
from hvdkeras.data.writing import open_parquet, write_arrays, write_dataframe, write_parquet
from hvdkeras.launch.cluster import is_connect
from hvdkeras.naming import listed


def is_dataframe(data: Any) -> bool:
    """Returns whether `data` is a Spark DataFrame, without importing Spark."""
    return hasattr(data, "sparkSession")


def has_executors(data: Any) -> bool:
    """Returns whether ranks can run where `data` is: on the executors of a DataFrame's classic session.

    A session of Spark Connect has executors, too, but no SparkContext to launch ranks on them.
    """
    return is_dataframe(data) and not is_connect(data.sparkSession)


def by_column(data: Any) -> Any:
    """Returns a pandas DataFrame as a dict of arrays by column name; other data as it is.

    Raises:
        ValueError: two columns have one name.
    """
    if not hasattr(data, "iloc"):
        return data
    names = [str(name) for name in data.columns]
    if len(set(names)) < len(names):
        twice = sorted({name for name in names if names.count(name) > 1})
        raise ValueError(f"a pandas DataFrame's columns must have different names. Received: {listed(twice)}")
    return {name: _as_numpy(data.iloc[:, number]) for number, name in enumerate(names)}


def _as_numpy(column: Any) -> np.ndarray:
    # Only pandas's own nullable types have it; as objects their numbers would not be recognized.
    kind = getattr(column.dtype, "numpy_dtype", None)
    if kind is None or kind.kind not in "fiub":
        return column.to_numpy()
    return column.to_numpy(np.float64, na_value=np.nan) if column.hasnans else column.to_numpy(kind)


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
    check_kind(data)
    if is_dataframe(data):
        return write_dataframe(data, columns, store)
    if isinstance(data, Mapping):
        return write_arrays(data, columns, store)
    return write_parquet(data, columns, store)


def forms(data: Any, names: Sequence[str], decode: Mapping[str, Decoder]) -> dict[str, Form]:
    """Returns the form of the rows of some columns.

    It follows from the columns' types where they contain it, else from the first row, which is read for that.

    Args:
        data: as in `write`.
        names: of columns.
        decode: by name, the functions that decode columns of bytes.

    Returns:
        The forms by name, of those columns that the data has and whose rows are numbers.
    """
    check_kind(data)
    if isinstance(data, Shards):
        return {column.name: Form(column.shape, column.dtype) for column in data.columns}
    if isinstance(data, Mapping):
        known = {name: data[name][:1] for name in names if name in data}
    else:
        known = _parquet_or_spark(data, names)
    found = {name: _form(rows, decode.get(name)) for name, rows in known.items()}
    return {name: form for name, form in found.items() if form is not None}


def _parquet_or_spark(data: Any, names: Sequence[str]) -> dict[str, pa.DataType | pa.Array]:
    """The Arrow types of columns; where a type leaves the length of lists open, the first row."""
    if is_dataframe(data):
        from hvdkeras.data.frames import arrow_types, first_row

        types = arrow_types(data, names)
    else:
        parquet = open_parquet(data)
        types = {name: parquet.schema.field(name).type for name in names if name in parquet.schema.names}
    unknown = [name for name, kind in types.items() if is_list(plain_type(kind))]
    if unknown:
        types.update(
            first_row(data, unknown)
            if is_dataframe(data)
            else {name: parquet.head(1, columns=[name])[name].combine_chunks() for name in unknown}
        )
    return types


def _form(rows: pa.DataType | pa.Array | np.ndarray, decoder: Decoder | None) -> Form | None:
    """The form of a type of scalars, or of one row."""
    if isinstance(rows, pa.DataType):
        return Form((), _fed_dtype(rows.to_pandas_dtype())) if is_number(rows) else None
    if not len(rows):
        return None
    if decoder is not None:
        value = rows[0].as_py() if isinstance(rows, pa.Array) else rows[0]
        try:
            rows = np.asarray(decoder(bytes(value)))[np.newaxis]
        except Exception:
            return None  # the check of the decoder names the row
    if isinstance(rows, pa.Array):
        return _arrow_form(rows)
    try:
        rows = np.asarray(list(rows))
    except ValueError:
        return None  # lists of unequal lengths
    return Form(rows.shape[1:], _fed_dtype(rows.dtype)) if rows.dtype.kind in "fiub" else None


def _arrow_form(row: pa.Array) -> Form | None:
    """The form of one row in Arrow; None where its lists have unequal lengths or nulls."""
    values, shape = as_lists(row), []
    while is_list(values.type):
        lengths = set(pc.list_value_length(values).to_pylist())
        if len(lengths) != 1 or None in lengths:
            return None
        shape += lengths
        values = values.flatten()
    return Form(tuple(shape), _fed_dtype(values.type.to_pandas_dtype())) if is_number(values.type) else None


def _fed_dtype(dtype: Any) -> str:
    kind = np.dtype(dtype)
    return kind.name if kind.kind in "iub" else "float32"


def check_kind(data: Any) -> None:
    """Raises ValueError unless `data` is of a kind that `train` takes."""
    if not is_dataframe(data) and not isinstance(data, Shards | Mapping | str | os.PathLike):
        raise ValueError(
            "data must be a Spark or pandas DataFrame, a dict of NumPy arrays by column name, the path of "
            f"Parquet files, or Shards. Received: {type(data).__name__}"
        )
