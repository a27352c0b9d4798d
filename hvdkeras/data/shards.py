"""Data as columnar shards in a store: written from Spark, NumPy or Parquet, described by a small manifest.

A folder of shards has `manifest.json` and, for every part of the data, one .npy file for each column. Spark's
executors write the parts, each attempt of a task under its own names; the manifest lists only the files of
the attempts that Spark accepted. So a retried or speculative task never doubles a row.
"""

from __future__ import annotations

import contextlib
import json
import os
import tempfile
import uuid
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
from pyarrow import fs

from hvdkeras.data.arrays import as_rows
from hvdkeras.data.columns import Column, DataError, check_names, check_type, row_bytes
from hvdkeras.data.parts import Outcome, Part, block_rows, check_outcomes, write_part
from hvdkeras.data.raw import is_vector
from hvdkeras.data.room import room
from hvdkeras.data.stacking import check_stacked_type, stacked_arrow, stacked_numpy
from hvdkeras.data.store import delete_folder, joined, normalized, open_filesystem
from hvdkeras.naming import listed, shown

if TYPE_CHECKING:
    from pyarrow import dataset
    from pyspark.sql import DataFrame

_MANIFEST = "manifest.json"
# File that the driver makes before any part is written. On a host where it does not exist, the store's URL
# names another folder.
_MARKER = "writing"


@dataclass(frozen=True)
class Shards:
    """The data as files in a folder. Small, and the same object for the driver and all ranks.

    Attributes:
        url: the folder: an absolute path or a URL.
        columns: the columns, in their order in batches.
        parts: the parts, in the data's order.
    """

    url: str
    columns: tuple[Column, ...]
    parts: tuple[Part, ...]

    @property
    def rows(self) -> int:
        """Number of all rows."""
        return sum(part.rows for part in self.parts)

    @property
    def distinct(self) -> tuple[Column, ...]:
        """The columns without repetitions: an autoencoder's input and output are stored once."""
        return tuple(dict.fromkeys(self.columns))

    def check_rows(self, num_workers: int, rows: int | None = None) -> None:
        """Checks that every rank gets a row.

        Args:
            num_workers: number of ranks.
            rows: number of rows that the ranks share. Default: all.

        Raises:
            ValueError: there are fewer rows than ranks.
        """
        rows = self.rows if rows is None else rows
        if rows < num_workers:
            raise ValueError(
                f"num_workers must be at most the number of rows, {rows}. Received: {num_workers}"
            )

    def check_columns(self, columns: Sequence[Column]) -> None:
        """Raises DataError unless the shards have the columns that a model requires, in this order."""
        if not _fit(self.columns, columns):
            raise DataError(
                f"the shards in {self.url} must have the columns that the model requires: "
                f"{listed(map(_shown, columns), '; ')}. Received: {listed(map(_shown, self.columns), '; ')}"
            )

    def remove(self) -> None:
        """Deletes the folder. A second call does nothing."""
        delete_folder(self.url)


def _fit(stored: Sequence[Column], required: Sequence[Column]) -> bool:
    # Values that were checked to be finite are right where any are.
    strict = [replace(one, nan=one.nan and other.nan) for one, other in zip(required, stored, strict=False)]
    return len(stored) == len(required) and list(stored) == strict


def _shown(column: Column) -> str:
    return f"{column.name!r} with {column.requirement}"


def open_shards(url: str | os.PathLike) -> Shards:
    """Opens shards that were written before.

    Args:
        url: the folder, `Shards.url`.

    Raises:
        ValueError: the folder has no complete set of shards, or its manifest was not written here.
    """
    url = normalized(url)
    system, path = open_filesystem(url)
    try:
        with system.open_input_stream(f"{path}/{_MANIFEST}") as file:
            content = file.read()
    except FileNotFoundError as error:
        raise ValueError(f"url must be a folder of shards with a {_MANIFEST}. Received: {url!r}") from error
    try:
        return _of_manifest(url, json.loads(content))
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(
            f"url must be a folder of shards with a {_MANIFEST} as hvdkeras writes it. "
            f"Received: {url!r} ({type(error).__name__}: {error})"
        ) from error


def _of_manifest(url: str, manifest: Any) -> Shards:
    columns = tuple(Column(**{**column, "shape": tuple(column["shape"])}) for column in manifest["columns"])
    parts = tuple(Part(int(rows), tuple(files)) for rows, files in manifest["parts"])
    distinct = len(set(columns))
    for part in parts:
        if part.rows < 1 or len(part.files) < distinct:
            raise ValueError(
                f"each part must have rows, and a file for each of {distinct} columns. Received: {part}"
            )
        for file in part.files:
            # The folder may be another's: a path would lead out of it.
            if file != os.path.basename(file) or file in ("", os.curdir, os.pardir):
                raise ValueError(f"parts must name files of the folder. Received: {file!r}")
    return Shards(url, columns, parts)


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
    with system.open_output_stream(f"{path}/{_MANIFEST}") as file:
        file.write(json.dumps(manifest).encode())
    wanted = {_MANIFEST}.union(*(part.files for part in parts))
    for entry in system.get_file_info(fs.FileSelector(path)):
        if entry.base_name not in wanted:
            # The task that wrote the file may delete it at the same time.
            with contextlib.suppress(FileNotFoundError):
                system.delete_file(entry.path)
    return Shards(url, tuple(columns), parts)


def _block(column: Column, batch: pa.RecordBatch) -> pa.Array:
    arrays = [batch.column(name) for name in column.sources]
    return stacked_arrow(column, arrays) if column.stacked else arrays[0]
