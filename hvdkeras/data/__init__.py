"""Data on its way from a DataFrame, NumPy arrays or Parquet through columnar shards to a rank's batches."""

from hvdkeras.data.columns import Column, DataError
from hvdkeras.data.rows import Rows
from hvdkeras.data.shards import Shards, open_shards
from hvdkeras.data.writing import write_arrays, write_dataframe, write_parquet

__all__ = [
    "Column",
    "DataError",
    "Rows",
    "Shards",
    "open_shards",
    "write_arrays",
    "write_dataframe",
    "write_parquet",
]
