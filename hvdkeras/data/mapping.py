"""A rank's rows of the shards as mapped memory: large parts of the data one by one, small ones together."""

from __future__ import annotations

import itertools
import os
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from hvdkeras.data.columns import Column
from hvdkeras.data.encoded import EncodedRows, map_encoded, open_encoded
from hvdkeras.data.parts import Part
from hvdkeras.data.store import local_path, map_file, map_rows, open_filesystem
from hvdkeras.data.vectors import SparseRows, map_sparse, open_sparse, sparse_files

if TYPE_CHECKING:
    from hvdkeras.data.shards import Shards

# Each mapped file is one of the 65,530 maps that Linux gives a process, and each piece costs a batch a few
# microseconds. So from this number of parts on, neighbours are copied into one file, up to so many bytes.
_MANY_PARTS = 512
_PIECE_BYTES = 4 << 20
_MOST_MAPS = 1 << 15

Piece = np.ndarray | EncodedRows | SparseRows
_Range = tuple[Part, int, int]


def map_columns(shards: Shards, start: int, stop: int) -> tuple[np.ndarray, dict[Column, list[Piece]]]:
    """Maps rows of the data.

    Args:
        shards: the data.
        start: the first row.
        stop: the end of the rows.

    Returns:
        bounds: where each of the k mapped pieces begins, counted from `start`, and where the last one ends,
            shape `(k + 1,)`.
        pieces: for every distinct column its k pieces.
    """
    ranges, at = [], 0
    for part in shards.parts:
        low, high = max(start - at, 0), min(stop - at, part.rows)
        if low < high:
            ranges.append((part, low, high))
        at += part.rows
    local = local_path(shards.url)
    # Parts of another machine are copied to this one, all to one file.
    groups = [ranges] if local is None else _grouped(local, ranges)
    bounds = np.cumsum([0, *(_rows(group) for group in groups)])
    pieces: dict[Column, list[Piece]] = {}
    for number, column in enumerate(shards.distinct):
        are_copied = [local is None or len(group) > 1 for group in groups]
        copied = list(itertools.chain(*itertools.compress(groups, are_copied)))
        copy = _copied(shards.url, column, number, copied) if copied else None
        pieces[column], at = [], 0
        for group, is_copied, first in zip(groups, are_copied, (start + bounds[:-1]).tolist(), strict=True):
            if is_copied:
                source, low, high = copy, at, at + _rows(group)
                at = high
            else:
                ((part, low, high),) = group
                source = _opened(os.path.join(local, part.files[number]), column)
            pieces[column].append(_cut(source, low, high, first))
    return bounds, pieces


def dense(pieces: Sequence[np.ndarray | SparseRows], column: Column) -> np.ndarray:
    """Returns the rows of all pieces of a column of numbers, shape `(rows, *shape)`."""
    arrays = []
    for piece in pieces:
        if isinstance(piece, SparseRows):
            rows = np.arange(len(piece.offsets) - 1)
            piece.fill(rows, out := np.zeros((len(rows), *column.shape), column.dtype), rows)
            piece = out
        arrays.append(piece)
    return np.concatenate(arrays)


def _rows(ranges: Sequence[_Range]) -> int:
    return sum(high - low for _, low, high in ranges)


def _grouped(folder: str, ranges: Sequence[_Range]) -> list[list[_Range]]:
    """Groups neighbours of many parts so that each group has a piece's bytes."""
    if len(ranges) < _MANY_PARTS:
        return [[one] for one in ranges]
    groups, size = [[]], 0
    for one in ranges:
        own = sum(os.path.getsize(os.path.join(folder, file)) for file in one[0].files)
        if groups[-1] and size + own > _PIECE_BYTES:
            groups.append([])
            size = 0
        groups[-1].append(one)
        size += own
    return groups if len(groups) * len(ranges[0][0].files) < _MOST_MAPS else [list(ranges)]


def _opened(path: str, column: Column) -> Piece:
    if column.of_bytes:
        return open_encoded(path)
    return open_sparse(path) if sparse_files(path) else map_file(path)


def _copied(url: str, column: Column, number: int, ranges: Sequence[_Range]) -> Piece:
    system, folder = open_filesystem(url)
    files = [(f"{folder}/{part.files[number]}", low, high) for part, low, high in ranges]
    if column.of_bytes:
        return map_encoded(system, files)
    if any(sparse_files(file) for file, _, _ in files):
        return map_sparse(system, files, column)
    return map_rows(system, files, column.shape, column.dtype)


def _cut(source: Piece, low: int, high: int, first: int) -> Piece:
    if isinstance(source, EncodedRows):
        return source.part(low, high, first)
    return source.part(low, high) if isinstance(source, SparseRows) else source[low:high]
