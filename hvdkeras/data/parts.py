"""One part of the data on its way into a store: checked, converted and written block by block.

This runs wherever the data is: on Spark's executors, or in the process that holds arrays or reads Parquet.
"""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import pyarrow as pa

from hvdkeras.data.columns import Column, DataError, Problem, convert, row_bytes
from hvdkeras.data.encoded import EncodedFile, offsets_file
from hvdkeras.data.store import ColumnFile, local_path, open_filesystem, upload

# Blocks of this size keep the source, Arrow and the file system busy at once and stay in the caches.
_BLOCK_BYTES = 4 << 20
_BLOCK_ROWS = 1 << 16


@dataclass(frozen=True)
class Part:
    """Rows of the data in files, by their names in the store's folder.

    There is one file for each distinct column, in their order; the encoded columns' offsets follow.
    """

    rows: int
    files: tuple[str, ...]


@dataclass(frozen=True)
class Report:
    """What became of a part.

    Attributes:
        part: Its files; none where it has no rows or can't be used.
        problems: (column's number, what is wrong with some rows of this part).
    """

    part: Part
    problems: tuple[tuple[int, Problem], ...] = ()


def block_rows(columns: Sequence[Column]) -> int:
    """How many rows make a block."""
    return max(1, min(_BLOCK_ROWS, _BLOCK_BYTES // row_bytes(columns)))


def write_part(
    url: str, name: str, columns: Sequence[Column], blocks: Iterable[Sequence[pa.Array | np.ndarray]]
) -> Report:
    """Writes a part's rows to new files.

    Args:
        url: The folder to write to; it exists.
        name: How the files' names begin; nobody else may use it.
        columns: Distinct columns.
        blocks: Blocks of rows, each with one array per column.

    Returns:
        The report. After the first problem rows are only checked, no longer written, and no file is left.
    """
    local = local_path(url)
    with contextlib.ExitStack() as stack:
        folder = local or stack.enter_context(tempfile.TemporaryDirectory(prefix="hvdkeras-"))
        names = [f"{name}-{number}.npy" for number in range(len(columns))]
        names += [offsets_file(file) for file, column in zip(names, columns, strict=True) if column.encoded]
        paths = [os.path.join(folder, file) for file in names]
        try:
            rows, problems = _write_files(paths[: len(columns)], columns, blocks)
        except BaseException:
            _unlink(paths)
            raise
        if problems or not rows:
            _unlink(paths)
            found = tuple((number, problem) for (number, _), problem in problems.items())
            return Report(Part(rows, ()), found)
        if not local:
            system, remote = open_filesystem(url)
            for path, file in zip(paths, names, strict=True):
                upload(path, system, f"{remote}/{file}")
        return Report(Part(rows, tuple(names)))


def _write_files(
    paths: Sequence[str], columns: Sequence[Column], blocks: Iterable[Sequence[pa.Array | np.ndarray]]
) -> tuple[int, dict[tuple[int, str], Problem]]:
    rows, problems = 0, {}
    with contextlib.ExitStack() as files:
        grown = [
            files.enter_context(
                EncodedFile(path) if column.encoded else ColumnFile(path, column.shape, column.dtype)
            )
            for path, column in zip(paths, columns, strict=True)
        ]
        for block in blocks:
            if not len(block[0]):
                continue
            arrays = []
            for number, (column, raw) in enumerate(zip(columns, block, strict=True)):
                array, found = convert(column, raw)
                arrays.append(array)
                for problem in found:
                    _add(problems, number, replace(problem, row=rows + problem.row))
            rows += len(block[0])
            if not problems:
                for file, array in zip(grown, arrays, strict=True):
                    file.append(array)
    return rows, problems


def _add(problems: dict[tuple[int, str], Problem], number: int, problem: Problem) -> None:
    earlier = problems.get((number, problem.what))
    if earlier:
        problem = replace(earlier, count=earlier.count + problem.count)
    problems[number, problem.what] = problem


def _unlink(paths: Iterable[str]) -> None:
    for path in paths:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(path)


def check_reports(columns: Sequence[Column], reports: Sequence[Report]) -> None:
    """Raises one error for all that is wrong with the data.

    Args:
        columns: The distinct columns.
        reports: The parts' reports, in the order of the parts; a single part's rows are the data's.

    Raises:
        DataError: There are problems, or there is no row at all.
    """
    found: dict[tuple[int, str], tuple[int, Problem]] = {}
    for partition, report in enumerate(reports):
        for number, problem in report.problems:
            first, earlier = found.get((number, problem.what), (partition, replace(problem, count=0)))
            found[number, problem.what] = first, replace(earlier, count=earlier.count + problem.count)
    sentences = []
    for number in sorted({number for number, _ in found}):
        listed = [
            describe(problem, partition if len(reports) > 1 else None)
            for (other, _), (partition, problem) in found.items()
            if other == number
        ]
        column = columns[number]
        sentences.append(f"column {column.name!r} must hold {column.wish}. Received: {', '.join(listed)}")
    if sentences:
        raise DataError("; ".join(sentences))
    if not any(report.part.rows for report in reports):
        raise DataError("the data must have at least one row. Received: no rows")


def describe(problem: Problem, partition: int | None = None) -> str:
    """Returns a problem in words."""
    place = f"row {problem.row}" + ("" if partition is None else f" of partition {partition}")
    example = f": {problem.example}" if problem.example else ""
    rows = "1 row" if problem.count == 1 else f"{problem.count} rows"
    return f"{rows} with {problem.what} (the first is {place}{example})"
