"""Writes shards, in a new folder of a store, from NumPy arrays, Parquet files or a Spark DataFrame.

Spark's executors write the parts, each attempt of a task under its own names; the manifest lists only the
files of the attempts that Spark accepted. So a retried or speculative task never doubles a row.
"""

from __future__ import annotations

import contextlib
import json
import os
import tempfile
import uuid
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
from pyarrow import fs

from hvdkeras.data.arrays import as_rows
from hvdkeras.data.columns import Column, DataError, check_names, check_type, row_bytes
from hvdkeras.data.parts import Outcome, block_rows, check_outcomes, write_part
from hvdkeras.data.raw import is_vector
from hvdkeras.data.room import room
from hvdkeras.data.shards import MANIFEST, Shards
from hvdkeras.data.stacking import check_stacked_type, stacked_arrow, stacked_numpy
from hvdkeras.data.store import delete_folder, joined, normalized, open_filesystem
from hvdkeras.naming import listed, shown

if TYPE_CHECKING:
    from pyarrow import dataset
    from pyspark.sql import DataFrame

# File that the driver makes before any part is written. On a host where it does not exist, the store's URL
# names another folder.
_MARKER = "writing"


def write_arrays(
    arrays: Mapping[str, np.ndarray], columns: Sequence[Column], store: str | os.PathLike | None = None
) -> Shards:
    """Writes NumPy arrays.

    Args:
        arrays: by column name, arrays whose first axis is the row. For an encoded column a list or an array
            of objects, with bytes in each row.
        columns: as in `write_dataframe`.
        store: as in `write_dataframe`.

    Returns:
        As `write_dataframe`.

    Raises:
        DataError: as in `write_dataframe`.
        ValueError: the store can't be written.
    """
    check_names(columns, arrays)
    distinct = tuple(dict.fromkeys(columns))
    sources = [
        stacked_numpy(column, [arrays[name] for name in column.stacked])
        if column.stacked
        else as_rows(column, arrays[column.name])
        for column in distinct
    ]
    lengths = {column.name: len(source) for column, source in zip(distinct, sources, strict=True)}
    if len(set(lengths.values())) > 1:
        raise DataError(f"arrays must have equally many rows. Received: {shown(lengths)}")
    step = block_rows(distinct)
    blocks = (
        [source[start : start + step] for source in sources] for start in range(0, len(sources[0]), step)
    )
    with _new_folder(store, _bytes(distinct, len(sources[0]))) as url:
        return _finish(url, columns, [write_part(url, "part", distinct, blocks)])


def open_parquet(path: str | os.PathLike | Sequence[str]) -> dataset.Dataset:
    """Opens Parquet data.

    Args:
        path: as in `write_parquet`.

    Raises:
        ValueError: there is no Parquet data.
    """
    from pyarrow import dataset

    try:
        if isinstance(path, str | os.PathLike):
            system, source = open_filesystem(normalized(path))
        else:
            system, source = None, list(path)
        return dataset.dataset(source, format="parquet", partitioning="hive", filesystem=system)
    except (FileNotFoundError, pa.ArrowInvalid) as error:
        raise ValueError(f"path must name Parquet data. Received: {shown(path)} ({error})") from error


def write_parquet(
    path: str | os.PathLike | Sequence[str],
    columns: Sequence[Column],
    store: str | os.PathLike | None = None,
) -> Shards:
    """Writes Parquet data, block by block, without Spark.

    Args:
        path: a file, a folder of files (as Spark writes it, partitioned or not) or a list of files; local
            or a URL.
        columns: as in `write_dataframe`.
        store: as in `write_dataframe`.

    Returns:
        As `write_dataframe`.

    Raises:
        DataError: as in `write_dataframe`.
        ValueError: `path` names no Parquet data, or the store can't be written.
    """
    from pyarrow import dataset

    data = open_parquet(path)
    check_names(columns, data.schema.names)
    distinct = tuple(dict.fromkeys(columns))
    for column in distinct:
        for name in column.sources:
            kind = data.schema.field(name).type
            if column.stacked:
                check_stacked_type(column, name, kind, str(kind))
            else:
                check_type(column, kind, str(kind))
    vectors = {one for one in distinct if not one.stacked and is_vector(data.schema.field(one.name).type)}
    names = [name for column in distinct for name in column.sources]
    # Little is read ahead: the memory must not grow with the size of the files. Arrow's own buffer would keep
    # all bytes of a file until its last row.
    scanner = data.scanner(
        columns=list(dict.fromkeys(names)),
        batch_size=block_rows(distinct, vectors),
        batch_readahead=4,
        fragment_readahead=1,
        fragment_scan_options=dataset.ParquetFragmentScanOptions(pre_buffer=False),
    )
    blocks = ([_block(column, batch) for column in distinct] for batch in scanner.to_batches())
    with _new_folder(store, None if vectors else _bytes(distinct, data.count_rows())) as url:
        return _finish(url, columns, [write_part(url, "part", distinct, blocks)])


def write_dataframe(
    df: DataFrame, columns: Sequence[Column], store: str | os.PathLike | None = None
) -> Shards:
    """Writes a Spark DataFrame in one pass on the executors, a part for each partition.

    Args:
        df: columns of numbers, arrays of numbers of any nesting, dense or sparse vectors, or bytes (each a
            uint8 value, or of any length for an encoded column).
        columns: what the model requires. A column of the data may be named twice.
        store: a local folder or a URL that exists on the driver, the executors and the ranks. The shards get
            a new folder in it. None: a private temporary folder, which is enough for one machine.

    Returns:
        The shards. `remove` deletes them.

    Raises:
        DataError: the columns or their rows do not fit the model, or there are no rows. Nothing is left in
            the store.
        ValueError: the store can't be written, or it does not exist on an executor.
    """
    from hvdkeras.data.frames import select, write_partitions

    distinct = tuple(dict.fromkeys(columns))
    selected = select(df, distinct)
    with _new_folder(store) as url:
        outcomes, blind = write_partitions(selected, distinct, url, joined(url, _MARKER))
        if blind:
            raise ValueError(
                "store must be a folder or URL that the driver, the executors and the ranks see. "
                f"Received: {store!r} ({url} is not there on {listed(blind)})"
            )
        return _finish(url, columns, outcomes)


@contextlib.contextmanager
def _new_folder(store: str | os.PathLike | None, needed: int | None = None) -> Iterator[str]:
    """Makes a new folder for shards of `needed` bytes, and deletes it if the block raises."""
    if store is None:
        url = tempfile.mkdtemp(prefix="hvdkeras-")
    else:
        url = joined(normalized(store), f"shards-{uuid.uuid4().hex[:12]}")
    try:
        system, path = open_filesystem(url)
        system.create_dir(path, recursive=True)
        with system.open_output_stream(f"{path}/{_MARKER}") as file:
            file.write(b"This folder is incomplete, or is still being written.")
    except OSError as error:
        raise ValueError(
            f"store must be a folder or URL that can be written. Received: {store!r} ({error})"
        ) from error
    try:
        with room(url, needed):
            yield url
    except BaseException:
        delete_folder(url)
        raise


def _bytes(columns: Sequence[Column], rows: int) -> int | None:
    """What rows take in the shards; None where they are of any length."""
    return None if any(column.of_bytes for column in columns) else rows * row_bytes(columns)


def _finish(url: str, columns: Sequence[Column], outcomes: Sequence[Outcome]) -> Shards:
    """Writes the manifest of the parts, deletes all other files, and returns the shards."""
    check_outcomes(tuple(dict.fromkeys(columns)), outcomes)
    parts = tuple(outcome.part for outcome in outcomes if outcome.part.rows)
    manifest = {
        "columns": [asdict(column) for column in columns],
        "parts": [(part.rows, part.files) for part in parts],
    }
    system, path = open_filesystem(url)
    with system.open_output_stream(f"{path}/{MANIFEST}") as file:
        file.write(json.dumps(manifest).encode())
    wanted = {MANIFEST}.union(*(part.files for part in parts))
    for entry in system.get_file_info(fs.FileSelector(path)):
        if entry.base_name not in wanted:
            # The task that wrote the file may delete it at the same time.
            with contextlib.suppress(FileNotFoundError):
                system.delete_file(entry.path)
    return Shards(url, tuple(columns), parts)


def _block(column: Column, batch: pa.RecordBatch) -> pa.Array:
    arrays = [batch.column(name) for name in column.sources]
    return stacked_arrow(column, arrays) if column.stacked else arrays[0]
