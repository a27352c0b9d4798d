"""Writes one part of the data to a store: checked, converted and appended block by block.

This runs where the data is: on Spark's executors, or in the process that has the arrays or reads Parquet.
"""

from __future__ import annotations

import contextlib
import glob
import itertools
import os
import tempfile
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import pyarrow as pa

from hvdkeras.data import rounding
from hvdkeras.data.columns import Column, DataError, row_bytes
from hvdkeras.data.conversion import Problem, convert
from hvdkeras.data.encoded import EncodedFile
from hvdkeras.data.ragged import to_bytes
from hvdkeras.data.rounding import is_rounded
from hvdkeras.data.store import local_path, open_filesystem, upload
from hvdkeras.data.vectors import NumbersFile, SparseRows, sparse_rows
from hvdkeras.naming import listed

# Blocks of this size fit in the caches, and let the source, Arrow and the file system work at the same time.
_BLOCK_BYTES = 4 << 20
_BLOCK_ROWS = 1 << 16
# Assumed bytes of a row of a wide vector, which is sparse nearly always. If it is not, 64 rows of a million
# values are 256 MB, which fits in a task's memory.
_VECTOR_BYTES = 64 << 10


@dataclass(frozen=True)
class Part:
    """Some rows of the data, in files.

    Attributes:
        rows: number of rows.
        files: names of the files in the store's folder: one for each distinct column, in the columns' order,
            then those that belong to the files of bytes and of sparse rows.
    """

    rows: int
    files: tuple[str, ...]


@dataclass(frozen=True)
class Outcome:
    """The outcome of writing a part.

    Attributes:
        part: the part. It has no files if it has no rows or its rows can't be used.
        problems: (column's number, the problem of some rows), for each problem found.
        rounded: numbers of the columns of integers that are rounded.
    """

    part: Part
    problems: tuple[tuple[int, Problem], ...] = ()
    rounded: tuple[int, ...] = ()


def block_rows(columns: Sequence[Column], vectors: Collection[Column] = ()) -> int:
    """Returns the number of rows in a block.

    Args:
        columns: distinct columns.
        vectors: those of them that are vectors in the data.
    """
    size = sum(
        min(row_bytes([one]), _VECTOR_BYTES) if one in vectors else row_bytes([one]) for one in columns
    )
    return max(1, min(_BLOCK_ROWS, _BLOCK_BYTES // size))


def write_part(
    url: str, name: str, columns: Sequence[Column], blocks: Iterable[Sequence[pa.Array | np.ndarray]]
) -> Outcome:
    """Writes a part's rows to new files.

    Args:
        url: the folder to write to; it exists.
        name: prefix of the files' names; no other part may have it.
        columns: distinct columns.
        blocks: blocks of rows, each with one array for each column.

    Returns:
        The outcome. After the first problem the further rows are checked but not written, and the files are
        deleted.
    """
    local = local_path(url)
    with contextlib.ExitStack() as stack:
        folder = local or stack.enter_context(tempfile.TemporaryDirectory(prefix="hvdkeras-"))
        paths = [os.path.join(folder, f"{name}-{number}.npy") for number in range(len(columns))]
        try:
            grown, rows, problems, rounded = _write_files(paths, columns, blocks)
        except BaseException:
            _unlink(glob.glob(f"{glob.escape(os.path.join(folder, name))}-*.npy"))
            raise
        if problems or not rows:
            # Not by a search: of many empty parts, each would list the files of all others.
            _unlink(itertools.chain(*(file.paths for file in grown)))
            found = tuple((number, problem) for (number, _), problem in problems.items())
            return Outcome(Part(rows, ()), found)
        paths = [file.paths[0] for file in grown] + [path for file in grown for path in file.paths[1:]]
        names = list(map(os.path.basename, paths))
        if not local:
            system, remote = open_filesystem(url)
            for path, file in zip(paths, names, strict=True):
                upload(path, system, f"{remote}/{file}")
        return Outcome(Part(rows, tuple(names)), rounded=tuple(sorted(rounded)))


def _write_files(
    paths: Sequence[str], columns: Sequence[Column], blocks: Iterable[Sequence[pa.Array | np.ndarray]]
) -> tuple[list[EncodedFile | NumbersFile], int, dict[tuple[int, str], Problem], set[int]]:
    rows, problems, rounded = 0, {}, set()
    with contextlib.ExitStack() as files:
        grown = [
            files.enter_context(EncodedFile(path) if column.of_bytes else NumbersFile(path, column))
            for path, column in zip(paths, columns, strict=True)
        ]
        for block in blocks:
            if not len(block[0]):
                continue
            arrays = []
            for number, (column, raw) in enumerate(zip(columns, block, strict=True)):
                array, found = _converted(column, raw)
                arrays.append(array)
                if is_rounded(column, raw, array):
                    rounded.add(number)
                for problem in found:
                    _add(problems, number, replace(problem, row=rows + problem.row))
            rows += len(block[0])
            if not problems:
                for file, array in zip(grown, arrays, strict=True):
                    file.append(array)
    return grown, rows, problems, rounded


def _converted(
    column: Column, raw: pa.Array | np.ndarray
) -> tuple[pa.Array | np.ndarray | SparseRows | None, list[Problem]]:
    if column.of_bytes:
        return convert(column, raw) if column.encoded else to_bytes(column, raw)
    sparse = sparse_rows(column, raw) if isinstance(raw, pa.Array) else None
    return convert(column, raw) if sparse is None else (sparse, [])


def _add(problems: dict[tuple[int, str], Problem], number: int, problem: Problem) -> None:
    earlier = problems.get((number, problem.what))
    if earlier:
        problem = replace(earlier, count=earlier.count + problem.count)
    problems[number, problem.what] = problem


def _unlink(paths: Iterable[str]) -> None:
    for path in paths:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(path)


def check_outcomes(columns: Sequence[Column], outcomes: Sequence[Outcome]) -> None:
    """Raises one error for all problems of the data; warns of integers that are rounded.

    Args:
        columns: the distinct columns.
        outcomes: the outcomes of all parts, in the parts' order. With several parts the error names a row by
            its partition and its number there, with one part by its number in the data.

    Raises:
        DataError: there are problems, or there is no row at all.
    """
    found: dict[tuple[int, str], tuple[int, Problem]] = {}
    for partition, outcome in enumerate(outcomes):
        for number, problem in outcome.problems:
            first, earlier = found.get((number, problem.what), (partition, replace(problem, count=0)))
            found[number, problem.what] = first, replace(earlier, count=earlier.count + problem.count)
    sentences = []
    for number in sorted({number for number, _ in found}):
        described = [
            describe(problem, partition if len(outcomes) > 1 else None)
            for (other, _), (partition, problem) in found.items()
            if other == number
        ]
        column = columns[number]
        sentences.append(
            f"column {column.name!r} must hold {column.requirement}. Received: {', '.join(described)}"
        )
    if sentences:
        faults = ((columns[number].name, what) for number, what in found)
        raise DataError(listed(sentences, "; ", longest=400), faults)
    if not any(outcome.part.rows for outcome in outcomes):
        raise DataError("the data must have at least one row. Received: no rows")
    rounding.warn({columns[number].name for outcome in outcomes for number in outcome.rounded})


def describe(problem: Problem, partition: int | None = None) -> str:
    """Returns a problem in words."""
    place = f"row {problem.row}" + ("" if partition is None else f" of partition {partition}")
    example = f": {problem.example}" if problem.example else ""
    rows = "1 row" if problem.count == 1 else f"{problem.count} rows"
    return f"{rows} with {problem.what} (the first is {place}{example})"
