"""Data as columnar shards in a store, described by a small manifest.

A folder of shards has `manifest.json` and, for every part of the data, one .npy file for each column.
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from hvdkeras.data.columns import Column, DataError
from hvdkeras.data.parts import Part
from hvdkeras.data.store import delete_folder, normalized, open_filesystem
from hvdkeras.naming import listed

MANIFEST = "manifest.json"


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
        with system.open_input_stream(f"{path}/{MANIFEST}") as file:
            content = file.read()
    except FileNotFoundError as error:
        raise ValueError(f"url must be a folder of shards with a {MANIFEST}. Received: {url!r}") from error
    try:
        return _of_manifest(url, json.loads(content))
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(
            f"url must be a folder of shards with a {MANIFEST} as hvdkeras writes it. "
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
