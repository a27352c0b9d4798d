"""The Spark side of the shards: what is taken from a DataFrame, and the tasks that write its partitions."""

from __future__ import annotations

import contextlib
import json
import socket
import uuid
from collections.abc import Iterator, Sequence
from dataclasses import asdict

import numpy as np
import pyarrow as pa
from pyarrow import fs
from pyspark import TaskContext
from pyspark.ml.functions import vector_to_array
from pyspark.ml.linalg import VectorUDT
from pyspark.mllib.linalg import VectorUDT as OldVectorUDT
from pyspark.sql import Column as SparkColumn
from pyspark.sql import DataFrame, SparkSession, functions
from pyspark.sql.pandas.types import to_arrow_type
from pyspark.sql.types import ArrayType, DataType, StructField

from hvdkeras.data.columns import Column, Problem, check_names, check_type
from hvdkeras.data.parts import Part, Report, block_rows, write_part
from hvdkeras.data.store import open_filesystem

_BATCH_ROWS = "spark.sql.execution.arrow.maxRecordsPerBatch"


def select(df: DataFrame, columns: Sequence[Column]) -> DataFrame:
    """The wanted columns in a form that Arrow carries, checked by the DataFrame's schema.

    Raises:
        DataError: A column is missing or its type can't hold what is wanted.
    """
    check_names(columns, df.columns)
    chosen = [_expression(column, df.schema[column.name]) for column in columns]
    return df.select(*(one.alias(f"c{number}") for number, one in enumerate(chosen)))


def _expression(column: Column, field: StructField) -> SparkColumn:
    kind = field.dataType
    source = functions.col("`{}`".format(field.name.replace("`", "``")))
    # The JVM converts to the stored width, which halves what doubles cost on their way to Python. Whole
    # numbers come as they are: a cast would hide fractions and overflows.
    width = {"f8": "double"}.get(np.dtype(column.dtype).str[1:], "float")
    whole = np.dtype(column.dtype).kind != "f" or column.one_hot
    if isinstance(kind, VectorUDT | OldVectorUDT):
        size = field.metadata.get("ml_attr", {}).get("num_attrs")
        known = pa.list_(pa.float64()) if size is None else pa.list_(pa.float64(), size)
        check_type(column, known, "vectors" if size is None else f"vectors of {size}")
        array = vector_to_array(source, "float32" if width == "float" and not whole else "float64")
        # vector_to_array fails on a null; as a null it is counted with all others.
        return functions.when(source.isNotNull(), array)
    check_type(column, _arrow_type(kind), kind.simpleString())
    if whole or "binary" in kind.simpleString():
        return source
    return source.cast(_of_width(kind, width))


def _of_width(kind: DataType, width: str) -> str:
    return f"array<{_of_width(kind.elementType, width)}>" if isinstance(kind, ArrayType) else width


def _arrow_type(kind: DataType) -> pa.DataType | None:
    try:
        return to_arrow_type(kind)
    except TypeError:
        return None


def write_partitions(
    selected: DataFrame, columns: Sequence[Column], url: str, marker: str
) -> tuple[list[Report], list[str]]:
    """Runs the job that writes every partition as a part.

    Args:
        selected: What `select` returned for `columns`.
        columns: Distinct columns.
        url: The folder to write to.
        marker: URL of a file that the driver made there.

    Returns:
        The partitions' reports in order, and the hosts that don't see the marker, which wrote nothing.
    """

    def write(batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        task = TaskContext.get()
        partition = task.partitionId()
        system, path = open_filesystem(marker)
        if system.get_file_info(path).type != fs.FileType.File:
            answer = {"partition": partition, "blind": socket.gethostname()}
        else:
            # No two attempts share a name, neither a retried nor a speculative one.
            name = f"part-{partition:05d}-{uuid.uuid4().hex[:12]}"
            report = write_part(url, name, columns, (batch.columns for batch in batches))
            answer = {"partition": partition, **asdict(report)}
        yield pa.RecordBatch.from_pydict({"report": [json.dumps(answer)]})

    with _batches_of(selected.sparkSession, block_rows(columns)):
        answers = [json.loads(row.report) for row in selected.mapInArrow(write, "report string").collect()]
    answers.sort(key=lambda answer: answer["partition"])
    blind = sorted({answer["blind"] for answer in answers if "blind" in answer})
    return [_report(answer) for answer in answers if "blind" not in answer], blind


def _report(answer: dict) -> Report:
    part = Part(answer["part"]["rows"], tuple(answer["part"]["files"]))
    return Report(part, tuple((number, Problem(**problem)) for number, problem in answer["problems"]))


@contextlib.contextmanager
def _batches_of(session: SparkSession, rows: int) -> Iterator[None]:
    """Has Spark send Arrow batches of at most so many rows; its default would be gigabytes for images."""
    before = session.conf.get(_BATCH_ROWS)
    limits = [limit for limit in (int(before), rows) if limit > 0]
    session.conf.set(_BATCH_ROWS, min(limits))
    try:
        yield
    finally:
        session.conf.set(_BATCH_ROWS, before)
