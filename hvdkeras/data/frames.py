"""The Spark side of the shards: the selection from a DataFrame, and the tasks that write its partitions."""

from __future__ import annotations

import contextlib
import json
import logging
import math
import socket
import uuid
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np
import pyarrow as pa
from pyarrow import fs
from pyspark import TaskContext
from pyspark.ml.linalg import VectorUDT
from pyspark.mllib.linalg import VectorUDT as OldVectorUDT
from pyspark.sql import Column as SparkColumn
from pyspark.sql import DataFrame, SparkSession, functions
from pyspark.sql.pandas.types import to_arrow_type
from pyspark.sql.types import (
    ArrayType,
    BooleanType,
    DataType,
    FractionalType,
    IntegralType,
    StructField,
    StructType,
)

from hvdkeras.data.columns import Column, check_names, check_type
from hvdkeras.data.conversion import Problem
from hvdkeras.data.parts import Outcome, Part, block_rows, write_part
from hvdkeras.data.stacking import check_stacked_type
from hvdkeras.data.store import open_filesystem
from hvdkeras.launch.cluster import is_connect, is_local
from hvdkeras.launch.python_workers import forget_archives, spare_modules

logger = logging.getLogger("hvdkeras")

# A Spark task with Python takes 0.06 seconds, in which it mostly waits for its first rows. So many tasks for
# each slot keep slots busy though partitions differ. On a cluster, at least so many in all keep machines of
# different speed busy; more where Spark may add slots meanwhile.
_MOST_WAVES = 16
_MOST_TASKS, _MOST_OF_GROWING = 256, 1024
_BATCH_ROWS = "spark.sql.execution.arrow.maxRecordsPerBatch"


def select(df: DataFrame, columns: Sequence[Column]) -> DataFrame:
    """Selects the required columns as types that Arrow has, after a check of the DataFrame's schema.

    Raises:
        DataError: a column is missing, or values of its type can't be converted.
    """
    fields = _fields_of(df)
    check_names(columns, fields)
    chosen = [
        _stacked(column, [fields[name] for name in column.stacked])
        if column.stacked
        else _expression(column, fields[column.name])
        for column in columns
    ]
    return df.select(*(one.alias(f"c{number}") for number, one in enumerate(chosen)))


def _fields_of(df: DataFrame) -> dict[str, StructField]:
    """The fields by name. A look-up in Spark's own schema takes as long as the DataFrame is wide."""
    # Of columns with one name the first, as Spark's look-up returns it.
    return {field.name: field for field in reversed(df.schema.fields)}


def first_values(df: DataFrame, names: Sequence[str]) -> list[Any] | None:
    """Returns the columns' values in a row that has nulls in none of them; None if there is no such row."""
    row = df.select(*(functions.col(_quoted(name)) for name in names)).dropna().first()
    return None if row is None else list(map(_plain, row))


def _plain(value: Any) -> Any:
    """A value of a row as NumPy and Arrow take it: vectors as arrays."""
    if isinstance(value, bytearray):
        return bytes(value)
    return value.toArray() if hasattr(value, "toArray") else value


def _expression(column: Column, field: StructField) -> SparkColumn:
    kind = field.dataType
    source = functions.col(_quoted(field.name))
    if column.is_string:
        check_type(column, _arrow_type(kind), kind.simpleString())
        return source
    # The JVM converts floats to the stored width: that halves the bytes that doubles would take to Python.
    # Whole numbers are not cast: a cast would hide fractions, overflows and the rounding of integers.
    width = {"f8": "double"}.get(np.dtype(column.dtype).str[1:], "float")
    whole = np.dtype(column.dtype).kind != "f" or column.one_hot
    if isinstance(kind, VectorUDT | OldVectorUDT):
        size = field.metadata.get("ml_attr", {}).get("num_attrs")
        known = pa.list_(pa.float64()) if size is None else pa.list_(pa.float64(), size)
        check_type(column, known, "vectors" if size is None else f"vectors of {size}")
        return _fields(source, "float" if width == "float" and not whole else "double")
    check_type(column, _arrow_type(kind), kind.simpleString())
    cast = not whole and isinstance(_innermost(kind), FractionalType)
    return source.cast(_of_width(kind, width)) if cast else source


def _fields(vector: SparkColumn, width: str) -> SparkColumn:
    """The fields of vectors, which leave sparse ones sparse; null for null."""
    fields = functions.unwrap_udt(vector)
    values = fields["values"].cast(f"array<{width}>").alias("values")
    kept = (fields[name].alias(name) for name in ("type", "size", "indices"))
    return functions.when(vector.isNotNull(), functions.struct(*kept, values))


def _innermost(kind: DataType) -> DataType:
    return _innermost(kind.elementType) if isinstance(kind, ArrayType) else kind


def _stacked(column: Column, fields: Sequence[StructField]) -> SparkColumn:
    """Several columns of numbers as one column of arrays."""
    for field in fields:
        kind = field.dataType
        check_stacked_type(column, field.name, _arrow_type(kind), kind.simpleString())
    sources = [functions.col(_quoted(field.name)) for field in fields]
    width = stacked_width([field.dataType for field in fields], column.dtype)
    width = "double" if column.nan and width == "bigint" else width
    parts = [source.cast(width) for source in sources]
    if column.nan:
        parts = [functions.coalesce(part, functions.lit(math.nan).cast(width)) for part in parts]
    return functions.array(*parts)


def stacked_width(kinds: Sequence[DataType], dtype: str | np.dtype) -> str:
    """Returns Spark's type to which columns of numbers are cast before they are an array.

    An array of different types would have the one that Spark chooses, a float for a long and a float.

    Args:
        kinds: the columns' types.
        dtype: of the model's input.
    """
    if all(isinstance(kind, IntegralType | BooleanType) for kind in kinds):
        return "bigint"
    is_narrow = np.dtype(dtype) == np.float32 and all(isinstance(kind, FractionalType) for kind in kinds)
    return "float" if is_narrow else "double"


def _of_width(kind: DataType, width: str) -> str:
    return f"array<{_of_width(kind.elementType, width)}>" if isinstance(kind, ArrayType) else width


def _arrow_type(kind: DataType) -> pa.DataType | None:
    try:
        return to_arrow_type(kind)
    except TypeError:
        return None


def arrow_types(df: DataFrame, names: Sequence[str]) -> dict[str, pa.DataType]:
    """Returns the Arrow types of those columns that a DataFrame has; vectors are lists of doubles."""
    types, fields = {}, _fields_of(df)
    for name in names:
        if name in fields:
            kind = fields[name].dataType
            is_vector = isinstance(kind, VectorUDT | OldVectorUDT)
            types[name] = pa.list_(pa.float64()) if is_vector else _arrow_type(kind)
    return {name: kind for name, kind in types.items() if kind is not None}


def first_row(df: DataFrame, names: Sequence[str]) -> dict[str, pa.Array]:
    """Returns the first row of some columns, of the types that `arrow_types` returns; runs a Spark job."""
    types = arrow_types(df, names)
    row = df.select(*(functions.col(_quoted(name)).alias(name) for name in names)).first()
    if row is None:
        return {name: pa.array([], kind) for name, kind in types.items()}
    return {name: pa.array([_plain(row[name])], kind) for name, kind in types.items()}


def _quoted(name: str) -> str:
    return "`{}`".format(name.replace("`", "``"))


def write_partitions(
    selected: DataFrame, columns: Sequence[Column], url: str, marker: str
) -> tuple[list[Outcome], list[str]]:
    """Runs the Spark job that writes every partition as a part.

    Args:
        selected: what `select` returned for `columns`.
        columns: distinct columns.
        url: the folder to write to.
        marker: URL of a file that the driver made in this folder.

    Returns:
        outcomes: the outcomes of the partitions, in their order.
        blind: the hosts on which the marker does not exist; they wrote nothing.
    """

    def write(batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        forget_archives()
        partition = TaskContext.get().partitionId()
        system, path = open_filesystem(marker)
        if system.get_file_info(path).type != fs.FileType.File:
            answer = {"partition": partition, "blind": socket.gethostname()}
        else:
            # No two attempts share a name, neither a retried nor a speculative one.
            name = f"part-{partition:05d}-{uuid.uuid4().hex[:12]}"
            outcome = write_part(url, name, columns, (batch.columns for batch in batches))
            answer = {"partition": partition, **asdict(outcome)}
        # Arrow imports most modules when it converts the first rows.
        spare_modules()
        yield pa.RecordBatch.from_pydict({"answer": [json.dumps(answer)]})

    kinds = [field.dataType for field in selected.schema]
    vectors = {one for one, kind in zip(columns, kinds, strict=True) if isinstance(kind, StructType)}
    session = selected.sparkSession
    most = _most_tasks(session)
    # With fewer partitions `coalesce` changes nothing. To find their number can take a job.
    merged = selected if most is None else selected.coalesce(most)
    with _batches_of(session, block_rows(columns, vectors)):
        answers = [json.loads(row.answer) for row in merged.mapInArrow(write, "answer string").collect()]
    if len(answers) == most:
        logger.info(
            "the DataFrame has %d partitions or more: where it has more, a task wrote several of them, and "
            "partitions in messages are numbered as the tasks",
            most,
        )
    answers.sort(key=lambda answer: answer["partition"])
    blind = sorted({answer["blind"] for answer in answers if "blind" in answer})
    return [_outcome(answer) for answer in answers if "blind" not in answer], blind


def _most_tasks(session: SparkSession) -> int | None:
    """The most tasks that write the partitions; None on Spark Connect, which does not know its slots."""
    if is_connect(session):
        return None
    context = session.sparkContext
    most = _MOST_WAVES * context.defaultParallelism
    if is_local(context):
        return most
    is_growing = session.conf.get("spark.dynamicAllocation.enabled", "false").lower() == "true"
    return max(_MOST_OF_GROWING if is_growing else _MOST_TASKS, most)


def _outcome(answer: dict) -> Outcome:
    part = Part(answer["part"]["rows"], tuple(answer["part"]["files"]))
    problems = tuple((number, Problem(**problem)) for number, problem in answer["problems"])
    return Outcome(part, problems, tuple(answer["rounded"]))


@contextlib.contextmanager
def _batches_of(session: SparkSession, rows: int) -> Iterator[None]:
    """Limits the rows of Spark's Arrow batches: with its default, batches of images would be gigabytes."""
    before = session.conf.get(_BATCH_ROWS)
    limits = [limit for limit in (int(before), rows) if limit > 0]
    session.conf.set(_BATCH_ROWS, min(limits))
    try:
        yield
    finally:
        session.conf.set(_BATCH_ROWS, before)
